// Fake quantization with straight-through gradients: quantize to integers and back.
#include "kernel_set.h"
#include "quantize.h"

namespace zscgan::cpu::ZSCGAN_ISA {

void fake_quantize(const FakeQuantizeArguments& arguments, int threads) {
    if (arguments.shape.numel() == 0) return;
    with_types(arguments.type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        QuantizerTable<V> table(arguments.shape, arguments.scale, arguments.zero_point);
        forward<V>(arguments.shape, arguments.range, table, NoActivation(),
                   static_cast<const T*>(arguments.x), arguments.y, arguments.mask, threads);
    });
}

void fake_quantize_backward(const FakeQuantizeBackwardArguments& arguments, int threads) {
    const int64_t numel = arguments.numel;
    with_types(arguments.type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        const Output<T> result(arguments.grad_x, numel);
        parallel_for(ceil_divide(numel, task_elements), threads, [&](int64_t task) {
            const int64_t begin = task * task_elements;
            const T* source = static_cast<const T*>(arguments.grad) + begin;
            const uint8_t* bytes = arguments.mask + begin / 8;
            for_lanes<V>(smaller(task_elements, numel - begin), [&](int64_t i, int n) {
                uint32_t bits = bytes[i / 8];
                if (V::lanes == 16 && n > 8) bits |= static_cast<uint32_t>(bytes[i / 8 + 1]) << 8;
                prefetch(source + i);
                const auto passed = V::load_where(V::Mask::from_bits(bits), source + i, n);
                result.template write<V>(begin + i, passed, n);
            });
        });
    });
}

}  // namespace zscgan::cpu::ZSCGAN_ISA

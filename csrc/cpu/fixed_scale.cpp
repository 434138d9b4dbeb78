// Fake quantization with straight-through gradients: quantize to integers and back.
#include "kernel_set.h"
#include "quantize.h"

namespace zscgan::cpu::ZSCGAN_ISA {

void fake_quantize(DataType type, Extent extent, QuantRange range, const void* x, const void* scale,
                   const void* zero_point, void* y, uint8_t* mask, int threads) {
    if (extent.numel() == 0) return;
    with_types(type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        QuantizerTable<V> table(extent, scale, zero_point);
        forward<V>(extent, range, table, NoActivation(), static_cast<const T*>(x), y, mask,
                   threads);
    });
}

void fake_quantize_backward(DataType type, int64_t numel, const void* grad, const uint8_t* mask,
                            void* grad_x, int threads) {
    with_types(type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        const Output<T> result(grad_x, numel);
        parallel_for(ceil_divide(numel, task_elements), threads, [&](int64_t task) {
            const int64_t begin = task * task_elements;
            const T* source = static_cast<const T*>(grad) + begin;
            const uint8_t* bytes = mask + begin / 8;
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

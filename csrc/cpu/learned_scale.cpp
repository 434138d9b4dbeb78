// Fake quantization with learned scales and zero points, after an activation and a bias.
#include <type_traits>

#include "kernel_set.h"
#include "quantize.h"

namespace zscgan::cpu::ZSCGAN_ISA {
namespace {

// Calls body(table, activation) with the parameters of a tensor, as plain as it allows.
template <class V, class Body>
void with_parameters(const LsqTensor& tensor, Body body) {
    if (tensor.bias) {
        BiasedQuantizerTable<V> table(tensor.shape, tensor.scale, tensor.zero_point,
                                      tensor.quantizer_stride, tensor.bias);
        table.clamp_zero_points(tensor.range);
        body(table, broadcast_bounds<V>(tensor.activation));
        return;
    }
    QuantizerTable<V> table(tensor.shape, tensor.scale, tensor.zero_point, tensor.quantizer_stride);
    table.clamp_zero_points(tensor.range);
    if (tensor.activation == Activation::none) {
        body(table, NoActivation());
    } else {
        body(table, broadcast_bounds<V>(tensor.activation));
    }
}

// The sums of a channel's learned gradients, with grad_x written on the way. A third sum, that of
// grad_x, is the gradient of a bias.
template <class V, class T, class Table, class ActivationRange>
struct LsqBackward {
    using Real = typename V::Real;
    static constexpr bool biased = std::is_same_v<Table, BiasedQuantizerTable<V>>;
    using Sums = std::conditional_t<biased, Triple, Pair>;
    static constexpr int64_t element_size = sizeof(T);
    struct Terms {
        LsqTerms<V> quantizer;
        V bias;
    };
    const T* x;
    const T* grad;
    Output<T> grad_x;
    Table& table;
    Bounds<V> bounds;
    ActivationRange activation;

    template <class Parameters>
    Terms step(int64_t position, int n, const Parameters& quantizer) {
        const V zero = V::broadcast(0);
        const V before = add_bias(read<V>(x + position, n), quantizer);
        const V value = activate(before, activation);
        const V incoming = read<V>(grad + position, n);
        const V integer = unclamped(value, quantizer);
        const auto inside = is_inside(integer, bounds);
        const V passed = mask_gradient(select(inside, incoming, zero), before, activation, zero);
        grad_x.template write<V>(position, passed, n);
        return {lsq_terms(value, incoming, integer, inside, quantizer, bounds, zero), passed};
    }

    // Short runs in float32, their sums in float64.
    Sums row(int64_t position, int64_t count, int64_t channel) {
        constexpr int64_t run = 4096;
        const auto quantizer = table.channel(channel);
        Sums total{};
        for (int64_t start = 0; start < count; start += run) {
            V scale_sum = V::broadcast(0), zero_point_sum = scale_sum, bias_sum = scale_sum;
            for_lanes<V>(smaller(run, count - start), [&](int64_t i, int n) {
                const Terms terms = step(position + start + i, n, quantizer);
                scale_sum = scale_sum + terms.quantizer.scale;
                zero_point_sum = zero_point_sum + terms.quantizer.zero_point;
                if constexpr (biased) bias_sum = bias_sum + terms.bias;
            });
            Sums sums{};
            sums.first = scale_sum.sum();
            sums.second = zero_point_sum.sum();
            if constexpr (biased) sums.third = bias_sum.sum();
            total = total + sums;
        }
        return total;
    }

    void columns(const Band& band, Real* scale_sums, Real* zero_point_sums,
                 Real* bias_sums = nullptr) {
        for_lanes<V>(band.width, [&](int64_t i, int n) {
            const auto quantizer = table.lanes(i, n);
            V scale_sum = V::load(scale_sums + i, n), bias_sum = V::broadcast(0);
            V zero_point_sum = V::load(zero_point_sums + i, n);
            if constexpr (biased) bias_sum = V::load(bias_sums + i, n);
            for (int64_t row = 0; row < band.rows; ++row) {
                prefetch(x + band.at(row, i), band.next() * element_size);
                prefetch(grad + band.at(row, i), band.next() * element_size);
                const Terms terms = step(band.at(row, i), n, quantizer);
                scale_sum = scale_sum + terms.quantizer.scale;
                zero_point_sum = zero_point_sum + terms.quantizer.zero_point;
                if constexpr (biased) bias_sum = bias_sum + terms.bias;
            }
            scale_sum.store(scale_sums + i, n);
            zero_point_sum.store(zero_point_sums + i, n);
            if constexpr (biased) bias_sum.store(bias_sums + i, n);
        });
    }
};

template <class Real>
void write_gradients(const LsqTensor& tensor, int64_t channel, const Pair& sums) {
    static_cast<Real*>(tensor.grad_scale)[channel] =
        static_cast<Real>(tensor.gradient_scale * sums.first);
    const Real scale = static_cast<const Real*>(tensor.scale)[channel * tensor.quantizer_stride];
    static_cast<Real*>(tensor.grad_zero_point)[channel] =
        static_cast<Real>(tensor.gradient_scale * scale * sums.second);
}

template <class Real>
void write_gradients(const LsqTensor& tensor, int64_t channel, const Triple& sums) {
    write_gradients<Real>(tensor, channel, Pair{sums.first, sums.second});
    static_cast<Real*>(tensor.grad_bias)[channel] = static_cast<Real>(sums.third);
}

template <class V, class T>
void lsq_backward(const LsqTensor& tensor, int threads) {
    using Real = typename V::Real;
    if (tensor.shape.numel() == 0) {
        for (int64_t c = 0; c < tensor.shape.channels; ++c) {
            write_gradients<Real>(tensor, c, Pair{0, 0});
            if (tensor.bias) static_cast<Real*>(tensor.grad_bias)[c] = 0;
        }
        return;
    }
    with_parameters<V>(tensor, [&](auto& table, auto activation) {
        using Kernel = LsqBackward<V, T, std::decay_t<decltype(table)>, decltype(activation)>;
        using Sums = typename Kernel::Sums;
        const Reduction reduction(tensor.shape);
        Scratch<Sums> partials(reduction.partials());
        Kernel kernel{static_cast<const T*>(tensor.x),
                      static_cast<const T*>(tensor.grad),
                      Output<T>(tensor.grad_x, tensor.shape.numel()),
                      table,
                      broadcast_bounds<V>(tensor.range),
                      activation};
        parallel_for(reduction.tasks(), threads, [&](int64_t task) {
            reduce_task<AdditionOf<Sums>, Real>(reduction, task, partials.data(), kernel);
        });
        merge_partials<AdditionOf<Sums>>(
            partials.data(), reduction.slots(), tensor.shape.channels,
            [&](int64_t c, const Sums& total) { write_gradients<Real>(tensor, c, total); });
    });
}

}  // namespace

void lsq_fake_quantize(const LsqArguments& arguments, int threads) {
    with_types(arguments.type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        parallel_for_tensors(arguments, threads, [&](const LsqTensor& tensor, int team) {
            if (tensor.shape.numel() == 0) return;
            with_parameters<V>(tensor, [&](auto& table, auto activation) {
                forward<V>(tensor.shape, tensor.range, table, activation,
                           static_cast<const T*>(tensor.x), tensor.y, nullptr, team);
            });
        });
    });
}

void lsq_fake_quantize_backward(const LsqArguments& arguments, int threads) {
    with_types(arguments.type, [&](auto types) {
        parallel_for_tensors(arguments, threads, [&](const LsqTensor& tensor, int team) {
            lsq_backward<typename decltype(types)::Vector, typename decltype(types)::Element>(
                tensor, team);
        });
    });
}

}  // namespace zscgan::cpu::ZSCGAN_ISA

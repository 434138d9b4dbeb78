// Batch-norm statistics: mean and variance of each channel, and their gradient.
#include "data_types.h"
#include "kernel_set.h"
#include "statistics.h"

namespace zscgan::cpu::ZSCGAN_ISA {
namespace {

// Does nothing with x: for the statistics only.
template <class V>
struct Onlooker {
    struct Parameters {};
    Parameters channel(int64_t) const { return {}; }
    Parameters lanes(int64_t, int) const { return {}; }
    void visit(int64_t, int, V, Parameters) const {}
};

// y = a + b * x for each channel.
template <class V, class T>
struct Affine {
    using Real = typename V::Real;
    struct Parameters {
        V a, b;
    };
    const Real* a;
    const Real* b;
    Output<T> y;

    Parameters channel(int64_t c) const { return {V::broadcast(a[c]), V::broadcast(b[c])}; }
    Parameters lanes(int64_t i, int n) const { return {V::load(a + i, n), V::load(b + i, n)}; }
    void visit(int64_t position, int n, V x, const Parameters& parameters) const {
        y.template write<V>(position, parameters.a + parameters.b * x, n);
    }
};

}  // namespace

void batch_norm_statistics(const BatchNormStatisticsArguments& arguments, int threads) {
    with_types(arguments.type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        reduce_statistics<V, T>(arguments, Onlooker<V>{}, threads);
    });
}

void batch_norm_statistics_backward(const BatchNormStatisticsBackwardArguments& arguments,
                                    int threads) {
    const Shape3& shape = arguments.shape;
    if (shape.numel() == 0) return;
    with_types(arguments.type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        StatisticsGradient<V> gradient(arguments);
        const Affine<V, T> affine{gradient.a.data(), gradient.b.data(),
                                  Output<T>(arguments.grad_x, shape.numel())};
        visit_in_parallel<V>(shape, static_cast<const T*>(arguments.x), affine, threads);
    });
}

}  // namespace zscgan::cpu::ZSCGAN_ISA

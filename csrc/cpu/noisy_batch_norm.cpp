// Batch norm, noise and LeakyReLU, and their gradient: the sums that the gradient of the statistics
// needs, then the gradient of x.
#include "bit_mask.h"
#include "channel_table.h"
#include "data_types.h"
#include "kernel_set.h"
#include "noise.h"

namespace zscgan::cpu::ZSCGAN_ISA {
namespace {

// What a task draws and writes on its way.
struct TaskState {
    NoiseReader noise;
    BitWriter positive;
};

// Writes y, and whether what enters the LeakyReLU is positive, where it is shown x.
template <class V, class T, bool has_noise>
struct NoisyNormalization {
    using Real = typename V::Real;
    struct Parameters {
        V multiplier, offset;
    };
    const Real* multiplier;
    const Real* offset;
    V noise, slope;
    Output<T> y;
    TaskState* state;

    Parameters channel(int64_t c) const {
        return {V::broadcast(multiplier[c]), V::broadcast(offset[c])};
    }
    Parameters lanes(int64_t i, int n) const {
        return {V::load(multiplier + i, n), V::load(offset + i, n)};
    }
    void visit(int64_t position, int n, V x, const Parameters& parameters) const {
        const V zero = V::broadcast(0);
        V value = normalize(x, parameters.multiplier, parameters.offset);
        if constexpr (has_noise) {
            value = value + noise * V::load(state->noise.at(position, n), n);
        }
        y.template write<V>(position, leaky_relu(value, slope, zero), n);
        const uint32_t bits = (value >= zero).bits() & ~(value <= zero).bits();
        state->positive.append(bits & ((1u << n) - 1), n);
    }
};

template <class V, class T, bool has_noise>
void forward(const NoisyBatchNormArguments& norm, int threads) {
    using Real = typename V::Real;
    const int64_t numel = norm.shape.numel();
    ChannelTable<V> multiplier(norm.shape, norm.multiplier), offset(norm.shape, norm.offset);
    NoisyNormalization<V, T, has_noise> normalization{
        multiplier.data(),
        offset.data(),
        V::broadcast(static_cast<Real>(norm.noise / noise_deviation)),
        V::broadcast(static_cast<Real>(norm.negative_slope)),
        Output<T>(norm.y, numel),
        nullptr};
    const auto seed = static_cast<uint64_t>(*norm.seed);
    const int64_t chunk = elementwise_chunk(norm.shape);
    parallel_for(ceil_divide(numel, chunk), threads, [&](int64_t task) {
        const int64_t begin = task * chunk;
        TaskState state{NoiseReader(seed), BitWriter(norm.positive + begin / 8)};
        auto visitor = normalization;
        visitor.state = &state;
        visit_vectors<V>(norm.shape, static_cast<const T*>(norm.x), visitor, begin,
                         smaller(numel, begin + chunk));
        state.positive.flush();
    });
}

// The gradient of what enters the LeakyReLU.
template <class V>
struct LeakyGradient {
    const uint8_t* positive;
    V slope;

    ZSCGAN_INLINE V at(int64_t position, int n, V grad) const {
        const auto mask = V::Mask::from_bits(read_bits(positive, position, n));
        return select(mask, grad, grad * slope);
    }
};

// Sums of that gradient, and of its product with x - mean.
template <class V, class T>
struct GradientSums {
    using Real = typename V::Real;
    const T *grad, *x;
    const Real* mean;
    LeakyGradient<V> leaky;

    // Short runs in float32, their sums in float64.
    Pair row(int64_t position, int64_t count, int64_t channel) const {
        constexpr int64_t run = 1024;
        const V shift = V::broadcast(mean[channel]);
        Pair total{0, 0};
        for (int64_t start = 0; start < count; start += run) {
            V sum = V::broadcast(0), products = V::broadcast(0);
            for_lanes<V>(smaller(run, count - start), [&](int64_t i, int n) {
                const int64_t at = position + start + i;
                const V masked = leaky.at(at, n, read<V>(grad + at, n));
                sum = sum + masked;
                products = products + masked * (read<V>(x + at, n) - shift);
            });
            total = Addition::merge(total, {sum.sum(), products.sum()});
        }
        return total;
    }

    void columns(const Band& band, Real* sums, Real* products) const {
        for_lanes<V>(band.width, [&](int64_t i, int n) {
            const V shift = V::load(mean + i, n);
            V sum = V::load(sums + i, n), product = V::load(products + i, n);
            for (int64_t row = 0; row < band.rows; ++row) {
                const V masked = leaky.at(band.at(row, i), n, read<V>(grad, band, row, i, n));
                sum = sum + masked;
                product = product + masked * (read<V>(x, band, row, i, n) - shift);
            }
            sum.store(sums + i, n);
            product.store(products + i, n);
        });
    }
};

template <class V, class T>
void sum_gradient(const NoisyBatchNormSumsArguments& norm, int threads) {
    using Real = typename V::Real;
    if (norm.shape.numel() == 0) {
        std::fill_n(static_cast<Real*>(norm.sum), norm.shape.channels, Real(0));
        std::fill_n(static_cast<Real*>(norm.product_sum), norm.shape.channels, Real(0));
        return;
    }
    ChannelTable<V> mean(norm.shape, norm.mean);
    const Reduction reduction(norm.shape);
    Scratch<Pair> partials(reduction.partials());
    const GradientSums<V, T> kernel{
        static_cast<const T*>(norm.grad),
        static_cast<const T*>(norm.x),
        mean.data(),
        {norm.positive, V::broadcast(static_cast<Real>(norm.negative_slope))}};
    parallel_for(reduction.tasks(), threads, [&](int64_t task) {
        reduce_task<Addition, Real>(reduction, task, partials.data(), kernel);
    });
    merge_partials<Addition>(
        partials.data(), reduction.slots(), norm.shape.channels, [&](int64_t c, Pair total) {
            static_cast<Real*>(norm.sum)[c] = static_cast<Real>(total.first);
            static_cast<Real*>(norm.product_sum)[c] = static_cast<Real>(total.second);
        });
}

// Writes grad_x where it is shown the gradient of y.
template <class V, class T>
struct NoisyNormalizationGradient {
    using Real = typename V::Real;
    struct Parameters {
        V multiplier, constant, slope;
    };
    const Real *multiplier, *constant, *slope;
    LeakyGradient<V> leaky;
    const T* x;
    Output<T> grad_x;

    Parameters channel(int64_t c) const {
        return {V::broadcast(multiplier[c]), V::broadcast(constant[c]), V::broadcast(slope[c])};
    }
    Parameters lanes(int64_t i, int n) const {
        return {V::load(multiplier + i, n), V::load(constant + i, n), V::load(slope + i, n)};
    }
    void visit(int64_t position, int n, V grad, const Parameters& parameters) const {
        const V masked = leaky.at(position, n, grad);
        const V statistics = parameters.constant + parameters.slope * read<V>(x + position, n);
        grad_x.template write<V>(position, masked * parameters.multiplier + statistics, n);
    }
};

template <class V, class T>
void backward(const NoisyBatchNormBackwardArguments& norm, int threads) {
    using Real = typename V::Real;
    ChannelTable<V> multiplier(norm.shape, norm.multiplier);
    ChannelTable<V> constant(norm.shape, norm.constant), slope(norm.shape, norm.slope);
    const NoisyNormalizationGradient<V, T> gradient{
        multiplier.data(),
        constant.data(),
        slope.data(),
        {norm.positive, V::broadcast(static_cast<Real>(norm.negative_slope))},
        static_cast<const T*>(norm.x),
        Output<T>(norm.grad_x, norm.shape.numel())};
    visit_in_parallel<V>(norm.shape, static_cast<const T*>(norm.grad), gradient, threads);
}

}  // namespace

void noisy_batch_norm(const NoisyBatchNormArguments& norm, int threads) {
    if (norm.shape.numel() == 0) return;
    with_types(norm.type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        const auto kernel = norm.noise == 0 ? &forward<V, T, false> : &forward<V, T, true>;
        kernel(norm, threads);
    });
}

void noisy_batch_norm_sums(const NoisyBatchNormSumsArguments& norm, int threads) {
    with_types(norm.type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        sum_gradient<V, T>(norm, threads);
    });
}

void noisy_batch_norm_backward(const NoisyBatchNormBackwardArguments& norm, int threads) {
    if (norm.shape.numel() == 0) return;
    with_types(norm.type, [&](auto types) {
        using V = typename decltype(types)::Vector;
        using T = typename decltype(types)::Element;
        backward<V, T>(norm, threads);
    });
}

}  // namespace zscgan::cpu::ZSCGAN_ISA

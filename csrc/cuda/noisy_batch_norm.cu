// Batch norm, noise and LeakyReLU, and their gradient: the sums that the gradient of the statistics
// needs, then the gradient of x.
#include "../normal_noise.h"
#include "../quant_math.h"
#include "map_launcher.cuh"
#include "reduction_launcher.cuh"

namespace zscgan::cuda {
namespace {

// The noise of a vector.
struct Noise {
    struct Numbers {
        int number[numbers_per_vector];
    };
    const int64_t* seed;
    float unit;

    __device__ __forceinline__ Numbers draw(int64_t vector) const {
        const auto index = static_cast<uint64_t>(vector);
        uint32_t words[words_per_block];
        philox(static_cast<uint64_t>(*seed), block_of_vector(index), words);
        Numbers numbers;
        vector_noise(words, half_of_vector(index), numbers.number);
        return numbers;
    }
    __device__ __forceinline__ float added(float value, const Numbers& numbers, int place) const {
        return value + unit * static_cast<float>(numbers.number[place]);
    }
};

struct NoNoise {
    struct Numbers {};
    __device__ __forceinline__ Numbers draw(int64_t) const { return {}; }
    __device__ __forceinline__ float added(float value, Numbers, int) const { return value; }
};

template <class T, class NoiseKind>
struct NoisyBatchNormForward {
    using Element = T;
    struct Parameters {
        float multiplier;
        float offset;
    };
    using VectorState = typename NoiseKind::Numbers;
    const T* source;
    T* target;
    const float* multiplier;
    const float* offset;
    float slope;
    NoiseKind noise;
    uint8_t* positive;

    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        return {multiplier[channel], offset[channel]};
    }
    __device__ __forceinline__ VectorState vector_state(int64_t vector) const {
        return noise.draw(vector);
    }
    __device__ __forceinline__ float apply(float x, const Parameters& p, bool& flag,
                                           const VectorState& numbers, int place) const {
        const float value = noise.added(normalize(x, p.multiplier, p.offset), numbers, place);
        flag = value > 0.0f;
        return leaky_relu(value, slope, 0.0f);
    }
    __device__ __forceinline__ void store_flags(int64_t vector, unsigned flags) const {
        positive[vector] = static_cast<uint8_t>(flags);
    }
};

// The gradient of what enters the LeakyReLU.
struct LeakyGradient {
    using VectorState = unsigned;  // a byte of the mask
    const uint8_t* positive;
    float slope;

    __device__ __forceinline__ VectorState vector_state(int64_t vector) const {
        return positive[vector];
    }
    __device__ __forceinline__ float masked(float grad, VectorState bits, int place) const {
        return bits >> place & 1 ? grad : grad * slope;
    }
};

// Sums of that gradient, and of its product with x - mean.
template <class T>
struct NoisyBatchNormSums : SumReduction, LeakyGradient {
    using Element = T;
    using Parameters = float;
    static constexpr bool reads_second = true;
    static constexpr bool writes_target = false;
    const T* source;         // the gradient of y
    const T* second_source;  // x
    const float* mean;
    float* sum;
    float* product_sum;

    bool is_wide() const { return cuda::is_wide({source, second_source}); }

    __device__ __forceinline__ float parameters(int64_t channel) const { return mean[channel]; }
    __device__ __forceinline__ float visit(float grad, float x, float channel_mean,
                                           Accumulator& sums, VectorState bits, int place) const {
        const float before = masked(grad, bits, place);
        sums.first += before;
        sums.second = fmaf(before, x - channel_mean, sums.second);
        return grad;
    }
    __device__ __forceinline__ void finish(int64_t channel, const Pair& sums) const {
        sum[channel] = static_cast<float>(sums.first);
        product_sum[channel] = static_cast<float>(sums.second);
    }
};

template <class T>
struct NoisyBatchNormBackward : LeakyGradient {
    using Element = T;
    struct Parameters {
        float multiplier;
        float constant;
        float slope;
    };
    static constexpr int more_source_count = 1;
    const T* source;                           // the gradient of y
    const T* more_sources[more_source_count];  // x
    T* target;
    T* second_target;
    const float* multiplier;
    const float* constant;
    const float* slope_of_x;

    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        return {multiplier[channel], constant[channel], slope_of_x[channel]};
    }
    __device__ __forceinline__ void apply(float (&elements)[2], const Parameters& p,
                                          VectorState bits, int place) const {
        const float before = masked(elements[0], bits, place);
        elements[0] = before * p.multiplier + (p.constant + p.slope * elements[1]);
    }
};

template <class Operation>
const char* launch_map(const Operation& operation, const Shape3& shape, const Launch& target) {
    MapLauncher<Operation, 1, 1> launcher(target.stream);
    const char* error = launcher.add(operation, shape, true);
    return error ? error : launcher.flush();
}

template <class T, class NoiseKind>
const char* forward(const NoisyBatchNormArguments& norm, const NoiseKind& noise,
                    const Launch& target) {
    const NoisyBatchNormForward<T, NoiseKind> operation{static_cast<const T*>(norm.x),
                                                        static_cast<T*>(norm.y),
                                                        static_cast<const float*>(norm.multiplier),
                                                        static_cast<const float*>(norm.offset),
                                                        static_cast<float>(norm.negative_slope),
                                                        noise,
                                                        norm.positive};
    return launch_map(operation, norm.shape, target);
}

template <class Arguments>
LeakyGradient leaky_gradient(const Arguments& norm) {
    return {norm.positive, static_cast<float>(norm.negative_slope)};
}

}  // namespace

const char* noisy_batch_norm(const NoisyBatchNormArguments& norm, Launch target) {
    return dispatch(norm.type, [&](auto element) -> const char* {
        using T = decltype(element);
        if (norm.noise == 0) return forward<T>(norm, NoNoise{}, target);
        return forward<T>(norm, Noise{norm.seed, static_cast<float>(norm.noise / noise_deviation)},
                          target);
    });
}

const char* noisy_batch_norm_sums(const NoisyBatchNormSumsArguments& norm, Launch target) {
    return dispatch(norm.type, [&](auto element) -> const char* {
        using T = decltype(element);
        NoisyBatchNormSums<T> operation{};
        static_cast<LeakyGradient&>(operation) = leaky_gradient(norm);
        operation.source = static_cast<const T*>(norm.grad);
        operation.second_source = static_cast<const T*>(norm.x);
        operation.mean = static_cast<const float*>(norm.mean);
        operation.sum = static_cast<float*>(norm.sum);
        operation.product_sum = static_cast<float*>(norm.product_sum);
        ReductionLauncher<NoisyBatchNormSums<T>, 1, 1> launcher(target);
        const char* error = launcher.add(operation, norm.shape);
        return error ? error : launcher.flush();
    });
}

const char* noisy_batch_norm_backward(const NoisyBatchNormBackwardArguments& norm, Launch target) {
    return dispatch(norm.type, [&](auto element) -> const char* {
        using T = decltype(element);
        NoisyBatchNormBackward<T> operation{};
        static_cast<LeakyGradient&>(operation) = leaky_gradient(norm);
        operation.source = static_cast<const T*>(norm.grad);
        operation.more_sources[0] = static_cast<const T*>(norm.x);
        operation.target = static_cast<T*>(norm.grad_x);
        operation.multiplier = static_cast<const float*>(norm.multiplier);
        operation.constant = static_cast<const float*>(norm.constant);
        operation.slope_of_x = static_cast<const float*>(norm.slope);
        return launch_map(operation, norm.shape, target);
    });
}

}  // namespace zscgan::cuda

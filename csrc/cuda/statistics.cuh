// Mean and variance of each channel from shifted sums, and the coefficients of their gradient.
#pragma once

#include "../quant_math.h"
#include "reduction.cuh"

namespace zscgan::cuda {

// The sums of (x - mean_hint) and of its square.
struct StatisticsReduction : SumReduction, WideSums {
    const float* mean_hint;
    float* mean;
    float* variance;
    double elements_per_channel;

    static __device__ __forceinline__ void add(float x, float mean_hint, Accumulator& sums) {
        const float offset = x - mean_hint;
        sums.first += offset;
        sums.second = fmaf(offset, offset, sums.second);
    }
    static __device__ __forceinline__ void add(float x, float mean_hint, Pair& sums) {
        const double offset = static_cast<double>(x) - mean_hint;
        sums.first += offset;
        sums.second += offset * offset;
    }
    __device__ __forceinline__ void finish(int64_t channel, const Pair& sums) const {
        const double offset = sums.first / elements_per_channel;
        const double square = sums.second / elements_per_channel;
        mean[channel] = static_cast<float>(mean_hint[channel] + offset);
        variance[channel] = static_cast<float>(maximum(0.0, square - offset * offset));
    }
};

// The gradient of the statistics by x, affine in x.
struct StatisticsGradient {
    struct Coefficients {
        float a;
        float b;
        __device__ __forceinline__ float at(float x) const { return fmaf(b, x, a); }
    };
    const float* mean;
    const float* grad_mean;
    const float* grad_variance;
    float elements_per_channel;

    __device__ __forceinline__ Coefficients coefficients(int64_t channel) const {
        const float b = 2.0f * grad_variance[channel] / elements_per_channel;
        return {grad_mean[channel] / elements_per_channel - b * mean[channel], b};
    }
};

inline double elements_per_channel(const Shape3& shape) {
    return static_cast<double>(shape.outer * shape.inner);
}

template <class Arguments>
StatisticsReduction statistics_reduction(const Arguments& arguments) {
    return {{},
            {},
            static_cast<const float*>(arguments.mean_hint),
            static_cast<float*>(arguments.mean),
            static_cast<float*>(arguments.variance),
            elements_per_channel(arguments.shape)};
}

template <class Arguments>
StatisticsGradient statistics_gradient(const Arguments& arguments) {
    return {static_cast<const float*>(arguments.mean),
            static_cast<const float*>(arguments.grad_mean),
            static_cast<const float*>(arguments.grad_variance),
            static_cast<float>(elements_per_channel(arguments.shape))};
}

}  // namespace zscgan::cuda

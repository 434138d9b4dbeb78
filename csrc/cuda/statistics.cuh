// Mean and variance of each channel from shifted sums, and the coefficients of their gradient.
#pragma once

#include "../quant_math.h"
#include "reduction.cuh"

namespace zscgan::cuda {

// The sums of (x - shift) and of its square.
struct StatisticsReduction : SumReduction, WideSums {
    const float* shift;
    float* mean;
    float* variance;
    double elements_per_channel;

    static __device__ __forceinline__ void add(float x, float shift, Accumulator& sums) {
        const float offset = x - shift;
        sums.first += offset;
        sums.second = fmaf(offset, offset, sums.second);
    }
    static __device__ __forceinline__ void add(float x, float shift, Pair& sums) {
        const double offset = static_cast<double>(x) - shift;
        sums.first += offset;
        sums.second += offset * offset;
    }
    __device__ __forceinline__ void finish(int64_t channel, const Pair& sums) const {
        const double offset = sums.first / elements_per_channel;
        const double square = sums.second / elements_per_channel;
        mean[channel] = static_cast<float>(shift[channel] + offset);
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

inline double elements_per_channel(const Extent& extent) {
    return static_cast<double>(extent.outer * extent.inner);
}

inline StatisticsReduction statistics_reduction(const Extent& extent, const void* shift, void* mean,
                                                void* variance) {
    return {{},
            {},
            static_cast<const float*>(shift),
            static_cast<float*>(mean),
            static_cast<float*>(variance),
            elements_per_channel(extent)};
}

inline StatisticsGradient statistics_gradient(const Extent& extent, const void* mean,
                                              const void* grad_mean, const void* grad_variance) {
    return {static_cast<const float*>(mean), static_cast<const float*>(grad_mean),
            static_cast<const float*>(grad_variance),
            static_cast<float>(elements_per_channel(extent))};
}

}  // namespace zscgan::cuda

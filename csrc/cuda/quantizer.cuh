// A quantizer's parameters as kernels read them.
#pragma once

#include "../quant_math.h"

namespace zscgan::cuda {

inline Bounds<float> float_bounds(const QuantRange& range) {
    return {static_cast<float>(range.quant_min), static_cast<float>(range.quant_max)};
}

__device__ __forceinline__ Quantizer<float> read_quantizer(const float* scale,
                                                           const float* zero_point,
                                                           int64_t channel) {
    const float step = scale[channel];
    return {step, 1.0f / step, round_to_even(zero_point[channel])};
}

}  // namespace zscgan::cuda

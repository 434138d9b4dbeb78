// The arithmetic of quantization and of batch-norm matching, written once: for scalars on the host
// and the device, and for the vector types of cpu/simd.h, which overload the same names.
#pragma once

#include <cmath>

#include "kernels.h"

#ifdef __CUDACC__
#define ZSCGAN_INLINE __host__ __device__ __forceinline__
#else
#define ZSCGAN_INLINE inline __attribute__((always_inline))
#endif

namespace zscgan {

// minimum(bound, x) and maximum(bound, x) return x when it is NaN.
ZSCGAN_INLINE float minimum(float bound, float x) { return bound < x ? bound : x; }
ZSCGAN_INLINE float maximum(float bound, float x) { return bound > x ? bound : x; }
ZSCGAN_INLINE double minimum(double bound, double x) { return bound < x ? bound : x; }
ZSCGAN_INLINE double maximum(double bound, double x) { return bound > x ? bound : x; }
ZSCGAN_INLINE float round_to_even(float x) { return rintf(x); }
ZSCGAN_INLINE double round_to_even(double x) { return rint(x); }
template <class Value>
ZSCGAN_INLINE Value select(bool condition, Value yes, Value no) {
    return condition ? yes : no;
}

// The parameters of one channel (or of one vector of channels).
template <class Value>
struct Quantizer {
    Value scale;
    Value inverse_scale;
    Value zero_point;
};

template <class Value>
struct BiasedQuantizer : Quantizer<Value> {
    Value bias;
};

// What is quantized before an activation: x, or its sum with the bias of its channel.
template <class Value>
ZSCGAN_INLINE Value add_bias(Value x, const Quantizer<Value>&) {
    return x;
}
template <class Value>
ZSCGAN_INLINE Value add_bias(Value x, const BiasedQuantizer<Value>& quantizer) {
    return x + quantizer.bias;
}

template <class Value>
struct Bounds {
    Value quant_min;
    Value quant_max;
};

// The integer before clamping: rint(x / scale) + zero_point.
template <class Value>
ZSCGAN_INLINE Value unclamped(Value x, const Quantizer<Value>& quantizer) {
    return round_to_even(x * quantizer.inverse_scale) + quantizer.zero_point;
}

template <class Value>
ZSCGAN_INLINE Value clamp(Value x, const Bounds<Value>& bounds) {
    return minimum(bounds.quant_max, maximum(bounds.quant_min, x));
}

template <class Value>
ZSCGAN_INLINE auto is_inside(Value integer, const Bounds<Value>& bounds) {
    return (integer >= bounds.quant_min) & (integer <= bounds.quant_max);
}

template <class Value>
ZSCGAN_INLINE Value dequantize(Value integer, const Quantizer<Value>& quantizer) {
    return (integer - quantizer.zero_point) * quantizer.scale;
}

// The derivatives of the dequantized value by scale and by zero point (LSQ, LSQ+), the latter still
// without its factor, the scale. As in torch's learnable form the rounded integer decides what is
// inside.
template <class Value>
struct LsqTerms {
    Value scale;
    Value zero_point;
};

template <class Value, class Inside>
ZSCGAN_INLINE LsqTerms<Value> lsq_terms(Value x, Value grad, Value integer, Inside inside,
                                        const Quantizer<Value>& quantizer,
                                        const Bounds<Value>& bounds, Value zero) {
    const Value scaled = x * quantizer.inverse_scale;
    const Value bound = clamp(integer, bounds) - quantizer.zero_point;
    const Value by_scale = select(inside, round_to_even(scaled) - scaled, bound);
    return {grad * by_scale, select(inside, zero, zero - grad)};
}

// The smallest scale an observer gives: float32 epsilon, as in torch.ao.quantization.
constexpr float smallest_scale = 1.1920928955078125e-07f;

struct ScaleAndZeroPoint {
    float scale;
    float zero_point;
};

ZSCGAN_INLINE ScaleAndZeroPoint range_to_quantizer(float low, float high, float quant_min,
                                                   float quant_max, bool symmetric) {
    const float negative = minimum(0.0f, low);
    const float positive = maximum(0.0f, high);
    const float steps = quant_max - quant_min;
    if (symmetric) {
        const float magnitude = negative == negative ? maximum(-negative, positive) : negative;
        const float middle = quant_min < 0 ? 0.0f : floorf((quant_min + quant_max + 1) / 2);
        return {maximum(smallest_scale, 2 * magnitude / steps), middle};
    }
    const float scale = maximum(smallest_scale, (positive - negative) / steps);
    const float zero_point = quant_min - round_to_even(negative / scale);
    return {scale, minimum(quant_max, maximum(quant_min, zero_point))};
}

// The first observation replaces the initial +inf and -inf.
ZSCGAN_INLINE float moving_average(float running, float observed, float constant, bool first) {
    return first ? observed : running + constant * (observed - running);
}

// What an activation clamps to. NaN is no bound: every comparison with it is false.
template <class Value>
struct ActivationBounds {
    Value low;
    Value high;
};

template <class Real>
ZSCGAN_INLINE ActivationBounds<Real> activation_bounds(Activation activation) {
    const Real unbounded = static_cast<Real>(NAN);
    return {activation == Activation::none ? unbounded : Real(0),
            activation == Activation::relu6 ? Real(6) : unbounded};
}

template <class Value>
ZSCGAN_INLINE Value activate(Value x, const ActivationBounds<Value>& bounds) {
    return minimum(bounds.high, maximum(bounds.low, x));
}

// No activation at all, for kernels that are compiled without one.
struct NoActivation {};

template <class Value>
ZSCGAN_INLINE Value activate(Value x, NoActivation) {
    return x;
}

template <class Value>
ZSCGAN_INLINE Value mask_gradient(Value grad, Value, NoActivation, Value) {
    return grad;
}

// The gradient where the activation's input, or its result, lies between the bounds.
template <class Value>
ZSCGAN_INLINE Value mask_gradient(Value grad, Value x, const ActivationBounds<Value>& bounds,
                                  Value zero) {
    return select(x <= bounds.low, zero, select(x >= bounds.high, zero, grad));
}

// Batch norm with stored statistics, which are part of the multiplier and the offset.
template <class Value>
ZSCGAN_INLINE Value normalize(Value x, Value multiplier, Value offset) {
    return x * multiplier + offset;
}

// A channel's distance between batch statistics (mean, variance) and stored ones, with its
// derivatives. `l2` gives squares: the layer takes their roots.
struct DistanceTerms {
    double mean_part;
    double variance_part;
    double grad_mean;
    double grad_variance;
};

ZSCGAN_INLINE DistanceTerms distance_terms(Distance distance, double mean, double variance,
                                           double running_mean, double running_var, double eps) {
    const double offset = mean - running_mean;
    if (distance == Distance::gaussian_kl) {
        const double stored = running_var + eps;
        const double ratio = (variance + eps) / stored;
        return {offset * offset / (2 * stored), (ratio - 1 - log(ratio)) / 2, offset / stored,
                (1 / stored - 1 / (variance + eps)) / 2};
    }
    if (distance == Distance::std_mse) {
        const double deviation = sqrt(variance + eps);
        const double difference = deviation - sqrt(running_var + eps);
        return {offset * offset, difference * difference, 2 * offset, difference / deviation};
    }
    const double difference = variance - running_var;
    return {offset * offset, difference * difference, 2 * offset, 2 * difference};
}

}  // namespace zscgan

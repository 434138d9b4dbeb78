// Every kernel of the native core: raw pointers, sizes and a stream; no framework types.
//
// All tensors are dense and seen as [outer, channels, inner] in memory order. "Real" is float, or
// double where the data is float64: scales, zero points and statistics are Reals.
// `docs/developer/kernels.md` gives the formulas and the bytes that each kernel moves.
#pragma once

#include <cstdint>

namespace zscgan {

enum class DataType : int { float32 = 0, float16 = 1, bfloat16 = 2, float64 = 3 };

enum class Distance : int { gaussian_kl = 0, mse = 1, std_mse = 2, l2 = 3 };

enum class Activation : int { none = 0, relu = 1, relu6 = 2 };

struct Extent {
    int64_t outer;
    int64_t channels;
    int64_t inner;

    constexpr int64_t numel() const { return outer * channels * inner; }
};

struct QuantRange {
    double quant_min;
    double quant_max;
};

// One tensor of a fake quantization of activation(x + bias) with learned scales. A call takes many.
struct LearnedTensor {
    Extent extent;
    QuantRange range;
    double gradient_scale;  // factor of grad_scale and grad_zero_point
    Activation activation;
    int64_t quantizer_stride;  // from a channel's scale and zero point to the next ones: 1, or 0
    const void* x;             // [outer, channels, inner]
    const void* scale;         // Real [channels], or [1] where the stride is 0
    const void* zero_point;    // like scale, rounded and clamped before use
    const void* bias;          // Real [channels], or null
    void* y;                   // forward: [outer, channels, inner]
    const void* grad;          // backward: [outer, channels, inner]
    void* grad_x;              // backward: [outer, channels, inner]
    void* grad_scale;          // backward: Real [channels], also where the stride is 0
    void* grad_zero_point;     // backward: like grad_scale
    void* grad_bias;           // backward: Real [channels], or null where bias is
};

// The running state of a min/max observer.
struct ObserverState {
    float* running_min;  // [channels], +inf before the first observation
    float* running_max;  // [channels], -inf before the first observation
    float* scale;        // [channels]
    float* zero_point;   // [channels]
    double averaging_constant;
    QuantRange range;
    bool symmetric;
};

// A batch norm with stored statistics, then a residual and an activation.
struct FrozenBatchNorm {
    Extent extent;
    Activation activation;
    const void* x;           // [outer, channels, inner]
    const void* residual;    // [outer, channels, inner], or null
    const void* multiplier;  // Real [channels]
    const void* offset;      // Real [channels]
    const void* shift;       // Real [channels], like the next two null without statistics of x
    void* mean;              // Real [channels]
    void* variance;          // Real [channels]
    void* y;                 // [outer, channels, inner]
};

// Its gradient. The mask of the activation comes from y, or where y is null from x, which then had
// no residual.
struct FrozenBatchNormGradient {
    Extent extent;
    Activation activation;
    const void* grad;           // [outer, channels, inner]
    const void* x;              // [outer, channels, inner], or null where neither mean nor mask ask
    const void* y;              // [outer, channels, inner], or null
    const void* multiplier;     // Real [channels]
    const void* offset;         // Real [channels]
    const void* mean;           // Real [channels], like the next two null without statistics of x
    const void* grad_mean;      // Real [channels]
    const void* grad_variance;  // Real [channels]
    void* grad_x;               // [outer, channels, inner]
    void* grad_residual;        // [outer, channels, inner], or null
};

// A batch norm, whose statistics are part of the multiplier and the offset, then normal noise of a
// standard deviation, then a LeakyReLU.
struct NoisyBatchNorm {
    Extent extent;
    double noise;            // standard deviation
    double slope;            // of the LeakyReLU below zero
    const void* x;           // [outer, channels, inner]
    const void* multiplier;  // Real [channels]
    const void* offset;      // Real [channels]
    const int64_t* seed;     // [1], which with an element's place decides its noise
    void* y;                 // [outer, channels, inner]
    uint8_t* positive;       // one bit per element in memory order, (numel + 7) / 8 bytes
};

// Its gradient: that of what enters the LeakyReLU, d, and what follows from it.
struct NoisyBatchNormGradient {
    Extent extent;
    double slope;
    const void* grad;         // [outer, channels, inner]
    const void* x;            // [outer, channels, inner]
    const uint8_t* positive;  // as above
    const void* mean;         // sums: Real [channels]
    void* sum;                // sums: Real [channels], of d
    void* product_sum;        // sums: Real [channels], of d * (x - mean)
    const void* multiplier;   // backward: Real [channels], like the next two
    const void* constant;     // backward: grad_x = multiplier * d + constant + slope_of_x * x
    const void* slope_of_x;
    void* grad_x;  // backward: [outer, channels, inner]
};

// One batch-norm layer of a distance between batch and stored statistics.
template <class Real>
struct DistanceLayerOf {
    int64_t channels;
    double eps;
    const Real* mean;          // [channels]
    const Real* variance;      // [channels]
    const Real* running_mean;  // [channels]
    const Real* running_var;   // [channels]
    Real* grad_mean;           // [channels]
    Real* grad_variance;       // [channels]
};
using DistanceLayer = DistanceLayerOf<float>;

namespace cpu {

// Name of the instruction set that the kernels below use on this machine.
const char* instruction_set();

// Whether this machine and this build have `avx512`, `avx2` or `portable`.
bool has_instruction_set(const char* name);

// Restrict to `avx512`, `avx2` or `portable`; false where this machine or build lacks it.
bool select_instruction_set(const char* name);

// mask: one bit per element in memory order, (numel + 7) / 8 bytes, or null.
void fake_quantize(DataType, Extent, QuantRange, const void* x, const void* scale,
                   const void* zero_point, void* y, uint8_t* mask, int threads);

void fake_quantize_backward(DataType, int64_t numel, const void* grad, const uint8_t* mask,
                            void* grad_x, int threads);

void fake_quantize_learned(DataType, const LearnedTensor* tensors, int64_t count, int threads);

void fake_quantize_learned_backward(DataType, const LearnedTensor* tensors, int64_t count,
                                    int threads);

void observe(DataType, Extent, const void* x, const ObserverState&, int threads);

void batch_norm_statistics(DataType, Extent, const void* x, const void* shift, void* mean,
                           void* variance, int threads);

void batch_norm_statistics_backward(DataType, Extent, const void* x, const void* mean,
                                    const void* grad_mean, const void* grad_variance, void* grad_x,
                                    int threads);

void batch_norm_eval(DataType, const FrozenBatchNorm&, int threads);

void batch_norm_eval_backward(DataType, const FrozenBatchNormGradient&, int threads);

void noisy_batch_norm(DataType, const NoisyBatchNorm&, int threads);

void noisy_batch_norm_sums(DataType, const NoisyBatchNormGradient&, int threads);

void noisy_batch_norm_backward(DataType, const NoisyBatchNormGradient&, int threads);

// distance: Real [1], the mean over layers.
void batch_norm_distance(Distance, const DistanceLayerOf<float>* layers, int64_t count,
                         float* distance);
void batch_norm_distance(Distance, const DistanceLayerOf<double>* layers, int64_t count,
                         double* distance);

}  // namespace cpu

namespace cuda {

// What a launch needs beside its operands. `workspace` holds at least the bytes that the matching
// `*_workspace` function asks for, at an address that is a multiple of 16, with any content. It may
// be reused once the launch is queued. Launches without a `*_workspace` function use none.
struct Launch {
    void* stream;  // cudaStream_t
    void* workspace;
};

// observe, batch_norm_statistics, batch_norm_eval, noisy_batch_norm_sums
int64_t reduction_workspace(Extent);
int64_t learned_backward_workspace(const LearnedTensor* tensors, int64_t count);
int64_t distance_workspace();

// Each returns null, or CUDA's text for the error of the launch.
const char* fake_quantize(DataType, Extent, QuantRange, const void* x, const void* scale,
                          const void* zero_point, void* y, uint8_t* mask, Launch);

const char* fake_quantize_backward(DataType, int64_t numel, const void* grad, const uint8_t* mask,
                                   void* grad_x, Launch);

const char* fake_quantize_learned(DataType, const LearnedTensor* tensors, int64_t count, Launch);

const char* fake_quantize_learned_backward(DataType, const LearnedTensor* tensors, int64_t count,
                                           Launch);

const char* observe(DataType, Extent, const void* x, const ObserverState&, Launch);

const char* batch_norm_statistics(DataType, Extent, const void* x, const void* shift, void* mean,
                                  void* variance, Launch);

const char* batch_norm_statistics_backward(DataType, Extent, const void* x, const void* mean,
                                           const void* grad_mean, const void* grad_variance,
                                           void* grad_x, Launch);

const char* batch_norm_eval(DataType, const FrozenBatchNorm&, Launch);

const char* batch_norm_eval_backward(DataType, const FrozenBatchNormGradient&, Launch);

const char* noisy_batch_norm(DataType, const NoisyBatchNorm&, Launch);

const char* noisy_batch_norm_sums(DataType, const NoisyBatchNormGradient&, Launch);

const char* noisy_batch_norm_backward(DataType, const NoisyBatchNormGradient&, Launch);

const char* batch_norm_distance(Distance, const DistanceLayer* layers, int64_t count,
                                float* distance, Launch);

// Null, or why no device can be used.
const char* unavailable_reason();

// The device of this thread's launches.
int current_device();

}  // namespace cuda
}  // namespace zscgan

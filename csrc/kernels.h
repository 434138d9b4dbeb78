// Every kernel of the native core: raw pointers, sizes and a stream; no framework types.
//
// A kernel takes one struct that names its arguments in the order of the op's schema: operands,
// then settings; results follow. All tensors are dense and seen as [outer, channels, inner] in
// memory order. "Real" is float, or double where the data is float64: scales, zero points and
// statistics are Reals. `docs/developer/kernels.md` gives the formulas and the bytes that each
// kernel moves.
#pragma once

#include <cstdint>

namespace zscgan {

enum class DataType : int { float32 = 0, float16 = 1, bfloat16 = 2, float64 = 3 };

enum class Distance : int { gaussian_kl = 0, mse = 1, std_mse = 2, l2 = 3 };

enum class Activation : int { none = 0, relu = 1, relu6 = 2 };

struct Shape3 {
    int64_t outer;
    int64_t channels;
    int64_t inner;

    constexpr int64_t numel() const { return outer * channels * inner; }
};

struct QuantRange {
    double quant_min;
    double quant_max;
};

struct FakeQuantizeArguments {
    DataType type;
    Shape3 shape;
    const void* x;           // [outer, channels, inner]
    const void* scale;       // Real [channels]
    const void* zero_point;  // Real [channels], rounded before use
    QuantRange range;
    void* y;        // [outer, channels, inner]
    uint8_t* mask;  // one bit per element in memory order, (numel + 7) / 8 bytes, or null
};

struct FakeQuantizeBackwardArguments {
    DataType type;
    int64_t numel;
    const void* grad;     // [numel]
    const uint8_t* mask;  // as FakeQuantizeArguments writes it
    void* grad_x;         // [numel]
};

// One tensor of a fake quantization of activation(x + bias) with learned scales.
struct LsqTensor {
    Shape3 shape;
    const void* x;           // [outer, channels, inner]
    const void* scale;       // Real [channels], or [1] where the stride is 0
    const void* zero_point;  // like scale, rounded and clamped before use
    QuantRange range;
    int64_t quantizer_stride;  // from a channel's scale and zero point to the next ones: 1, or 0
    double gradient_scale;     // factor of grad_scale and grad_zero_point
    Activation activation;
    const void* bias;       // Real [channels], or null
    void* y;                // forward: [outer, channels, inner]
    const void* grad;       // backward: [outer, channels, inner]
    void* grad_x;           // backward: [outer, channels, inner]
    void* grad_scale;       // backward: Real [channels], also where the stride is 0
    void* grad_zero_point;  // backward: like grad_scale
    void* grad_bias;        // backward: Real [channels], or null where bias is
};

// Tensors of one type, quantized together.
struct LsqArguments {
    DataType type;
    const LsqTensor* tensors;
    int64_t count;
};

// The running state of a min/max observer.
struct ObserverState {
    float* running_min;  // [channels], +inf before the first observation
    float* running_max;  // [channels], -inf before the first observation
    float* scale;        // [channels], written
    float* zero_point;   // [channels], written
    double averaging_constant;
    QuantRange range;
    bool symmetric;
};

struct UpdateMinMaxArguments {
    DataType type;
    Shape3 shape;
    const void* x;  // [outer, channels, inner]
    ObserverState state;
};

struct BatchNormStatisticsArguments {
    DataType type;
    Shape3 shape;
    const void* x;          // [outer, channels, inner]
    const void* mean_hint;  // Real [channels], subtracted before summing
    void* mean;             // Real [channels]
    void* variance;         // Real [channels]
};

struct BatchNormStatisticsBackwardArguments {
    DataType type;
    Shape3 shape;
    const void* x;              // [outer, channels, inner]
    const void* mean;           // Real [channels]
    const void* grad_mean;      // Real [channels]
    const void* grad_variance;  // Real [channels]
    void* grad_x;               // [outer, channels, inner]
};

// A batch norm with stored statistics, then a residual and an activation.
struct FrozenBatchNormArguments {
    DataType type;
    Shape3 shape;
    const void* x;           // [outer, channels, inner]
    const void* multiplier;  // Real [channels]
    const void* offset;      // Real [channels]
    const void* mean_hint;   // Real [channels]; null, like mean and variance, without statistics
    const void* residual;    // [outer, channels, inner], or null
    Activation activation;
    void* y;         // [outer, channels, inner]
    void* mean;      // Real [channels]
    void* variance;  // Real [channels]
};

// Its gradient. The mask of the activation comes from y, or where y is null from x, which then had
// no residual.
struct FrozenBatchNormBackwardArguments {
    DataType type;
    Shape3 shape;
    const void* grad;           // [outer, channels, inner]
    const void* x;              // [outer, channels, inner], or null where neither mean nor mask ask
    const void* y;              // [outer, channels, inner], or null
    const void* multiplier;     // Real [channels]
    const void* offset;         // Real [channels]
    const void* mean;           // Real [channels], like the next two null without statistics of x
    const void* grad_mean;      // Real [channels]
    const void* grad_variance;  // Real [channels]
    Activation activation;
    void* grad_x;         // [outer, channels, inner]
    void* grad_residual;  // [outer, channels, inner], or null
};

// One batch-norm layer of a distance between batch and stored statistics.
template <class Real>
struct DistanceLayerOf {
    int64_t channels;
    const Real* mean;          // [channels]
    const Real* variance;      // [channels]
    const Real* running_mean;  // [channels]
    const Real* running_var;   // [channels]
    double eps;
    Real* grad_mean;      // [channels]
    Real* grad_variance;  // [channels]
};
using DistanceLayer = DistanceLayerOf<float>;

// The mean over layers of their distances.
template <class Real>
struct BatchNormDistanceArguments {
    const DistanceLayerOf<Real>* layers;
    int64_t count;
    Distance distance;
    Real* result;  // [1]
};

// Every kernel that both backends have under the same name, with the struct that it takes. The
// distance of batch norms stands apart: its struct depends on the data type.
#define ZSCGAN_FOR_EACH_KERNEL(KERNEL)                                           \
    KERNEL(fake_quantize, FakeQuantizeArguments)                                 \
    KERNEL(fake_quantize_backward, FakeQuantizeBackwardArguments)                \
    KERNEL(lsq_fake_quantize, LsqArguments)                                      \
    KERNEL(lsq_fake_quantize_backward, LsqArguments)                             \
    KERNEL(update_min_max, UpdateMinMaxArguments)                                \
    KERNEL(batch_norm_statistics, BatchNormStatisticsArguments)                  \
    KERNEL(batch_norm_statistics_backward, BatchNormStatisticsBackwardArguments) \
    KERNEL(frozen_batch_norm, FrozenBatchNormArguments)                          \
    KERNEL(frozen_batch_norm_backward, FrozenBatchNormBackwardArguments)

namespace cpu {

// Name of the instruction set that the kernels below use on this machine.
const char* instruction_set();

// Return true if this machine and this build have `avx512`, `avx2` or `portable`.
bool has_instruction_set(const char* name);

// Restrict to `avx512`, `avx2` or `portable`; false where this machine or build lacks it.
bool select_instruction_set(const char* name);

#define ZSCGAN_CPU_KERNEL(name, Arguments) void name(const Arguments&, int threads);
ZSCGAN_FOR_EACH_KERNEL(ZSCGAN_CPU_KERNEL)
#undef ZSCGAN_CPU_KERNEL
void batch_norm_distance(const BatchNormDistanceArguments<float>&);
void batch_norm_distance(const BatchNormDistanceArguments<double>&);

}  // namespace cpu

namespace cuda {

// What a launch needs beside its operands. `workspace` holds at least the bytes that the matching
// `*_workspace` function asks for, at an address that is a multiple of 16, with any content. It may
// be reused once the launch is queued. Launches without a `*_workspace` function use none.
struct Launch {
    void* stream;  // cudaStream_t
    void* workspace;
};

// For update_min_max, batch_norm_statistics and frozen_batch_norm.
int64_t reduction_workspace(Shape3);
int64_t lsq_backward_workspace(const LsqArguments&);
int64_t distance_workspace();

// Each returns null, or CUDA's text for the error of the launch.
#define ZSCGAN_CUDA_KERNEL(name, Arguments) const char* name(const Arguments&, Launch);
ZSCGAN_FOR_EACH_KERNEL(ZSCGAN_CUDA_KERNEL)
#undef ZSCGAN_CUDA_KERNEL
const char* batch_norm_distance(const BatchNormDistanceArguments<float>&, Launch);

// Null, or why no device can be used.
const char* unavailable_reason();

// The device of this thread's launches.
int current_device();

}  // namespace cuda
}  // namespace zscgan

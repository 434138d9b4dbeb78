// Fake quantization: quantize to integers and back, with straight-through and learned gradients.
#include "../quant_math.h"
#include "map_launcher.cuh"
#include "reduction_launcher.cuh"

namespace zscgan::cuda {
namespace {

Bounds<float> float_bounds(const QuantRange& range) {
    return {static_cast<float>(range.quant_min), static_cast<float>(range.quant_max)};
}

__device__ __forceinline__ Quantizer<float> read_quantizer(const float* scale,
                                                           const float* zero_point,
                                                           int64_t channel) {
    const float step = scale[channel];
    return {step, 1.0f / step, zero_point[channel]};
}

__device__ __forceinline__ Quantizer<float> read_learned_quantizer(const float* scale,
                                                                   const float* zero_point,
                                                                   int64_t channel,
                                                                   const Bounds<float>& bounds) {
    Quantizer<float> quantizer = read_quantizer(scale, zero_point, channel);
    quantizer.zero_point = clamp(round_to_even(quantizer.zero_point), bounds);
    return quantizer;
}

template <class T>
struct FakeQuantize {
    using Element = T;
    using Parameters = Quantizer<float>;
    const T* source;
    T* target;
    const float* scale;
    const float* zero_point;
    uint8_t* mask;
    Bounds<float> bounds;

    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        return read_quantizer(scale, zero_point, channel);
    }
    __device__ __forceinline__ float apply(float x, const Parameters& quantizer,
                                           bool& inside) const {
        const float integer = unclamped(x, quantizer);
        inside = is_inside(integer, bounds);
        return dequantize(clamp(integer, bounds), quantizer);
    }
    __device__ __forceinline__ void store_flags(int64_t octet, unsigned flags) const {
        if (mask) mask[octet] = static_cast<uint8_t>(flags);
    }
};

template <class T>
struct FakeQuantizeLearned {
    using Element = T;
    using Parameters = Quantizer<float>;
    const T* source;
    T* target;
    const float* scale;
    const float* zero_point;
    Bounds<float> bounds;

    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        return read_learned_quantizer(scale, zero_point, channel, bounds);
    }
    __device__ __forceinline__ float apply(float x, const Parameters& quantizer, bool&) const {
        return dequantize(clamp(unclamped(x, quantizer), bounds), quantizer);
    }
    __device__ __forceinline__ void store_flags(int64_t, unsigned) const {}
};

// grad_x, and per channel the sums of the gradients by scale and by zero point.
template <class T>
struct FakeQuantizeLearnedBackward : SumReduction {
    using Element = T;
    using Parameters = Quantizer<float>;
    static constexpr bool reads_second = true;
    static constexpr bool writes_target = true;
    const T* source;
    const T* second_source;  // the gradient of y
    T* target;
    const float* scale;
    const float* zero_point;
    float* grad_scale;
    float* grad_zero_point;
    Bounds<float> bounds;
    float gradient_scale;

    bool is_wide() const { return cuda::is_wide({source, second_source, target}); }

    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        return read_learned_quantizer(scale, zero_point, channel, bounds);
    }
    __device__ __forceinline__ float visit(float x, float grad, const Parameters& quantizer,
                                           Accumulator& sums) const {
        const float integer = unclamped(x, quantizer);
        const bool inside = is_inside(integer, bounds);
        const LearnedTerms<float> terms =
            learned_terms(x, grad, integer, inside, quantizer, bounds, 0.0f);
        sums.first += terms.scale;
        sums.second += terms.zero_point;
        return inside ? grad : 0.0f;
    }
    __device__ __forceinline__ void finish(int64_t channel, const Pair& sums) const {
        grad_scale[channel] = static_cast<float>(gradient_scale * sums.first);
        grad_zero_point[channel] = static_cast<float>(gradient_scale * sums.second);
    }
};

struct MaskedGradient {
    const uint8_t* mask;
    const void* gradient;
    void* target;
    Octets octets;
};

template <class T>
__global__ __launch_bounds__(block_threads) void mask_gradient(
    const __grid_constant__ MaskedGradient task) {
    constexpr int batch = octets_in_flight<T, 1>;
    const Octets& octets = task.octets;
    const auto* gradient = static_cast<const T*>(task.gradient);
    auto* target = static_cast<T*>(task.target);
    const int64_t begin = int64_t{blockIdx.x} * batch * block_threads + threadIdx.x;
    Octet<T> loaded[batch];
    unsigned mask[batch];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
        const int64_t octet = begin + i * block_threads;
        mask[i] = octet < octets.count ? task.mask[octet] : 0;
        loaded[i] = octets.is_wide(octet)
                        ? load_wide(gradient, octets.first(octet))
                        : load_narrow(gradient, octets.first(octet), octets.valid(octet));
    }
#pragma unroll
    for (int i = 0; i < batch; ++i) {
        const int64_t octet = begin + i * block_threads;
#pragma unroll
        for (int j = 0; j < octet_size; ++j) {
            if (!(mask[i] >> j & 1)) loaded[i].clear(j);
        }
        if (octets.is_wide(octet)) {
            store_wide(target, octets.first(octet), loaded[i]);
        } else {
            store_narrow(target, octets.first(octet), octets.valid(octet), loaded[i]);
        }
    }
}

template <class T>
FakeQuantizeLearned<T> learned_operation(const LearnedTensor& tensor) {
    return {static_cast<const T*>(tensor.x), static_cast<T*>(tensor.y),
            static_cast<const float*>(tensor.scale), static_cast<const float*>(tensor.zero_point),
            float_bounds(tensor.range)};
}

template <class T>
FakeQuantizeLearnedBackward<T> learned_backward_operation(const LearnedTensor& tensor) {
    return {{},
            static_cast<const T*>(tensor.x),
            static_cast<const T*>(tensor.grad),
            static_cast<T*>(tensor.grad_x),
            static_cast<const float*>(tensor.scale),
            static_cast<const float*>(tensor.zero_point),
            static_cast<float*>(tensor.grad_scale),
            static_cast<float*>(tensor.grad_zero_point),
            float_bounds(tensor.range),
            static_cast<float>(tensor.gradient_scale)};
}

}  // namespace

const char* fake_quantize(DataType type, Extent extent, QuantRange range, const void* x,
                          const void* scale, const void* zero_point, void* y, uint8_t* mask,
                          Launch target) {
    return dispatch(type, [&](auto element) -> const char* {
        using T = decltype(element);
        const FakeQuantize<T> operation{static_cast<const T*>(x),
                                        static_cast<T*>(y),
                                        static_cast<const float*>(scale),
                                        static_cast<const float*>(zero_point),
                                        mask,
                                        float_bounds(range)};
        MapLauncher<FakeQuantize<T>, 1, 1> launcher(target.stream);
        const char* error = launcher.add(operation, extent, mask != nullptr);
        return error ? error : launcher.flush();
    });
}

const char* fake_quantize_backward(DataType type, int64_t numel, const void* grad,
                                   const uint8_t* mask, void* grad_x, Launch target) {
    return dispatch(type, [&](auto element) -> const char* {
        using T = decltype(element);
        const Octets octets = cut_octets(numel, sizeof(T), {grad, grad_x}, true);
        const int64_t blocks = divide_up(octets.count, octets_in_flight<T, 1> * block_threads);
        return launch(mask_gradient<T>, blocks, {mask, grad, grad_x, octets}, target.stream);
    });
}

const char* fake_quantize_learned(DataType type, const LearnedTensor* tensors, int64_t count,
                                  Launch target) {
    return dispatch(type, [&](auto element) -> const char* {
        using Operation = FakeQuantizeLearned<decltype(element)>;
        MapLauncher<Operation, table_capacity<RowMapTask<Operation>>,
                    table_capacity<ColumnMapTask<Operation>>>
            launcher(target.stream);
        for (int64_t i = 0; i < count; ++i) {
            const Operation operation = learned_operation<decltype(element)>(tensors[i]);
            const char* error = launcher.add(operation, tensors[i].extent, false);
            if (error) return error;
        }
        return launcher.flush();
    });
}

const char* fake_quantize_learned_backward(DataType type, const LearnedTensor* tensors,
                                           int64_t count, Launch target) {
    return dispatch(type, [&](auto element) -> const char* {
        using Operation = FakeQuantizeLearnedBackward<decltype(element)>;
        ReductionLauncher<Operation, table_capacity<RowReductionTask<Operation>>,
                          table_capacity<ColumnReductionTask<Operation>>>
            launcher(target);
        for (int64_t i = 0; i < count; ++i) {
            const Operation operation = learned_backward_operation<decltype(element)>(tensors[i]);
            const char* error = launcher.add(operation, tensors[i].extent);
            if (error) return error;
        }
        return launcher.flush();
    });
}

int64_t learned_backward_workspace(const LearnedTensor* tensors, int64_t count) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < count; ++i) bytes += partial_bytes(tensors[i].extent);
    return workspace_bytes(bytes);
}

}  // namespace zscgan::cuda

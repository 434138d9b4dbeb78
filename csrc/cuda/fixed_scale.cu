// Fake quantization with straight-through gradients: quantize to integers and back.
#include "map_launcher.cuh"
#include "quantizer.cuh"

namespace zscgan::cuda {
namespace {

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
    __device__ __forceinline__ void store_flags(int64_t vector, unsigned flags) const {
        if (mask) mask[vector] = static_cast<uint8_t>(flags);
    }
};

struct MaskedGradient {
    const uint8_t* mask;
    const void* gradient;
    void* target;
    Vectors vectors;
};

template <class T>
__global__ __launch_bounds__(block_threads) void mask_gradient(
    const __grid_constant__ MaskedGradient task) {
    constexpr int batch = vectors_in_flight<T, 1>;
    const Vectors& vectors = task.vectors;
    const auto* gradient = static_cast<const T*>(task.gradient);
    auto* target = static_cast<T*>(task.target);
    const int64_t begin = int64_t{blockIdx.x} * batch * block_threads + threadIdx.x;
    Vector8<T> loaded[batch];
    unsigned mask[batch];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
        const int64_t vector = begin + i * block_threads;
        mask[i] = vector < vectors.count ? task.mask[vector] : 0;
        loaded[i] = vectors.is_wide(vector)
                        ? load_wide(gradient, vectors.first(vector))
                        : load_narrow(gradient, vectors.first(vector), vectors.valid(vector));
    }
#pragma unroll
    for (int i = 0; i < batch; ++i) {
        const int64_t vector = begin + i * block_threads;
#pragma unroll
        for (int j = 0; j < vector_size; ++j) {
            if (!(mask[i] >> j & 1)) loaded[i].clear(j);
        }
        if (vectors.is_wide(vector)) {
            store_wide(target, vectors.first(vector), loaded[i]);
        } else {
            store_narrow(target, vectors.first(vector), vectors.valid(vector), loaded[i]);
        }
    }
}

}  // namespace

const char* fake_quantize(const FakeQuantizeArguments& arguments, Launch target) {
    return dispatch(arguments.type, [&](auto element) -> const char* {
        using T = decltype(element);
        const FakeQuantize<T> operation{static_cast<const T*>(arguments.x),
                                        static_cast<T*>(arguments.y),
                                        static_cast<const float*>(arguments.scale),
                                        static_cast<const float*>(arguments.zero_point),
                                        arguments.mask,
                                        float_bounds(arguments.range)};
        MapLauncher<FakeQuantize<T>, 1, 1> launcher(target.stream);
        const char* error = launcher.add(operation, arguments.shape, arguments.mask != nullptr);
        return error ? error : launcher.flush();
    });
}

const char* fake_quantize_backward(const FakeQuantizeBackwardArguments& arguments, Launch target) {
    const auto [type, numel, grad, mask, grad_x] = arguments;
    return dispatch(
        type,
        [&, numel = numel, grad = grad, mask = mask, grad_x = grad_x](auto element) -> const char* {
            using T = decltype(element);
            const Vectors vectors = cut_vectors(numel, sizeof(T), {grad, grad_x}, true);
            const int64_t blocks =
                divide_up(vectors.count, vectors_in_flight<T, 1> * block_threads);
            return launch(mask_gradient<T>, blocks, {mask, grad, grad_x, vectors}, target.stream);
        });
}

}  // namespace zscgan::cuda

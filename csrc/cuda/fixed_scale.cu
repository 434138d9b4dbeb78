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
    __device__ __forceinline__ void store_flags(int64_t octet, unsigned flags) const {
        if (mask) mask[octet] = static_cast<uint8_t>(flags);
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

}  // namespace zscgan::cuda

// The arguments of the bindings: sizes, codes and addresses, checked and turned into what the
// kernels take.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace zscgan {

using Address = uintptr_t;
using Sizes = std::array<int64_t, 3>;

inline void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

// What any tensor's memory can hold: larger numbers would overflow when they count bytes.
constexpr int64_t most_elements = INT64_MAX / 16;

inline DataType data_type(int code) {
    require(code >= 0 && code <= 3, "data type code: accepted are 0 to 3");
    return static_cast<DataType>(code);
}

inline Extent extent_of(const Sizes& sizes) {
    int64_t product = 1;
    for (int64_t size : sizes) {
        require(size >= 0, "extent: sizes must not be negative");
        require(size == 0 || product <= most_elements / size, "extent: too large");
        product *= size == 0 ? 1 : size;
    }
    return {sizes[0], sizes[1], sizes[2]};
}

inline QuantRange range_of(double quant_min, double quant_max) {
    require(quant_min < quant_max, "quant_min: must be below quant_max");
    return {quant_min, quant_max};
}

template <class T = void>
T* pointer(Address address, int64_t count, const char* name) {
    if (address == 0 && count > 0)
        throw std::invalid_argument(std::string(name) + ": null pointer");
    return reinterpret_cast<T*>(address);
}

inline Activation activation_of(int code) {
    require(code >= 0 && code <= 2, "activation code: accepted are 0 to 2");
    return static_cast<Activation>(code);
}

// ---- lists of tensors ---------------------------------------------------------------------------

// (extent, quant_min, quant_max, gradient_scale, activation, quantizer_stride, x, scale,
// zero_point, bias, y, grad, grad_x, grad_scale, grad_zero_point, grad_bias)
using LearnedArguments =
    std::tuple<Sizes, double, double, double, int, int64_t, Address, Address, Address, Address,
               Address, Address, Address, Address, Address, Address>;

inline std::vector<LearnedTensor> learned_tensors(const std::vector<LearnedArguments>& list,
                                                  bool backward) {
    std::vector<LearnedTensor> tensors;
    tensors.reserve(list.size());
    for (const auto& [sizes, quant_min, quant_max, gradient_scale, activation, quantizer_stride, x,
                      scale, zero_point, bias, y, grad, grad_x, grad_scale, grad_zero_point,
                      grad_bias] : list) {
        const Extent extent = extent_of(sizes);
        const int64_t numel = extent.numel(), channels = extent.channels;
        require(quantizer_stride == 0 || quantizer_stride == 1,
                "quantizer_stride: accepted are 0 and 1");
        LearnedTensor tensor{};
        tensor.extent = extent;
        tensor.range = range_of(quant_min, quant_max);
        tensor.gradient_scale = gradient_scale;
        tensor.activation = activation_of(activation);
        tensor.quantizer_stride = quantizer_stride;
        tensor.x = pointer(x, numel, "x");
        tensor.scale = pointer(scale, channels, "scale");
        tensor.zero_point = pointer(zero_point, channels, "zero_point");
        tensor.bias = pointer(bias, 0, "bias");
        tensor.y = pointer(y, backward ? 0 : numel, "y");
        tensor.grad = pointer(grad, backward ? numel : 0, "grad");
        tensor.grad_x = pointer(grad_x, backward ? numel : 0, "grad_x");
        tensor.grad_scale = pointer(grad_scale, backward ? channels : 0, "grad_scale");
        tensor.grad_zero_point =
            pointer(grad_zero_point, backward ? channels : 0, "grad_zero_point");
        tensor.grad_bias = pointer(grad_bias, backward && bias ? channels : 0, "grad_bias");
        tensors.push_back(tensor);
    }
    return tensors;
}

// (channels, eps, mean, variance, running_mean, running_var, grad_mean, grad_variance)
using LayerArguments =
    std::tuple<int64_t, double, Address, Address, Address, Address, Address, Address>;

template <class Real>
std::vector<DistanceLayerOf<Real>> distance_layers(const std::vector<LayerArguments>& list) {
    require(!list.empty(), "layers: needed is at least one");
    std::vector<DistanceLayerOf<Real>> layers;
    layers.reserve(list.size());
    for (const auto& [channels, eps, mean, variance, running_mean, running_var, grad_mean,
                      grad_variance] : list) {
        require(channels > 0, "layers: channels must be positive");
        require(channels <= most_elements, "layers: too many channels");
        layers.push_back({channels, eps, pointer<const Real>(mean, 1, "mean"),
                          pointer<const Real>(variance, 1, "variance"),
                          pointer<const Real>(running_mean, 1, "running_mean"),
                          pointer<const Real>(running_var, 1, "running_var"),
                          pointer<Real>(grad_mean, 1, "grad_mean"),
                          pointer<Real>(grad_variance, 1, "grad_variance")});
    }
    return layers;
}

inline Distance distance_of(int code) {
    require(code >= 0 && code <= 3, "distance code: accepted are 0 to 3");
    return static_cast<Distance>(code);
}

// ---- frozen batch norm --------------------------------------------------------------------------

// Statistics are wanted where `mean` is given.
inline FrozenBatchNorm frozen_batch_norm(const Sizes& sizes, int activation, Address x,
                                         Address residual, Address multiplier, Address offset,
                                         Address shift, Address mean, Address variance, Address y) {
    const Extent e = extent_of(sizes);
    const int64_t counted = mean ? e.channels : 0;
    FrozenBatchNorm norm{};
    norm.extent = e;
    norm.activation = activation_of(activation);
    norm.x = pointer(x, e.numel(), "x");
    norm.residual = pointer(residual, 0, "residual");
    norm.multiplier = pointer(multiplier, e.channels, "multiplier");
    norm.offset = pointer(offset, e.channels, "offset");
    norm.shift = pointer(shift, counted, "shift");
    norm.mean = pointer(mean, counted, "mean");
    norm.variance = pointer(variance, counted, "variance");
    norm.y = pointer(y, e.numel(), "y");
    return norm;
}

inline FrozenBatchNormGradient frozen_batch_norm_gradient(const Sizes& sizes, int activation,
                                                          Address grad, Address x, Address y,
                                                          Address multiplier, Address offset,
                                                          Address mean, Address grad_mean,
                                                          Address grad_variance, Address grad_x,
                                                          Address grad_residual) {
    const Extent e = extent_of(sizes);
    const int64_t counted = mean ? e.channels : 0;
    FrozenBatchNormGradient norm{};
    norm.extent = e;
    norm.activation = activation_of(activation);
    norm.grad = pointer(grad, e.numel(), "grad");
    norm.x = pointer(x, mean || !y ? e.numel() : 0, "x");
    norm.y = pointer(y, 0, "y");
    norm.multiplier = pointer(multiplier, e.channels, "multiplier");
    norm.offset = pointer(offset, e.channels, "offset");
    norm.mean = pointer(mean, counted, "mean");
    norm.grad_mean = pointer(grad_mean, counted, "grad_mean");
    norm.grad_variance = pointer(grad_variance, counted, "grad_variance");
    norm.grad_x = pointer(grad_x, e.numel(), "grad_x");
    norm.grad_residual = pointer(grad_residual, 0, "grad_residual");
    return norm;
}

// ---- noisy batch norm ---------------------------------------------------------------------------

inline NoisyBatchNorm noisy_batch_norm(const Sizes& sizes, double noise, double slope, Address x,
                                       Address multiplier, Address offset, Address seed, Address y,
                                       Address positive) {
    const Extent e = extent_of(sizes);
    NoisyBatchNorm norm{};
    norm.extent = e;
    norm.noise = noise;
    norm.slope = slope;
    norm.x = pointer(x, e.numel(), "x");
    norm.multiplier = pointer(multiplier, e.channels, "multiplier");
    norm.offset = pointer(offset, e.channels, "offset");
    norm.seed = pointer<const int64_t>(seed, 1, "seed");
    norm.y = pointer(y, e.numel(), "y");
    norm.positive = pointer<uint8_t>(positive, e.numel(), "positive");
    return norm;
}

inline NoisyBatchNormGradient noisy_batch_norm_gradient(const Sizes& sizes, double slope,
                                                        Address grad, Address x, Address positive) {
    const Extent e = extent_of(sizes);
    NoisyBatchNormGradient norm{};
    norm.extent = e;
    norm.slope = slope;
    norm.grad = pointer(grad, e.numel(), "grad");
    norm.x = pointer(x, e.numel(), "x");
    norm.positive = pointer<const uint8_t>(positive, e.numel(), "positive");
    return norm;
}

}  // namespace zscgan

// What the bindings are given, checked and turned into the structs that kernels take. The order of
// arguments is that of the op's schema: operands, then settings; results follow.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
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

inline DataType data_type_of(int code) {
    require(code >= 0 && code <= 3, "data_type: expected a code from 0 to 3");
    return static_cast<DataType>(code);
}

inline Activation activation_of(int code) {
    require(code >= 0 && code <= 2, "activation: expected a code from 0 to 2");
    return static_cast<Activation>(code);
}

inline Distance distance_of(int code) {
    require(code >= 0 && code <= 3, "distance: expected a code from 0 to 3");
    return static_cast<Distance>(code);
}

inline Shape3 shape_of(const Sizes& sizes) {
    int64_t product = 1;
    for (int64_t size : sizes) {
        require(size >= 0, "shape: expected sizes from 0 on");
        require(size == 0 || product <= most_elements / size, "shape: too large");
        product *= size == 0 ? 1 : size;
    }
    return {sizes[0], sizes[1], sizes[2]};
}

inline QuantRange range_of(double quant_min, double quant_max) {
    require(quant_min < quant_max, "quant_min: expected a value below quant_max");
    return {quant_min, quant_max};
}

inline void require_memory(const void* memory, int64_t count, const char* name) {
    if (!memory && count > 0) throw std::invalid_argument(std::string(name) + ": null pointer");
}

// Memory that may be absent.
template <class T = void>
T* optional_memory(Address address) {
    return reinterpret_cast<T*>(address);
}

// Memory of `count` elements: null only where there are none.
template <class T = void>
T* memory(Address address, int64_t count, const char* name) {
    T* const found = optional_memory<T>(address);
    require_memory(found, count, name);
    return found;
}

// ---- tensors with learned scales ----------------------------------------------------------------

// Checks all that both directions need; `lsq_arguments` checks what one of them writes.
inline LsqTensor lsq_tensor(const Sizes& sizes, Address x, Address scale, Address zero_point,
                            double quant_min, double quant_max, int64_t quantizer_stride,
                            double gradient_scale, int activation, Address bias, Address y,
                            Address grad, Address grad_x, Address grad_scale,
                            Address grad_zero_point, Address grad_bias) {
    require(quantizer_stride == 0 || quantizer_stride == 1, "quantizer_stride: expected 0 or 1");
    LsqTensor tensor{};
    tensor.shape = shape_of(sizes);
    tensor.x = memory(x, tensor.shape.numel(), "x");
    tensor.scale = memory(scale, tensor.shape.channels, "scale");
    tensor.zero_point = memory(zero_point, tensor.shape.channels, "zero_point");
    tensor.range = range_of(quant_min, quant_max);
    tensor.quantizer_stride = quantizer_stride;
    tensor.gradient_scale = gradient_scale;
    tensor.activation = activation_of(activation);
    tensor.bias = optional_memory(bias);
    tensor.y = optional_memory(y);
    tensor.grad = optional_memory(grad);
    tensor.grad_x = optional_memory(grad_x);
    tensor.grad_scale = optional_memory(grad_scale);
    tensor.grad_zero_point = optional_memory(grad_zero_point);
    tensor.grad_bias = optional_memory(grad_bias);
    return tensor;
}

// The tensors must outlive the result.
inline LsqArguments lsq_arguments(int data_type, const std::vector<LsqTensor>& tensors) {
    return {data_type_of(data_type), tensors.data(), static_cast<int64_t>(tensors.size())};
}

inline LsqArguments lsq_forward_arguments(int data_type, const std::vector<LsqTensor>& tensors) {
    for (const LsqTensor& tensor : tensors) require_memory(tensor.y, tensor.shape.numel(), "y");
    return lsq_arguments(data_type, tensors);
}

inline LsqArguments lsq_backward_arguments(int data_type, const std::vector<LsqTensor>& tensors) {
    for (const LsqTensor& tensor : tensors) {
        const int64_t numel = tensor.shape.numel(), channels = tensor.shape.channels;
        require_memory(tensor.grad, numel, "grad");
        require_memory(tensor.grad_x, numel, "grad_x");
        require_memory(tensor.grad_scale, channels, "grad_scale");
        require_memory(tensor.grad_zero_point, channels, "grad_zero_point");
        require_memory(tensor.grad_bias, tensor.bias ? channels : 0, "grad_bias");
    }
    return lsq_arguments(data_type, tensors);
}

// ---- batch norm ---------------------------------------------------------------------------------

// Statistics are wanted where `mean` is given.
inline FrozenBatchNormArguments frozen_batch_norm_arguments(int data_type, const Sizes& sizes,
                                                            Address x, Address multiplier,
                                                            Address offset, Address mean_hint,
                                                            Address residual, int activation,
                                                            Address y, Address mean,
                                                            Address variance) {
    FrozenBatchNormArguments norm{};
    norm.type = data_type_of(data_type);
    norm.shape = shape_of(sizes);
    const int64_t numel = norm.shape.numel(), channels = norm.shape.channels;
    const int64_t counted = mean ? channels : 0;
    norm.x = memory(x, numel, "x");
    norm.multiplier = memory(multiplier, channels, "multiplier");
    norm.offset = memory(offset, channels, "offset");
    norm.mean_hint = memory(mean_hint, counted, "mean_hint");
    norm.residual = optional_memory(residual);
    norm.activation = activation_of(activation);
    norm.y = memory(y, numel, "y");
    norm.mean = optional_memory(mean);
    norm.variance = memory(variance, counted, "variance");
    return norm;
}

inline FrozenBatchNormBackwardArguments frozen_batch_norm_backward_arguments(
    int data_type, const Sizes& sizes, Address grad, Address x, Address y, Address multiplier,
    Address offset, Address mean, Address grad_mean, Address grad_variance, int activation,
    Address grad_x, Address grad_residual) {
    FrozenBatchNormBackwardArguments norm{};
    norm.type = data_type_of(data_type);
    norm.shape = shape_of(sizes);
    const int64_t numel = norm.shape.numel(), channels = norm.shape.channels;
    const int64_t counted = mean ? channels : 0;
    norm.grad = memory(grad, numel, "grad");
    norm.x = memory(x, mean || !y ? numel : 0, "x");
    norm.y = optional_memory(y);
    norm.multiplier = memory(multiplier, channels, "multiplier");
    norm.offset = memory(offset, channels, "offset");
    norm.mean = optional_memory(mean);
    norm.grad_mean = memory(grad_mean, counted, "grad_mean");
    norm.grad_variance = memory(grad_variance, counted, "grad_variance");
    norm.activation = activation_of(activation);
    norm.grad_x = memory(grad_x, numel, "grad_x");
    norm.grad_residual = optional_memory(grad_residual);
    return norm;
}

inline NoisyBatchNormArguments noisy_batch_norm_arguments(int data_type, const Sizes& sizes,
                                                          Address x, Address multiplier,
                                                          Address offset, Address seed,
                                                          double noise, double negative_slope,
                                                          Address y, Address positive) {
    NoisyBatchNormArguments norm{};
    norm.type = data_type_of(data_type);
    norm.shape = shape_of(sizes);
    const int64_t numel = norm.shape.numel(), channels = norm.shape.channels;
    norm.x = memory(x, numel, "x");
    norm.multiplier = memory(multiplier, channels, "multiplier");
    norm.offset = memory(offset, channels, "offset");
    norm.seed = memory<const int64_t>(seed, 1, "seed");
    norm.noise = noise;
    norm.negative_slope = negative_slope;
    norm.y = memory(y, numel, "y");
    norm.positive = memory<uint8_t>(positive, numel, "positive");
    return norm;
}

// What both passes over the gradient read.
template <class Arguments>
Arguments leaky_gradient_arguments(int data_type, const Sizes& sizes, Address grad, Address x,
                                   Address positive, double negative_slope) {
    Arguments norm{};
    norm.type = data_type_of(data_type);
    norm.shape = shape_of(sizes);
    const int64_t numel = norm.shape.numel();
    norm.grad = memory(grad, numel, "grad");
    norm.x = memory(x, numel, "x");
    norm.positive = memory<const uint8_t>(positive, numel, "positive");
    norm.negative_slope = negative_slope;
    return norm;
}

inline NoisyBatchNormSumsArguments noisy_batch_norm_sums_arguments(
    int data_type, const Sizes& sizes, Address grad, Address x, Address positive, Address mean,
    double negative_slope, Address sum, Address product_sum) {
    auto norm = leaky_gradient_arguments<NoisyBatchNormSumsArguments>(data_type, sizes, grad, x,
                                                                      positive, negative_slope);
    const int64_t channels = norm.shape.channels;
    norm.mean = memory(mean, channels, "mean");
    norm.sum = memory(sum, channels, "sum");
    norm.product_sum = memory(product_sum, channels, "product_sum");
    return norm;
}

inline NoisyBatchNormBackwardArguments noisy_batch_norm_backward_arguments(
    int data_type, const Sizes& sizes, Address grad, Address x, Address positive,
    Address multiplier, Address constant, Address slope, double negative_slope, Address grad_x) {
    auto norm = leaky_gradient_arguments<NoisyBatchNormBackwardArguments>(data_type, sizes, grad, x,
                                                                          positive, negative_slope);
    const int64_t numel = norm.shape.numel(), channels = norm.shape.channels;
    norm.multiplier = memory(multiplier, channels, "multiplier");
    norm.constant = memory(constant, channels, "constant");
    norm.slope = memory(slope, channels, "slope");
    norm.grad_x = memory(grad_x, numel, "grad_x");
    return norm;
}

// One layer of a distance; its addresses are of Reals, whose type the call tells.
struct BatchNormLayer {
    int64_t channels;
    Address mean;
    Address variance;
    Address running_mean;
    Address running_var;
    double eps;
    Address grad_mean;
    Address grad_variance;
};

inline BatchNormLayer batch_norm_layer(int64_t channels, Address mean, Address variance,
                                       Address running_mean, Address running_var, double eps,
                                       Address grad_mean, Address grad_variance) {
    require(channels > 0 && channels <= most_elements, "channels: not positive or too large");
    memory(mean, channels, "mean");
    memory(variance, channels, "variance");
    memory(running_mean, channels, "running_mean");
    memory(running_var, channels, "running_var");
    memory(grad_mean, channels, "grad_mean");
    memory(grad_variance, channels, "grad_variance");
    return {channels, mean, variance, running_mean, running_var, eps, grad_mean, grad_variance};
}

template <class Real>
std::vector<DistanceLayerOf<Real>> distance_layers(const std::vector<BatchNormLayer>& list) {
    require(!list.empty(), "layers: expected at least one");
    std::vector<DistanceLayerOf<Real>> layers;
    layers.reserve(list.size());
    for (const BatchNormLayer& layer : list) {
        layers.push_back({layer.channels, optional_memory<const Real>(layer.mean),
                          optional_memory<const Real>(layer.variance),
                          optional_memory<const Real>(layer.running_mean),
                          optional_memory<const Real>(layer.running_var), layer.eps,
                          optional_memory<Real>(layer.grad_mean),
                          optional_memory<Real>(layer.grad_variance)});
    }
    return layers;
}

}  // namespace zscgan

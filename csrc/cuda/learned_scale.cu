// Fake quantization with learned scales and zero points, after an activation and a bias.
#include <type_traits>

#include "map_launcher.cuh"
#include "quantizer.cuh"
#include "reduction_launcher.cuh"

namespace zscgan::cuda {
namespace {

// What a learned quantization quantizes: x, activation(x) or activation(x + bias).
struct Plain {
    using Parameters = Quantizer<float>;
    using Clamp = NoActivation;
    using Sums = SumReduction;
};
struct Activated {
    using Parameters = Quantizer<float>;
    using Clamp = ActivationBounds<float>;
    using Sums = SumReduction;
};
struct Biased {
    using Parameters = BiasedQuantizer<float>;
    using Clamp = ActivationBounds<float>;
    using Sums = SumReductionOf<TripleOf>;
};

template <class Input>
bool is_input_of(const LsqTensor& tensor) {
    if (tensor.bias) return std::is_same_v<Input, Biased>;
    const bool is_plain = tensor.activation == Activation::none;
    return std::is_same_v<Input, Plain> ? is_plain : std::is_same_v<Input, Activated> && !is_plain;
}

// What both passes of a learned quantization know of a tensor.
template <class Input>
struct LsqQuantizer {
    const float* scale;
    const float* zero_point;
    const float* bias;
    int64_t stride;
    Bounds<float> bounds;
    typename Input::Clamp activation;

    __device__ __forceinline__ typename Input::Parameters parameters(int64_t channel) const {
        Quantizer<float> quantizer = read_quantizer(scale, zero_point, channel * stride);
        quantizer.zero_point = clamp(quantizer.zero_point, bounds);
        if constexpr (std::is_same_v<Input, Biased>) {
            return {quantizer, bias[channel]};
        } else {
            return quantizer;
        }
    }
};

template <class Input>
LsqQuantizer<Input> lsq_quantizer(const LsqTensor& tensor) {
    LsqQuantizer<Input> quantizer{static_cast<const float*>(tensor.scale),
                                  static_cast<const float*>(tensor.zero_point),
                                  static_cast<const float*>(tensor.bias),
                                  tensor.quantizer_stride,
                                  float_bounds(tensor.range),
                                  {}};
    if constexpr (!std::is_same_v<Input, Plain>) {
        quantizer.activation = activation_bounds<float>(tensor.activation);
    }
    return quantizer;
}

template <class T, class Input>
struct LsqFakeQuantize {
    using Element = T;
    using Parameters = typename Input::Parameters;
    const T* source;
    T* target;
    LsqQuantizer<Input> quantizer;

    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        return quantizer.parameters(channel);
    }
    __device__ __forceinline__ float apply(float x, const Parameters& parameters, bool&) const {
        const float value = activate(add_bias(x, parameters), quantizer.activation);
        return dequantize(clamp(unclamped(value, parameters), quantizer.bounds), parameters);
    }
    __device__ __forceinline__ void store_flags(int64_t, unsigned) const {}
};

// grad_x, and per channel the sums of the gradients by scale and by zero point. A third sum, that
// of grad_x, is the gradient by bias.
template <class T, class Input>
struct LsqFakeQuantizeBackward : Input::Sums {
    using Element = T;
    using Parameters = typename Input::Parameters;
    static constexpr bool reads_second = true;
    static constexpr bool writes_target = true;
    const T* source;
    const T* second_source;  // the gradient of y
    T* target;
    LsqQuantizer<Input> quantizer;
    float* grad_scale;
    float* grad_zero_point;
    float* grad_bias;
    float gradient_scale;

    bool is_wide() const { return cuda::is_wide({source, second_source, target}); }

    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        return quantizer.parameters(channel);
    }
    template <class Accumulator>
    __device__ __forceinline__ float visit(float x, float grad, const Parameters& parameters,
                                           Accumulator& sums) const {
        const float before = add_bias(x, parameters);
        const float value = activate(before, quantizer.activation);
        const float integer = unclamped(value, parameters);
        const bool inside = is_inside(integer, quantizer.bounds);
        const float passed =
            mask_gradient(inside ? grad : 0.0f, before, quantizer.activation, 0.0f);
        const LsqTerms<float> terms =
            lsq_terms(value, grad, integer, inside, parameters, quantizer.bounds, 0.0f);
        sums.first += terms.scale;
        sums.second += terms.zero_point;
        if constexpr (std::is_same_v<Input, Biased>) sums.third += passed;
        return passed;
    }
    template <class Sums>
    __device__ __forceinline__ void finish(int64_t channel, const Sums& sums) const {
        grad_scale[channel] = static_cast<float>(gradient_scale * sums.first);
        const double factor = double{gradient_scale} * quantizer.scale[channel * quantizer.stride];
        grad_zero_point[channel] = static_cast<float>(factor * sums.second);
        if constexpr (std::is_same_v<Input, Biased>)
            grad_bias[channel] = static_cast<float>(sums.third);
    }
};

template <class T, class Input>
const char* launch_lsq(const LsqArguments& arguments, const Launch& target) {
    using Operation = LsqFakeQuantize<T, Input>;
    MapLauncher<Operation, table_capacity<RowMapTask<Operation>>,
                table_capacity<ColumnMapTask<Operation>>>
        launcher(target.stream);
    for (int64_t i = 0; i < arguments.count; ++i) {
        const LsqTensor& tensor = arguments.tensors[i];
        if (!is_input_of<Input>(tensor)) continue;
        const Operation operation{static_cast<const T*>(tensor.x), static_cast<T*>(tensor.y),
                                  lsq_quantizer<Input>(tensor)};
        const char* error = launcher.add(operation, tensor.shape, false);
        if (error) return error;
    }
    return launcher.flush();
}

template <class T, class Input>
const char* launch_lsq_backward(const LsqArguments& arguments, const Launch& target) {
    using Operation = LsqFakeQuantizeBackward<T, Input>;
    ReductionLauncher<Operation, table_capacity<RowReductionTask<Operation>>,
                      table_capacity<ColumnReductionTask<Operation>>>
        launcher(target);
    for (int64_t i = 0; i < arguments.count; ++i) {
        const LsqTensor& tensor = arguments.tensors[i];
        if (!is_input_of<Input>(tensor)) continue;
        const Operation operation{{},
                                  static_cast<const T*>(tensor.x),
                                  static_cast<const T*>(tensor.grad),
                                  static_cast<T*>(tensor.grad_x),
                                  lsq_quantizer<Input>(tensor),
                                  static_cast<float*>(tensor.grad_scale),
                                  static_cast<float*>(tensor.grad_zero_point),
                                  static_cast<float*>(tensor.grad_bias),
                                  static_cast<float>(tensor.gradient_scale)};
        const char* error = launcher.add(operation, tensor.shape);
        if (error) return error;
    }
    return launcher.flush();
}

}  // namespace

const char* lsq_fake_quantize(const LsqArguments& arguments, Launch target) {
    return dispatch(arguments.type, [&](auto element) -> const char* {
        using T = decltype(element);
        const char* error = launch_lsq<T, Plain>(arguments, target);
        if (!error) error = launch_lsq<T, Activated>(arguments, target);
        return error ? error : launch_lsq<T, Biased>(arguments, target);
    });
}

const char* lsq_fake_quantize_backward(const LsqArguments& arguments, Launch target) {
    return dispatch(arguments.type, [&](auto element) -> const char* {
        using T = decltype(element);
        const char* error = launch_lsq_backward<T, Plain>(arguments, target);
        if (!error) error = launch_lsq_backward<T, Activated>(arguments, target);
        return error ? error : launch_lsq_backward<T, Biased>(arguments, target);
    });
}

int64_t lsq_backward_workspace(const LsqArguments& arguments) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < arguments.count; ++i) {
        const LsqTensor& tensor = arguments.tensors[i];
        bytes +=
            tensor.bias ? partial_bytes<Triple>(tensor.shape) : partial_bytes<Pair>(tensor.shape);
    }
    return workspace_bytes(bytes);
}

}  // namespace zscgan::cuda

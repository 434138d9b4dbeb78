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
bool is_input_of(const LearnedTensor& tensor) {
    if (tensor.bias) return std::is_same_v<Input, Biased>;
    const bool is_plain = tensor.activation == Activation::none;
    return std::is_same_v<Input, Plain> ? is_plain : std::is_same_v<Input, Activated> && !is_plain;
}

// What both passes of a learned quantization know of a tensor.
template <class Input>
struct LearnedQuantizer {
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
LearnedQuantizer<Input> learned_quantizer(const LearnedTensor& tensor) {
    LearnedQuantizer<Input> quantizer{static_cast<const float*>(tensor.scale),
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
struct FakeQuantizeLearned {
    using Element = T;
    using Parameters = typename Input::Parameters;
    const T* source;
    T* target;
    LearnedQuantizer<Input> quantizer;

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
struct FakeQuantizeLearnedBackward : Input::Sums {
    using Element = T;
    using Parameters = typename Input::Parameters;
    static constexpr bool reads_second = true;
    static constexpr bool writes_target = true;
    const T* source;
    const T* second_source;  // the gradient of y
    T* target;
    LearnedQuantizer<Input> quantizer;
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
        const LearnedTerms<float> terms =
            learned_terms(value, grad, integer, inside, parameters, quantizer.bounds, 0.0f);
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
const char* launch_learned(const LearnedTensor* tensors, int64_t count, const Launch& target) {
    using Operation = FakeQuantizeLearned<T, Input>;
    MapLauncher<Operation, table_capacity<RowMapTask<Operation>>,
                table_capacity<ColumnMapTask<Operation>>>
        launcher(target.stream);
    for (int64_t i = 0; i < count; ++i) {
        const LearnedTensor& tensor = tensors[i];
        if (!is_input_of<Input>(tensor)) continue;
        const Operation operation{static_cast<const T*>(tensor.x), static_cast<T*>(tensor.y),
                                  learned_quantizer<Input>(tensor)};
        const char* error = launcher.add(operation, tensor.extent, false);
        if (error) return error;
    }
    return launcher.flush();
}

template <class T, class Input>
const char* launch_learned_backward(const LearnedTensor* tensors, int64_t count,
                                    const Launch& target) {
    using Operation = FakeQuantizeLearnedBackward<T, Input>;
    ReductionLauncher<Operation, table_capacity<RowReductionTask<Operation>>,
                      table_capacity<ColumnReductionTask<Operation>>>
        launcher(target);
    for (int64_t i = 0; i < count; ++i) {
        const LearnedTensor& tensor = tensors[i];
        if (!is_input_of<Input>(tensor)) continue;
        const Operation operation{{},
                                  static_cast<const T*>(tensor.x),
                                  static_cast<const T*>(tensor.grad),
                                  static_cast<T*>(tensor.grad_x),
                                  learned_quantizer<Input>(tensor),
                                  static_cast<float*>(tensor.grad_scale),
                                  static_cast<float*>(tensor.grad_zero_point),
                                  static_cast<float*>(tensor.grad_bias),
                                  static_cast<float>(tensor.gradient_scale)};
        const char* error = launcher.add(operation, tensor.extent);
        if (error) return error;
    }
    return launcher.flush();
}

}  // namespace

const char* fake_quantize_learned(DataType type, const LearnedTensor* tensors, int64_t count,
                                  Launch target) {
    return dispatch(type, [&](auto element) -> const char* {
        using T = decltype(element);
        const char* error = launch_learned<T, Plain>(tensors, count, target);
        if (!error) error = launch_learned<T, Activated>(tensors, count, target);
        return error ? error : launch_learned<T, Biased>(tensors, count, target);
    });
}

const char* fake_quantize_learned_backward(DataType type, const LearnedTensor* tensors,
                                           int64_t count, Launch target) {
    return dispatch(type, [&](auto element) -> const char* {
        using T = decltype(element);
        const char* error = launch_learned_backward<T, Plain>(tensors, count, target);
        if (!error) error = launch_learned_backward<T, Activated>(tensors, count, target);
        return error ? error : launch_learned_backward<T, Biased>(tensors, count, target);
    });
}

int64_t learned_backward_workspace(const LearnedTensor* tensors, int64_t count) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < count; ++i) {
        bytes += tensors[i].bias ? partial_bytes<Triple>(tensors[i].extent)
                                 : partial_bytes<Pair>(tensors[i].extent);
    }
    return workspace_bytes(bytes);
}

}  // namespace zscgan::cuda

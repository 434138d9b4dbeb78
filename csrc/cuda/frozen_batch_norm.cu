// Batch norm with stored statistics, a residual and an activation; the statistics of its input on
// the way, and the gradient of all of them.
#include <type_traits>

#include "../quant_math.h"
#include "map_launcher.cuh"
#include "reduction_launcher.cuh"
#include "statistics.cuh"

namespace zscgan::cuda {
namespace {

// What a kernel is compiled for, as types so that they show in its name.
struct WithResidual : std::true_type {};
struct WithoutResidual : std::false_type {};
struct WithStatistics : std::true_type {};
struct WithoutStatistics : std::false_type {};
struct MaskOfY : std::true_type {};
struct MaskOfX : std::false_type {};

// The stored statistics as multiplier and offset, and the activation.
struct Normalization {
    struct Parameters {
        float multiplier;
        float offset;
    };
    const float* multiplier;
    const float* offset;
    ActivationBounds<float> bounds;

    __device__ __forceinline__ Parameters at(int64_t channel) const {
        return {multiplier[channel], offset[channel]};
    }
    __device__ __forceinline__ float apply(float x, const Parameters& p) const {
        return activate(normalize(x, p.multiplier, p.offset), bounds);
    }
    __device__ __forceinline__ float apply(float x, float residual, const Parameters& p) const {
        return activate(normalize(x, p.multiplier, p.offset) + residual, bounds);
    }
};

template <class T>
struct FrozenBatchNorm {
    using Element = T;
    using Parameters = Normalization::Parameters;
    const T* source;
    T* target;
    Normalization normalization;

    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        return normalization.at(channel);
    }
    __device__ __forceinline__ float apply(float x, const Parameters& parameters, bool&) const {
        return normalization.apply(x, parameters);
    }
    __device__ __forceinline__ void store_flags(int64_t, unsigned) const {}
};

template <class T>
struct FrozenBatchNormResidual {
    using Element = T;
    using Parameters = Normalization::Parameters;
    static constexpr int more_source_count = 1;
    const T* source;
    const T* more_sources[more_source_count];  // the residual
    T* target;
    T* second_target;
    Normalization normalization;

    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        return normalization.at(channel);
    }
    __device__ __forceinline__ void apply(float (&elements)[2],
                                          const Parameters& parameters) const {
        elements[0] = normalization.apply(elements[0], elements[1], parameters);
    }
};

// y, and per channel the statistics of x.
template <class T, class Residual>
struct FrozenBatchNormWithStats : StatisticsReduction {
    using Element = T;
    struct Parameters {
        Normalization::Parameters normalization;
        float mean_hint;
    };
    static constexpr bool reads_second = Residual::value;
    static constexpr bool writes_target = true;
    const T* source;
    const T* second_source;  // the residual
    T* target;
    Normalization normalization;

    bool is_wide() const {
        return cuda::is_wide({source, reads_second ? second_source : source, target});
    }
    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        return {normalization.at(channel), mean_hint[channel]};
    }
    __device__ __forceinline__ float visit(float x, float residual, const Parameters& parameters,
                                           Accumulator& sums) const {
        add(x, parameters.mean_hint, sums);
        if constexpr (reads_second) {
            return normalization.apply(x, residual, parameters.normalization);
        }
        return normalization.apply(x, parameters.normalization);
    }
    static __device__ __forceinline__ void visit_wide(float x, const Parameters& parameters,
                                                      Pair& sums) {
        add(x, parameters.mean_hint, sums);
    }
};

// grad_x and grad_residual. The sources after the gradient of y are x, if any use is made of it,
// and y, if it gives the mask.
template <class T, class Mask, class Statistics>
struct FrozenBatchNormBackward {
    using Element = T;
    struct Parameters {
        Normalization::Parameters normalization;
        StatisticsGradient::Coefficients statistics;
    };
    static constexpr bool reads_x = Statistics::value || !Mask::value;
    static constexpr int more_source_count = (reads_x ? 1 : 0) + (Mask::value ? 1 : 0);
    const T* source;
    const T* more_sources[more_source_count];
    T* target;
    T* second_target;
    Normalization normalization;
    StatisticsGradient statistics;

    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        Parameters result = {normalization.at(channel), {0.0f, 0.0f}};
        if constexpr (Statistics::value) result.statistics = statistics.coefficients(channel);
        return result;
    }
    __device__ __forceinline__ void apply(float (&elements)[1 + more_source_count],
                                          const Parameters& p) const {
        const float x = elements[1];
        const float activated =
            Mask::value ? elements[more_source_count]
                        : normalize(x, p.normalization.multiplier, p.normalization.offset);
        const float masked = mask_gradient(elements[0], activated, normalization.bounds, 0.0f);
        elements[0] = masked * p.normalization.multiplier;
        if constexpr (Statistics::value) elements[0] += p.statistics.at(x);
        elements[1] = masked;
    }
};

Normalization normalization_of(const void* multiplier, const void* offset, Activation activation) {
    return {static_cast<const float*>(multiplier), static_cast<const float*>(offset),
            activation_bounds<float>(activation)};
}

template <class Operation>
const char* launch_map(const Operation& operation, const Shape3& shape, const Launch& target) {
    MapLauncher<Operation, 1, 1> launcher(target.stream);
    const char* error = launcher.add(operation, shape, false);
    return error ? error : launcher.flush();
}

template <class T>
const char* launch_forward(const FrozenBatchNormArguments& norm, const Launch& target) {
    const auto* x = static_cast<const T*>(norm.x);
    const auto* residual = static_cast<const T*>(norm.residual);
    auto* y = static_cast<T*>(norm.y);
    const Normalization normalization =
        normalization_of(norm.multiplier, norm.offset, norm.activation);
    if (!residual) {
        return launch_map(FrozenBatchNorm<T>{x, y, normalization}, norm.shape, target);
    }
    const FrozenBatchNormResidual<T> operation{x, {residual}, y, nullptr, normalization};
    return launch_map(operation, norm.shape, target);
}

template <class T, class Residual>
const char* launch_with_stats(const FrozenBatchNormArguments& norm, const Launch& target) {
    using Operation = FrozenBatchNormWithStats<T, Residual>;
    const Operation operation{statistics_reduction(norm), static_cast<const T*>(norm.x),
                              static_cast<const T*>(norm.residual), static_cast<T*>(norm.y),
                              normalization_of(norm.multiplier, norm.offset, norm.activation)};
    ReductionLauncher<Operation, 1, 1> launcher(target);
    const char* error = launcher.add(operation, norm.shape);
    return error ? error : launcher.flush();
}

template <class T, class Mask, class Statistics>
const char* launch_backward(const FrozenBatchNormBackwardArguments& norm, const Launch& target) {
    using Operation = FrozenBatchNormBackward<T, Mask, Statistics>;
    Operation operation{};
    operation.source = static_cast<const T*>(norm.grad);
    if (Operation::reads_x) operation.more_sources[0] = static_cast<const T*>(norm.x);
    if (Mask::value) {
        operation.more_sources[Operation::more_source_count - 1] = static_cast<const T*>(norm.y);
    }
    operation.target = static_cast<T*>(norm.grad_x);
    operation.second_target = static_cast<T*>(norm.grad_residual);
    operation.normalization = normalization_of(norm.multiplier, norm.offset, norm.activation);
    operation.statistics = statistics_gradient(norm);
    return launch_map(operation, norm.shape, target);
}

}  // namespace

const char* frozen_batch_norm(const FrozenBatchNormArguments& norm, Launch target) {
    return dispatch(norm.type, [&](auto element) -> const char* {
        using T = decltype(element);
        if (!norm.mean) return launch_forward<T>(norm, target);
        return norm.residual ? launch_with_stats<T, WithResidual>(norm, target)
                             : launch_with_stats<T, WithoutResidual>(norm, target);
    });
}

const char* frozen_batch_norm_backward(const FrozenBatchNormBackwardArguments& norm,
                                       Launch target) {
    return dispatch(norm.type, [&](auto element) -> const char* {
        using T = decltype(element);
        if (norm.y) {
            return norm.mean ? launch_backward<T, MaskOfY, WithStatistics>(norm, target)
                             : launch_backward<T, MaskOfY, WithoutStatistics>(norm, target);
        }
        return norm.mean ? launch_backward<T, MaskOfX, WithStatistics>(norm, target)
                         : launch_backward<T, MaskOfX, WithoutStatistics>(norm, target);
    });
}

}  // namespace zscgan::cuda

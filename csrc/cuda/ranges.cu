// Observed ranges: minimum and maximum, their moving average, and the quantizer they give.
#include "../quant_math.h"
#include "reduction_launcher.cuh"

namespace zscgan::cuda {
namespace {

// NaN wins over every number, as in torch.aminmax.
template <class Value>
__device__ __forceinline__ Value lower(Value a, Value b) {
    return (b < a) | (b != b) ? b : a;
}
template <class Value>
__device__ __forceinline__ Value higher(Value a, Value b) {
    return (b > a) | (b != b) ? b : a;
}

template <class T>
struct UpdateMinMax {
    using Element = T;
    struct Parameters {};
    using Sums = Pair;
    using Accumulator = PairOf<float>;
    static constexpr bool reads_second = false;
    static constexpr bool writes_target = false;
    const T* source;
    ObserverState state;

    static __device__ __forceinline__ Accumulator start() { return {INFINITY, -INFINITY}; }
    template <class Values>
    static __device__ __forceinline__ Values combine(const Values& a, const Values& b) {
        return {lower(a.first, b.first), higher(a.second, b.second)};
    }
    bool is_wide() const { return cuda::is_wide({source}); }

    __device__ __forceinline__ Parameters parameters(int64_t) const { return {}; }
    __device__ __forceinline__ float visit(float x, float, const Parameters&,
                                           Accumulator& extremes) const {
        extremes = {lower(extremes.first, x), higher(extremes.second, x)};
        return x;
    }
    __device__ __forceinline__ void finish(int64_t channel, const Pair& extremes) const {
        float& low = state.running_min[channel];
        float& high = state.running_max[channel];
        const bool is_first = low > high;
        const auto constant = static_cast<float>(state.averaging_constant);
        low = moving_average(low, static_cast<float>(extremes.first), constant, is_first);
        high = moving_average(high, static_cast<float>(extremes.second), constant, is_first);
        const ScaleAndZeroPoint quantizer =
            range_to_quantizer(low, high, static_cast<float>(state.range.quant_min),
                               static_cast<float>(state.range.quant_max), state.symmetric);
        state.scale[channel] = quantizer.scale;
        state.zero_point[channel] = quantizer.zero_point;
    }
};

}  // namespace

const char* update_min_max(const UpdateMinMaxArguments& arguments, Launch target) {
    if (arguments.shape.numel() == 0) return nullptr;
    return dispatch(arguments.type, [&](auto element) -> const char* {
        using Operation = UpdateMinMax<decltype(element)>;
        ReductionLauncher<Operation, 1, 1> launcher(target);
        const char* error = launcher.add(
            {static_cast<const decltype(element)*>(arguments.x), arguments.state}, arguments.shape);
        return error ? error : launcher.flush();
    });
}

int64_t reduction_workspace(Shape3 shape) { return workspace_bytes(partial_bytes(shape)); }

}  // namespace zscgan::cuda

// Statistics of a batch by channel, and their gradient.
#include "../quant_math.h"
#include "map_launcher.cuh"
#include "reduction_launcher.cuh"
#include "statistics.cuh"

namespace zscgan::cuda {
namespace {

template <class T>
struct Statistics : StatisticsReduction {
    using Element = T;
    using Parameters = float;
    static constexpr bool reads_second = false;
    static constexpr bool writes_target = false;
    const T* source;

    bool is_wide() const { return cuda::is_wide({source}); }

    __device__ __forceinline__ float parameters(int64_t channel) const {
        return mean_hint[channel];
    }
    __device__ __forceinline__ float visit(float x, float, float mean_hint,
                                           Accumulator& sums) const {
        add(x, mean_hint, sums);
        return x;
    }
    static __device__ __forceinline__ void visit_wide(float x, float mean_hint, Pair& sums) {
        add(x, mean_hint, sums);
    }
};

// grad_x = a + b * x, with one a and one b by channel.
template <class T>
struct StatisticsBackward {
    using Element = T;
    using Parameters = StatisticsGradient::Coefficients;
    const T* source;
    T* target;
    StatisticsGradient gradient;

    __device__ __forceinline__ Parameters parameters(int64_t channel) const {
        return gradient.coefficients(channel);
    }
    __device__ __forceinline__ float apply(float x, const Parameters& coefficients, bool&) const {
        return coefficients.at(x);
    }
    __device__ __forceinline__ void store_flags(int64_t, unsigned) const {}
};

}  // namespace

const char* batch_norm_statistics(const BatchNormStatisticsArguments& arguments, Launch target) {
    return dispatch(arguments.type, [&](auto element) -> const char* {
        using T = decltype(element);
        const Statistics<T> operation{statistics_reduction(arguments),
                                      static_cast<const T*>(arguments.x)};
        ReductionLauncher<Statistics<T>, 1, 1> launcher(target);
        const char* error = launcher.add(operation, arguments.shape);
        return error ? error : launcher.flush();
    });
}

const char* batch_norm_statistics_backward(const BatchNormStatisticsBackwardArguments& arguments,
                                           Launch target) {
    return dispatch(arguments.type, [&](auto element) -> const char* {
        using T = decltype(element);
        const StatisticsBackward<T> operation{static_cast<const T*>(arguments.x),
                                              static_cast<T*>(arguments.grad_x),
                                              statistics_gradient(arguments)};
        MapLauncher<StatisticsBackward<T>, 1, 1> launcher(target.stream);
        const char* error = launcher.add(operation, arguments.shape, false);
        return error ? error : launcher.flush();
    });
}

}  // namespace zscgan::cuda

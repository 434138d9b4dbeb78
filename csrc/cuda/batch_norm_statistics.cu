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

    __device__ __forceinline__ float parameters(int64_t channel) const { return shift[channel]; }
    __device__ __forceinline__ float visit(float x, float, float shift, Accumulator& sums) const {
        add(x, shift, sums);
        return x;
    }
    static __device__ __forceinline__ void visit_wide(float x, float shift, Pair& sums) {
        add(x, shift, sums);
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

const char* batch_norm_statistics(DataType type, Extent extent, const void* x, const void* shift,
                                  void* mean, void* variance, Launch target) {
    return dispatch(type, [&](auto element) -> const char* {
        using T = decltype(element);
        const Statistics<T> operation{statistics_reduction(extent, shift, mean, variance),
                                      static_cast<const T*>(x)};
        ReductionLauncher<Statistics<T>, 1, 1> launcher(target);
        const char* error = launcher.add(operation, extent);
        return error ? error : launcher.flush();
    });
}

const char* batch_norm_statistics_backward(DataType type, Extent extent, const void* x,
                                           const void* mean, const void* grad_mean,
                                           const void* grad_variance, void* grad_x, Launch target) {
    return dispatch(type, [&](auto element) -> const char* {
        using T = decltype(element);
        const StatisticsBackward<T> operation{
            static_cast<const T*>(x), static_cast<T*>(grad_x),
            statistics_gradient(extent, mean, grad_mean, grad_variance)};
        MapLauncher<StatisticsBackward<T>, 1, 1> launcher(target.stream);
        const char* error = launcher.add(operation, extent, false);
        return error ? error : launcher.flush();
    });
}

}  // namespace zscgan::cuda

// The distance of all layers' statistics to stored ones, and its gradients.
#include "../quant_math.h"
#include "reduction_launcher.cuh"

namespace zscgan::cuda {
namespace {

constexpr int most_layers = (parameter_bytes - 48) / static_cast<int>(sizeof(DistanceLayer));

struct DistanceTask {
    DistanceLayer layers[most_layers];
    double* parts;  // [layers of this launch]
    unsigned* counter;
    float* result;
    int64_t layer_count;  // of all launches
    int count;
    Distance distance;
    bool is_first;
};

__device__ __forceinline__ DistanceTerms channel_terms(Distance distance,
                                                       const DistanceLayer& layer,
                                                       int64_t channel) {
    return distance_terms(distance, layer.mean[channel], layer.variance[channel],
                          layer.running_mean[channel], layer.running_var[channel], layer.eps);
}

// What the sums of a layer's parts become, and the factors of its gradients.
struct LayerDistance {
    double value;
    double mean_factor;
    double variance_factor;
};

__device__ __forceinline__ LayerDistance layer_distance(Distance distance, int64_t channels,
                                                        const Pair& sums) {
    if (distance == Distance::l2) {
        const double mean_root = sqrt(sums.first);
        const double variance_root = sqrt(sums.second);
        return {mean_root + variance_root, sums.first == 0 ? 0.0 : 1 / (2 * mean_root),
                sums.second == 0 ? 0.0 : 1 / (2 * variance_root)};
    }
    const auto count = static_cast<double>(channels);
    return {(sums.first + sums.second) / count, 1 / count, 1 / count};
}

__device__ __forceinline__ LayerDistance reduce_layer(Distance distance,
                                                      const DistanceLayer& layer) {
    __shared__ LayerDistance shared;
    Pair sums = {0.0, 0.0};
    for (int64_t channel = threadIdx.x; channel < layer.channels; channel += block_threads) {
        const DistanceTerms terms = channel_terms(distance, layer, channel);
        sums = SumReduction::combine(sums, Pair{terms.mean_part, terms.variance_part});
    }
    sums = combine_block<SumReduction>(sums);
    if (threadIdx.x == 0) shared = layer_distance(distance, layer.channels, sums);
    __syncthreads();
    return shared;
}

// One block reduces one layer; the last adds the layers up.
__global__ __launch_bounds__(block_threads) void reduce_distance(
    const __grid_constant__ DistanceTask task) {
    const DistanceLayer& layer = task.layers[blockIdx.x];
    const auto layers = static_cast<double>(task.layer_count);
    const LayerDistance total = reduce_layer(task.distance, layer);
    for (int64_t channel = threadIdx.x; channel < layer.channels; channel += block_threads) {
        const DistanceTerms terms = channel_terms(task.distance, layer, channel);
        layer.grad_mean[channel] = static_cast<float>(terms.grad_mean * total.mean_factor / layers);
        layer.grad_variance[channel] =
            static_cast<float>(terms.grad_variance * total.variance_factor / layers);
    }
    if (threadIdx.x == 0) task.parts[blockIdx.x] = total.value;
    if (!is_last_block(task.counter, task.count) || threadIdx.x != 0) return;
    double sum = 0;
    for (int i = 0; i < task.count; ++i) sum += __ldcg(task.parts + i);
    *task.result = static_cast<float>((task.is_first ? 0.0 : *task.result) + sum / layers);
}

}  // namespace

const char* batch_norm_distance(const BatchNormDistanceArguments<float>& arguments, Launch target) {
    const int64_t count = arguments.count;
    WorkspaceCutter workspace(target);
    DistanceTask task = {};
    task.parts = reinterpret_cast<double*>(workspace.take_partials(most_layers));
    task.counter = workspace.take_counters(1);
    if (const char* error = workspace.zero_counters()) return error;
    task.result = arguments.result;
    task.layer_count = count;
    task.distance = arguments.distance;
    for (int64_t first = 0; first < count; first += most_layers) {
        task.count = static_cast<int>(bounded(count - first, 1, most_layers));
        task.is_first = first == 0;
        for (int i = 0; i < task.count; ++i) task.layers[i] = arguments.layers[first + i];
        const char* error = launch(reduce_distance, task.count, task, target.stream);
        if (error) return error;
    }
    return nullptr;
}

int64_t distance_workspace() {
    return workspace_bytes(most_layers * static_cast<int64_t>(sizeof(Pair)));
}

}  // namespace zscgan::cuda

// The distance between batch and stored statistics of all layers, with its gradients. Compiled
// once: a few thousand channels need no vectors.
#include <cmath>

#include "../quant_math.h"

namespace zscgan::cpu {
namespace {

// The derivative of sqrt(square) times that of the square; zero at the root's corner.
double root_factor(double square) { return square == 0 ? 0 : 1 / (2 * std::sqrt(square)); }

template <class Real>
double layer_distance(Distance distance, const DistanceLayerOf<Real>& layer, int64_t layers) {
    double mean_part = 0, variance_part = 0;
    for (int64_t c = 0; c < layer.channels; ++c) {
        const DistanceTerms terms =
            distance_terms(distance, layer.mean[c], layer.variance[c], layer.running_mean[c],
                           layer.running_var[c], layer.eps);
        mean_part += terms.mean_part;
        variance_part += terms.variance_part;
        layer.grad_mean[c] = static_cast<Real>(terms.grad_mean / (layers * layer.channels));
        layer.grad_variance[c] = static_cast<Real>(terms.grad_variance / (layers * layer.channels));
    }
    if (distance != Distance::l2) return (mean_part + variance_part) / layer.channels;
    const double mean_factor = root_factor(mean_part) / layers;
    const double variance_factor = root_factor(variance_part) / layers;
    for (int64_t c = 0; c < layer.channels; ++c) {
        layer.grad_mean[c] =
            static_cast<Real>(2 * (double(layer.mean[c]) - layer.running_mean[c]) * mean_factor);
        layer.grad_variance[c] = static_cast<Real>(
            2 * (double(layer.variance[c]) - layer.running_var[c]) * variance_factor);
    }
    return std::sqrt(mean_part) + std::sqrt(variance_part);
}

template <class Real>
void mean_distance(const BatchNormDistanceArguments<Real>& arguments) {
    double total = 0;
    for (int64_t i = 0; i < arguments.count; ++i) {
        total += layer_distance(arguments.distance, arguments.layers[i], arguments.count);
    }
    *arguments.result = static_cast<Real>(total / arguments.count);
}

}  // namespace

void batch_norm_distance(const BatchNormDistanceArguments<float>& arguments) {
    mean_distance(arguments);
}

void batch_norm_distance(const BatchNormDistanceArguments<double>& arguments) {
    mean_distance(arguments);
}

}  // namespace zscgan::cpu

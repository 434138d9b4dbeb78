// Where kernels run: threads of the CPU, or a stream of a GPU. A backend lists its kernels and
// calls them with what ends their arguments.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "kernels.h"

namespace zscgan {

namespace py = pybind11;

struct Cpu {
    static constexpr auto fake_quantize = &cpu::fake_quantize;
    static constexpr auto fake_quantize_backward = &cpu::fake_quantize_backward;
    static constexpr auto fake_quantize_learned = &cpu::fake_quantize_learned;
    static constexpr auto fake_quantize_learned_backward = &cpu::fake_quantize_learned_backward;
    static constexpr auto observe = &cpu::observe;
    static constexpr auto batch_norm_statistics = &cpu::batch_norm_statistics;
    static constexpr auto batch_norm_statistics_backward = &cpu::batch_norm_statistics_backward;
    static constexpr auto batch_norm_eval = &cpu::batch_norm_eval;
    static constexpr auto batch_norm_eval_backward = &cpu::batch_norm_eval_backward;
    static constexpr auto noisy_batch_norm = &cpu::noisy_batch_norm;
    static constexpr auto noisy_batch_norm_sums = &cpu::noisy_batch_norm_sums;
    static constexpr auto noisy_batch_norm_backward = &cpu::noisy_batch_norm_backward;

    using Where = std::tuple<int>;  // threads

    // OpenMP ends the process where it cannot start as many threads as it was told to.
    static constexpr int most_threads = 4096;

    static int threads(const Where& where) {
        const int threads = std::get<0>(where);
        require(threads >= 1 && threads <= most_threads, "threads: accepted are 1 to 4096");
        return threads;
    }

    // Kernels of the CPU need none.
    static int64_t reduction_workspace(Extent) { return 0; }
    static int64_t learned_backward_workspace(const LearnedTensor*, int64_t) { return 0; }
    static int64_t distance_workspace() { return 0; }
    template <class Bytes>
    static void require_workspace(const Where&, const Bytes&) {}

    template <class Kernel, class... Arguments>
    static void call(const Where& where, Kernel kernel, Arguments... arguments) {
        const int team = threads(where);
        py::gil_scoped_release release;
        kernel(arguments..., team);
    }

    template <class Real>
    static void distance(const Where& where, Distance distance,
                         const std::vector<DistanceLayerOf<Real>>& layers, Real* result) {
        threads(where);  // a few thousand channels need one, but a wrong number is still an error
        cpu::batch_norm_distance(distance, layers.data(), static_cast<int64_t>(layers.size()),
                                 result);
    }
};

#ifdef ZSCGAN_CUDA
struct Cuda {
    static constexpr auto fake_quantize = &cuda::fake_quantize;
    static constexpr auto fake_quantize_backward = &cuda::fake_quantize_backward;
    static constexpr auto fake_quantize_learned = &cuda::fake_quantize_learned;
    static constexpr auto fake_quantize_learned_backward = &cuda::fake_quantize_learned_backward;
    static constexpr auto observe = &cuda::observe;
    static constexpr auto batch_norm_statistics = &cuda::batch_norm_statistics;
    static constexpr auto batch_norm_statistics_backward = &cuda::batch_norm_statistics_backward;
    static constexpr auto batch_norm_eval = &cuda::batch_norm_eval;
    static constexpr auto batch_norm_eval_backward = &cuda::batch_norm_eval_backward;
    static constexpr auto noisy_batch_norm = &cuda::noisy_batch_norm;
    static constexpr auto noisy_batch_norm_sums = &cuda::noisy_batch_norm_sums;
    static constexpr auto noisy_batch_norm_backward = &cuda::noisy_batch_norm_backward;
    static constexpr auto reduction_workspace = &cuda::reduction_workspace;
    static constexpr auto learned_backward_workspace = &cuda::learned_backward_workspace;
    static constexpr auto distance_workspace = &cuda::distance_workspace;

    using Where = std::tuple<int, Address, Address>;  // device, stream, workspace

    // `bytes` is a function that tells what a kernel needs; where it needs nothing there is none.
    template <class Bytes>
    static void require_workspace(const Where& where, const Bytes& bytes) {
        require(std::get<2>(where) != 0 || bytes() == 0, "workspace: null pointer");
    }

    static void check(const char* error) {
        if (error) throw std::runtime_error(std::string("CUDA: ") + error);
    }

    template <class Kernel, class... Arguments>
    static void call(const Where& where, Kernel kernel, Arguments... arguments) {
        const auto [device, stream, workspace] = where;
        const cuda::Launch launch{reinterpret_cast<void*>(stream),
                                  reinterpret_cast<void*>(workspace)};
        py::gil_scoped_release release;
        // To make it current, and another one afterwards, would start a device that nothing uses.
        require(device == cuda::current_device(), "device: not the current one");
        check(kernel(arguments..., launch));
    }

    static void distance(const Where& where, Distance distance,
                         const std::vector<DistanceLayer>& layers, float* result) {
        call(where, &cuda::batch_norm_distance, distance, layers.data(),
             static_cast<int64_t>(layers.size()), result);
    }
    static void distance(const Where&, Distance, const std::vector<DistanceLayerOf<double>>&,
                         double*) {
        throw std::invalid_argument("data type code: float64 is for the CPU alone");
    }
};
#endif

}  // namespace zscgan

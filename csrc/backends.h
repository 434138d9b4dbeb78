// Where kernels run: threads of the CPU, or a stream of a GPU. A backend has the kernels as members
// and is made for one call, which it makes there, from what the bindings are given as its `Where`.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "arguments.h"
#include "kernels.h"

namespace zscgan {

namespace py = pybind11;

// The kernels of a backend under their own names.
#define ZSCGAN_CPU_MEMBER(name, Arguments) static constexpr auto name = &cpu::name;
#define ZSCGAN_CUDA_MEMBER(name, Arguments) static constexpr auto name = &cuda::name;

struct Cpu {
    ZSCGAN_FOR_EACH_KERNEL(ZSCGAN_CPU_MEMBER)

    // OpenMP ends the process where it cannot start as many threads as it was told to.
    static constexpr int most_threads = 4096;

    using Where = int;  // threads
    explicit Cpu(Where threads) : threads_(threads) {
        require(threads >= 1 && threads <= most_threads, "threads: expected 1 to 4096");
    }

    // Kernels of the CPU need no workspace.
    static int64_t reduction_workspace(Shape3) { return 0; }
    static int64_t lsq_backward_workspace(const LsqArguments&) { return 0; }
    static int64_t distance_workspace() { return 0; }
    template <class Bytes>
    void require_workspace(const Bytes&) const {}

    template <class Kernel, class Struct>
    void call(Kernel kernel, const Struct& arguments) const {
        py::gil_scoped_release release;
        kernel(arguments, threads_);
    }

    // A few thousand channels need one thread.
    template <class Real>
    void distance(const BatchNormDistanceArguments<Real>& arguments) const {
        cpu::batch_norm_distance(arguments);
    }

private:
    int threads_;
};

#ifdef ZSCGAN_CUDA
struct Cuda {
    ZSCGAN_FOR_EACH_KERNEL(ZSCGAN_CUDA_MEMBER)
    static constexpr auto reduction_workspace = &cuda::reduction_workspace;
    static constexpr auto lsq_backward_workspace = &cuda::lsq_backward_workspace;
    static constexpr auto distance_workspace = &cuda::distance_workspace;

    using Where = std::tuple<int, Address, Address>;  // device, stream of it, workspace on it
    explicit Cuda(const Where& where)
        : device_(std::get<0>(where)),
          launch_{optional_memory(std::get<1>(where)), optional_memory(std::get<2>(where))} {}

    // `bytes` returns how many a kernel needs; where it needs none there is no workspace.
    template <class Bytes>
    void require_workspace(const Bytes& bytes) const {
        require(launch_.workspace || bytes() == 0, "workspace: null pointer");
    }

    static void check(const char* error) {
        if (error) throw std::runtime_error(std::string("CUDA: ") + error);
    }

    template <class Kernel, class Struct>
    void call(Kernel kernel, const Struct& arguments) const {
        py::gil_scoped_release release;
        // To make it current, and another one afterwards, would start a device that nothing uses.
        require(device_ == cuda::current_device(), "device: not the current one");
        check(kernel(arguments, launch_));
    }

    void distance(const BatchNormDistanceArguments<float>& arguments) const {
        call(&cuda::batch_norm_distance, arguments);
    }
    void distance(const BatchNormDistanceArguments<double>&) const {
        throw std::invalid_argument("data_type: float64 is for the CPU only");
    }

private:
    int device_;
    cuda::Launch launch_;
};
#endif

#undef ZSCGAN_CPU_MEMBER
#undef ZSCGAN_CUDA_MEMBER

}  // namespace zscgan

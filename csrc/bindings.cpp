// The Python module zscgan_ext._native: functions of addresses, sizes and codes that call the CPU
// or CUDA kernels. Submodules `cpu` and `cuda` offer the same functions; their calls end with the
// number of threads, or with the device, stream and workspace of the launch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "arguments.h"
#include "backends.h"
#include "kernels.h"
#ifdef ZSCGAN_EMULATION
#include "emulation/machine.h"
#endif

namespace py = pybind11;

namespace zscgan {
namespace {

template <class Backend>
void define_fake_quantize(py::module_& module) {
    using Where = typename Backend::Where;
    module.def("fake_quantize", [](int type, Sizes sizes, double quant_min, double quant_max,
                                   Address x, Address scale, Address zero_point, Address y,
                                   Address mask, Where where) {
        const Extent e = extent_of(sizes);
        Backend::call(where, Backend::fake_quantize, data_type(type), e,
                      range_of(quant_min, quant_max), pointer<const void>(x, e.numel(), "x"),
                      pointer<const void>(scale, e.channels, "scale"),
                      pointer<const void>(zero_point, e.channels, "zero_point"),
                      pointer(y, e.numel(), "y"), reinterpret_cast<uint8_t*>(mask));
    });
    module.def("fake_quantize_backward", [](int type, int64_t numel, Address grad, Address mask,
                                            Address grad_x, Where where) {
        require(numel >= 0, "numel: must not be negative");
        require(numel <= most_elements, "numel: too large");
        Backend::call(where, Backend::fake_quantize_backward, data_type(type), numel,
                      pointer<const void>(grad, numel, "grad"),
                      pointer<const uint8_t>(mask, numel, "mask"),
                      pointer(grad_x, numel, "grad_x"));
    });
    module.def("fake_quantize_learned",
               [](int type, const std::vector<LearnedArguments>& list, Where where) {
                   const auto tensors = learned_tensors(list, false);
                   Backend::call(where, Backend::fake_quantize_learned, data_type(type),
                                 tensors.data(), static_cast<int64_t>(tensors.size()));
               });
    module.def("fake_quantize_learned_backward",
               [](int type, const std::vector<LearnedArguments>& list, Where where) {
                   const auto tensors = learned_tensors(list, true);
                   const auto count = static_cast<int64_t>(tensors.size());
                   Backend::require_workspace(where, [&] {
                       return Backend::learned_backward_workspace(tensors.data(), count);
                   });
                   Backend::call(where, Backend::fake_quantize_learned_backward, data_type(type),
                                 tensors.data(), count);
               });
}

template <class Backend>
void define_observe(py::module_& module) {
    module.def("observe", [](int type, Sizes sizes, Address x, double quant_min, double quant_max,
                             double averaging_constant, bool symmetric, Address running_min,
                             Address running_max, Address scale, Address zero_point,
                             typename Backend::Where where) {
        const Extent e = extent_of(sizes);
        const ObserverState state{pointer<float>(running_min, e.channels, "running_min"),
                                  pointer<float>(running_max, e.channels, "running_max"),
                                  pointer<float>(scale, e.channels, "scale"),
                                  pointer<float>(zero_point, e.channels, "zero_point"),
                                  averaging_constant,
                                  range_of(quant_min, quant_max),
                                  symmetric};
        Backend::require_workspace(where, [&] { return Backend::reduction_workspace(e); });
        Backend::call(where, Backend::observe, data_type(type), e,
                      pointer<const void>(x, e.numel(), "x"), state);
    });
}

template <class Backend>
void define_batch_norm_matching(py::module_& module) {
    using Where = typename Backend::Where;
    module.def("batch_norm_statistics", [](int type, Sizes sizes, Address x, Address shift,
                                           Address mean, Address variance, Where where) {
        const Extent e = extent_of(sizes);
        Backend::require_workspace(where, [&] { return Backend::reduction_workspace(e); });
        Backend::call(where, Backend::batch_norm_statistics, data_type(type), e,
                      pointer<const void>(x, e.numel(), "x"),
                      pointer<const void>(shift, e.channels, "shift"),
                      pointer(mean, e.channels, "mean"), pointer(variance, e.channels, "variance"));
    });
    module.def("batch_norm_statistics_backward",
               [](int type, Sizes sizes, Address x, Address mean, Address grad_mean,
                  Address grad_variance, Address grad_x, Where where) {
                   const Extent e = extent_of(sizes);
                   Backend::call(where, Backend::batch_norm_statistics_backward, data_type(type), e,
                                 pointer<const void>(x, e.numel(), "x"),
                                 pointer<const void>(mean, e.channels, "mean"),
                                 pointer<const void>(grad_mean, e.channels, "grad_mean"),
                                 pointer<const void>(grad_variance, e.channels, "grad_variance"),
                                 pointer(grad_x, e.numel(), "grad_x"));
               });
    module.def(
        "batch_norm_distance", [](int distance, int type, const std::vector<LayerArguments>& list,
                                  Address result, Where where) {
            Backend::require_workspace(where, Backend::distance_workspace);
            if (data_type(type) == DataType::float64) {
                Backend::distance(where, distance_of(distance), distance_layers<double>(list),
                                  pointer<double>(result, 1, "result"));
            } else {
                Backend::distance(where, distance_of(distance), distance_layers<float>(list),
                                  pointer<float>(result, 1, "result"));
            }
        });
}

template <class Backend>
void define_frozen_batch_norm(py::module_& module) {
    using Where = typename Backend::Where;
    module.def(
        "batch_norm_eval",
        [](int type, Sizes sizes, int activation, Address x, Address residual, Address multiplier,
           Address offset, Address shift, Address mean, Address variance, Address y, Where where) {
            const auto norm = frozen_batch_norm(sizes, activation, x, residual, multiplier, offset,
                                                shift, mean, variance, y);
            if (mean) {
                Backend::require_workspace(
                    where, [&] { return Backend::reduction_workspace(norm.extent); });
            }
            Backend::call(where, Backend::batch_norm_eval, data_type(type), norm);
        });
    module.def("batch_norm_eval_backward",
               [](int type, Sizes sizes, int activation, Address grad, Address x, Address y,
                  Address multiplier, Address offset, Address mean, Address grad_mean,
                  Address grad_variance, Address grad_x, Address grad_residual, Where where) {
                   Backend::call(where, Backend::batch_norm_eval_backward, data_type(type),
                                 frozen_batch_norm_gradient(sizes, activation, grad, x, y,
                                                            multiplier, offset, mean, grad_mean,
                                                            grad_variance, grad_x, grad_residual));
               });
}

template <class Backend>
void define_noisy_batch_norm(py::module_& module) {
    using Where = typename Backend::Where;
    module.def("noisy_batch_norm", [](int type, Sizes sizes, double noise, double slope, Address x,
                                      Address multiplier, Address offset, Address seed, Address y,
                                      Address positive, Where where) {
        Backend::call(
            where, Backend::noisy_batch_norm, data_type(type),
            noisy_batch_norm(sizes, noise, slope, x, multiplier, offset, seed, y, positive));
    });
    module.def("noisy_batch_norm_sums",
               [](int type, Sizes sizes, double slope, Address grad, Address x, Address positive,
                  Address mean, Address sum, Address product_sum, Where where) {
                   auto norm = noisy_batch_norm_gradient(sizes, slope, grad, x, positive);
                   norm.mean = pointer(mean, norm.extent.channels, "mean");
                   norm.sum = pointer(sum, norm.extent.channels, "sum");
                   norm.product_sum = pointer(product_sum, norm.extent.channels, "product_sum");
                   Backend::require_workspace(
                       where, [&] { return Backend::reduction_workspace(norm.extent); });
                   Backend::call(where, Backend::noisy_batch_norm_sums, data_type(type), norm);
               });
    module.def(
        "noisy_batch_norm_backward",
        [](int type, Sizes sizes, double slope, Address grad, Address x, Address positive,
           Address multiplier, Address constant, Address slope_of_x, Address grad_x, Where where) {
            auto norm = noisy_batch_norm_gradient(sizes, slope, grad, x, positive);
            norm.multiplier = pointer(multiplier, norm.extent.channels, "multiplier");
            norm.constant = pointer(constant, norm.extent.channels, "constant");
            norm.slope_of_x = pointer(slope_of_x, norm.extent.channels, "slope_of_x");
            norm.grad_x = pointer(grad_x, norm.extent.numel(), "grad_x");
            Backend::call(where, Backend::noisy_batch_norm_backward, data_type(type), norm);
        });
}

template <class Backend>
py::module_ define_backend(py::module_& parent, const char* name) {
    py::module_ module = parent.def_submodule(name);
    define_fake_quantize<Backend>(module);
    define_observe<Backend>(module);
    define_batch_norm_matching<Backend>(module);
    define_frozen_batch_norm<Backend>(module);
    define_noisy_batch_norm<Backend>(module);
    return module;
}

#ifndef ZSCGAN_EMULATION
void define_cpu(py::module_& parent) {
    py::module_ module = define_backend<Cpu>(parent, "cpu");
    module.def("instruction_set", &cpu::instruction_set);
    module.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const char* name : {"avx512", "avx2", "portable"}) {
            if (cpu::has_instruction_set(name)) names.emplace_back(name);
        }
        return names;
    });
    module.def("select_instruction_set", [](const std::string& name) {
        require(
            cpu::select_instruction_set(name.c_str()),
            "instruction set: accepted are avx512, avx2 and portable, where built and supported");
    });
}
#endif

#ifdef ZSCGAN_CUDA
void define_cuda(py::module_& parent) {
    py::module_ module = define_backend<Cuda>(parent, "cuda");
    module.def("reduction_workspace",
               [](Sizes sizes) { return cuda::reduction_workspace(extent_of(sizes)); });
    module.def("learned_backward_workspace", [](const std::vector<LearnedArguments>& list) {
        const auto tensors = learned_tensors(list, true);
        return cuda::learned_backward_workspace(tensors.data(),
                                                static_cast<int64_t>(tensors.size()));
    });
    module.def("distance_workspace", &cuda::distance_workspace);
}
#endif

#ifdef ZSCGAN_EMULATION
// How the emulated GPU is driven, and what it did, for tests.
void define_emulation(py::module_& parent) {
    py::module_ module = parent.def_submodule("emulation");
    module.def("set_seed", &emulation::set_seed);
    module.def("current_device", &cuda::current_device);
    module.def("set_device", [](int device) {
        const cudaError_t error = cudaSetDevice(device);
        Cuda::check(error == cudaSuccess ? nullptr : cudaGetErrorString(error));
    });
    module.def("device_uses", &emulation::device_uses);
    module.def("make_stream", [](int device) {
        require(device >= 0 && device < emulation::device_count, "device: accepted are 0 and 1");
        return reinterpret_cast<Address>(emulation::make_stream(device));
    });
    module.def("counts", [] {
        py::dict found;
        found["launches"] = emulation::counts.launches;
        found["blocks"] = emulation::counts.blocks;
        found["handovers"] = emulation::counts.handovers;
        found["hidden_stores"] = emulation::counts.hidden;
        return found;
    });
}
#endif

// What this build holds, for `python -m zscgan_ext.info`.
py::dict build_info() {
    py::dict info;
    info["compiler"] = ZSCGAN_COMPILER;
    info["cpu_instruction_sets"] = std::vector<std::string>{
#ifdef ZSCGAN_X86
        "avx512", "avx2",
#endif
        "portable"};
#ifdef ZSCGAN_CUDA
    info["cuda"] = true;
    info["cuda_architectures"] = ZSCGAN_CUDA_ARCHITECTURES;
    info["cuda_compiler"] = ZSCGAN_CUDA_COMPILER;
#else
    info["cuda"] = false;
    info["cuda_architectures"] = "";
    info["cuda_compiler"] = "";
#endif
    return info;
}

}  // namespace
}  // namespace zscgan

#ifndef ZSCGAN_MODULE
#define ZSCGAN_MODULE _native
#endif

PYBIND11_MODULE(ZSCGAN_MODULE, module) {
    module.doc() = "Kernels of zscgan_ext; called by zscgan_ext.ops alone.";
    module.def("build_info", &zscgan::build_info);
#ifdef ZSCGAN_EMULATION
    zscgan::define_emulation(module);
#else
    zscgan::define_cpu(module);
#endif
#ifdef ZSCGAN_CUDA
    zscgan::define_cuda(module);
    module.def("cuda_unavailable_reason", &zscgan::cuda::unavailable_reason);
#else
    module.def("cuda_unavailable_reason", [] { return "the native core was built without CUDA"; });
#endif
}

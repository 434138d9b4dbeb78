// The Python module zscgan_ext._native: functions that call the CPU or CUDA kernels. Submodules
// `cpu` and `cuda` offer the same functions. Each takes the code of the data type, sizes, addresses
// and settings in the order of the op's schema, results, and at last where it runs: the number of
// threads, or the device, stream and workspace of the launch.
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

namespace zscgan {
namespace {

template <class Backend>
void define_fake_quantize(py::module_& module) {
    using Where = typename Backend::Where;
    module.def("fake_quantize", [](int type, const Sizes& sizes, Address x, Address scale,
                                   Address zero_point, double quant_min, double quant_max,
                                   Address y, Address mask, const Where& where) {
        const Shape3 shape = shape_of(sizes);
        const FakeQuantizeArguments arguments{data_type_of(type),
                                              shape,
                                              memory(x, shape.numel(), "x"),
                                              memory(scale, shape.channels, "scale"),
                                              memory(zero_point, shape.channels, "zero_point"),
                                              range_of(quant_min, quant_max),
                                              memory(y, shape.numel(), "y"),
                                              optional_memory<uint8_t>(mask)};
        Backend(where).call(Backend::fake_quantize, arguments);
    });
    module.def("fake_quantize_backward", [](int type, int64_t numel, Address grad, Address mask,
                                            Address grad_x, const Where& where) {
        require(numel >= 0 && numel <= most_elements, "numel: negative or too large");
        const FakeQuantizeBackwardArguments arguments{
            data_type_of(type), numel, memory(grad, numel, "grad"),
            memory<uint8_t>(mask, numel, "mask"), memory(grad_x, numel, "grad_x")};
        Backend(where).call(Backend::fake_quantize_backward, arguments);
    });
}

template <class Backend>
void define_lsq_fake_quantize(py::module_& module) {
    using Where = typename Backend::Where;
    module.def("lsq_fake_quantize", [](int type, const std::vector<LsqTensor>& tensors,
                                       const Where& where) {
        Backend(where).call(Backend::lsq_fake_quantize, lsq_forward_arguments(type, tensors));
    });
    module.def("lsq_fake_quantize_backward", [](int type, const std::vector<LsqTensor>& tensors,
                                                const Where& where) {
        const Backend backend(where);
        const LsqArguments arguments = lsq_backward_arguments(type, tensors);
        backend.require_workspace([&] { return Backend::lsq_backward_workspace(arguments); });
        backend.call(Backend::lsq_fake_quantize_backward, arguments);
    });
}

template <class Backend>
void define_update_min_max(py::module_& module) {
    module.def("update_min_max",
               [](int type, const Sizes& sizes, Address x, Address running_min, Address running_max,
                  Address scale, Address zero_point, double averaging_constant, double quant_min,
                  double quant_max, bool symmetric, const typename Backend::Where& where) {
                   const Backend backend(where);
                   const Shape3 shape = shape_of(sizes);
                   const int64_t channels = shape.channels;
                   const UpdateMinMaxArguments arguments{
                       data_type_of(type),
                       shape,
                       memory(x, shape.numel(), "x"),
                       {memory<float>(running_min, channels, "running_min"),
                        memory<float>(running_max, channels, "running_max"),
                        memory<float>(scale, channels, "scale"),
                        memory<float>(zero_point, channels, "zero_point"), averaging_constant,
                        range_of(quant_min, quant_max), symmetric}};
                   backend.require_workspace([&] { return Backend::reduction_workspace(shape); });
                   backend.call(Backend::update_min_max, arguments);
               });
}

template <class Backend>
void define_batch_norm_statistics(py::module_& module) {
    using Where = typename Backend::Where;
    module.def("batch_norm_statistics", [](int type, const Sizes& sizes, Address x,
                                           Address mean_hint, Address mean, Address variance,
                                           const Where& where) {
        const Backend backend(where);
        const Shape3 shape = shape_of(sizes);
        const BatchNormStatisticsArguments arguments{data_type_of(type),
                                                     shape,
                                                     memory(x, shape.numel(), "x"),
                                                     memory(mean_hint, shape.channels, "mean_hint"),
                                                     memory(mean, shape.channels, "mean"),
                                                     memory(variance, shape.channels, "variance")};
        backend.require_workspace([&] { return Backend::reduction_workspace(shape); });
        backend.call(Backend::batch_norm_statistics, arguments);
    });
    module.def("batch_norm_statistics_backward",
               [](int type, const Sizes& sizes, Address x, Address mean, Address grad_mean,
                  Address grad_variance, Address grad_x, const Where& where) {
                   const Shape3 shape = shape_of(sizes);
                   const BatchNormStatisticsBackwardArguments arguments{
                       data_type_of(type),
                       shape,
                       memory(x, shape.numel(), "x"),
                       memory(mean, shape.channels, "mean"),
                       memory(grad_mean, shape.channels, "grad_mean"),
                       memory(grad_variance, shape.channels, "grad_variance"),
                       memory(grad_x, shape.numel(), "grad_x")};
                   Backend(where).call(Backend::batch_norm_statistics_backward, arguments);
               });
}

template <class Backend>
void define_frozen_batch_norm(py::module_& module) {
    using Where = typename Backend::Where;
    module.def("frozen_batch_norm", [](int type, const Sizes& sizes, Address x, Address multiplier,
                                       Address offset, Address mean_hint, Address residual,
                                       int activation, Address y, Address mean, Address variance,
                                       const Where& where) {
        const Backend backend(where);
        const auto norm = frozen_batch_norm_arguments(type, sizes, x, multiplier, offset, mean_hint,
                                                      residual, activation, y, mean, variance);
        backend.require_workspace(
            [&] { return norm.mean ? Backend::reduction_workspace(norm.shape) : 0; });
        backend.call(Backend::frozen_batch_norm, norm);
    });
    module.def(
        "frozen_batch_norm_backward",
        [](int type, const Sizes& sizes, Address grad, Address x, Address y, Address multiplier,
           Address offset, Address mean, Address grad_mean, Address grad_variance, int activation,
           Address grad_x, Address grad_residual, const Where& where) {
            Backend(where).call(Backend::frozen_batch_norm_backward,
                                frozen_batch_norm_backward_arguments(
                                    type, sizes, grad, x, y, multiplier, offset, mean, grad_mean,
                                    grad_variance, activation, grad_x, grad_residual));
        });
}

template <class Real, class Backend>
void call_distance(const Backend& backend, const std::vector<BatchNormLayer>& list, int distance,
                   Address result) {
    const auto layers = distance_layers<Real>(list);
    backend.distance(
        BatchNormDistanceArguments<Real>{layers.data(), static_cast<int64_t>(layers.size()),
                                         distance_of(distance), memory<Real>(result, 1, "result")});
}

template <class Backend>
void define_batch_norm_distance(py::module_& module) {
    module.def("batch_norm_distance",
               [](int type, const std::vector<BatchNormLayer>& layers, int distance, Address result,
                  const typename Backend::Where& where) {
                   const Backend backend(where);
                   backend.require_workspace(Backend::distance_workspace);
                   if (data_type_of(type) == DataType::float64) {
                       call_distance<double>(backend, layers, distance, result);
                   } else {
                       call_distance<float>(backend, layers, distance, result);
                   }
               });
}

// What calls take lists of, made by name; local to the module, as two builds may be loaded.
void define_structs(py::module_& module) {
    using py::arg;
    py::class_<LsqTensor>(module, "LsqTensor", py::module_local())
        .def(py::init(&lsq_tensor), arg("shape"), arg("x"), arg("scale"), arg("zero_point"),
             arg("quant_min"), arg("quant_max"), arg("quantizer_stride"), arg("gradient_scale"),
             arg("activation"), arg("bias"), arg("y") = 0, arg("grad") = 0, arg("grad_x") = 0,
             arg("grad_scale") = 0, arg("grad_zero_point") = 0, arg("grad_bias") = 0);
    py::class_<BatchNormLayer>(module, "BatchNormLayer", py::module_local())
        .def(py::init(&batch_norm_layer), arg("channels"), arg("mean"), arg("variance"),
             arg("running_mean"), arg("running_var"), arg("eps"), arg("grad_mean"),
             arg("grad_variance"));
}

template <class Backend>
py::module_ define_backend(py::module_& parent, const char* name) {
    py::module_ module = parent.def_submodule(name);
    define_fake_quantize<Backend>(module);
    define_lsq_fake_quantize<Backend>(module);
    define_update_min_max<Backend>(module);
    define_batch_norm_statistics<Backend>(module);
    define_frozen_batch_norm<Backend>(module);
    define_batch_norm_distance<Backend>(module);
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
        require(cpu::select_instruction_set(name.c_str()),
                "instruction set: expected avx512, avx2 or portable, where built and supported");
    });
}
#endif

#ifdef ZSCGAN_CUDA
void define_cuda(py::module_& parent) {
    py::module_ module = define_backend<Cuda>(parent, "cuda");
    module.def("reduction_workspace",
               [](const Sizes& sizes) { return cuda::reduction_workspace(shape_of(sizes)); });
    module.def("lsq_backward_workspace", [](int type, const std::vector<LsqTensor>& tensors) {
        return cuda::lsq_backward_workspace(lsq_backward_arguments(type, tensors));
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
        require(device >= 0 && device < emulation::device_count, "device: expected 0 or 1");
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
    module.doc() = "Kernels of zscgan_ext; called by zscgan_ext.ops only.";
    module.def("build_info", &zscgan::build_info);
    zscgan::define_structs(module);
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

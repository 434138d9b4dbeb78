// The Python module zscgan_ext._native: checks arguments, turns addresses into pointers and calls
// the CPU or CUDA kernels. Submodules `cpu` and `cuda` offer the same functions; their calls end
// with the number of threads, or with the device, stream and workspace of the launch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace py = pybind11;

namespace zscgan {
namespace {

using Address = uintptr_t;
using Sizes = std::array<int64_t, 3>;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

// What any tensor's memory can hold: larger numbers would overflow when they count bytes.
constexpr int64_t most_elements = INT64_MAX / 16;

DataType data_type(int code) {
    require(code >= 0 && code <= 3, "data type code: accepted are 0 to 3");
    return static_cast<DataType>(code);
}

Extent extent_of(const Sizes& sizes) {
    int64_t product = 1;
    for (int64_t size : sizes) {
        require(size >= 0, "extent: sizes must not be negative");
        require(size == 0 || product <= most_elements / size, "extent: too large");
        product *= size == 0 ? 1 : size;
    }
    return {sizes[0], sizes[1], sizes[2]};
}

QuantRange range_of(double quant_min, double quant_max) {
    require(quant_min < quant_max, "quant_min: must be below quant_max");
    return {quant_min, quant_max};
}

template <class T = void>
T* pointer(Address address, int64_t count, const char* name) {
    if (address == 0 && count > 0)
        throw std::invalid_argument(std::string(name) + ": null pointer");
    return reinterpret_cast<T*>(address);
}

// ---- where to run: threads of the CPU, or a stream of a GPU -------------------------------------

// A backend lists its kernels and calls them with what ends their arguments.
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

    using Where = std::tuple<int>;  // threads

    // OpenMP ends the process where it cannot start as many threads as it was told to.
    static constexpr int most_threads = 4096;

    static int threads(const Where& where) {
        const int threads = std::get<0>(where);
        require(threads >= 1 && threads <= most_threads, "threads: accepted are 1 to 4096");
        return threads;
    }

    static void require_workspace(const Where&) {}

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

    using Where = std::tuple<int, Address, Address>;  // device, stream, workspace

    static void require_workspace(const Where& where) {
        require(std::get<2>(where) != 0, "workspace: null pointer");
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
        const int before = cuda::current_device();
        check(cuda::set_device(device));
        const char* error = kernel(arguments..., launch);
        check(cuda::set_device(before));
        check(error);
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

// ---- lists of tensors ---------------------------------------------------------------------------

Activation activation_of(int code) {
    require(code >= 0 && code <= 2, "activation code: accepted are 0 to 2");
    return static_cast<Activation>(code);
}

// (extent, quant_min, quant_max, gradient_scale, activation, quantizer_stride, x, scale,
// zero_point, bias, y, grad, grad_x, grad_scale, grad_zero_point, grad_bias)
using LearnedArguments =
    std::tuple<Sizes, double, double, double, int, int64_t, Address, Address, Address, Address,
               Address, Address, Address, Address, Address, Address>;

std::vector<LearnedTensor> learned_tensors(const std::vector<LearnedArguments>& list,
                                           bool backward) {
    std::vector<LearnedTensor> tensors;
    tensors.reserve(list.size());
    for (const auto& [sizes, quant_min, quant_max, gradient_scale, activation, quantizer_stride, x,
                      scale, zero_point, bias, y, grad, grad_x, grad_scale, grad_zero_point,
                      grad_bias] : list) {
        const Extent extent = extent_of(sizes);
        const int64_t numel = extent.numel(), channels = extent.channels;
        require(quantizer_stride == 0 || quantizer_stride == 1,
                "quantizer_stride: accepted are 0 and 1");
        LearnedTensor tensor{};
        tensor.extent = extent;
        tensor.range = range_of(quant_min, quant_max);
        tensor.gradient_scale = gradient_scale;
        tensor.activation = activation_of(activation);
        tensor.quantizer_stride = quantizer_stride;
        tensor.x = pointer(x, numel, "x");
        tensor.scale = pointer(scale, channels, "scale");
        tensor.zero_point = pointer(zero_point, channels, "zero_point");
        tensor.bias = pointer(bias, 0, "bias");
        tensor.y = pointer(y, backward ? 0 : numel, "y");
        tensor.grad = pointer(grad, backward ? numel : 0, "grad");
        tensor.grad_x = pointer(grad_x, backward ? numel : 0, "grad_x");
        tensor.grad_scale = pointer(grad_scale, backward ? channels : 0, "grad_scale");
        tensor.grad_zero_point =
            pointer(grad_zero_point, backward ? channels : 0, "grad_zero_point");
        tensor.grad_bias = pointer(grad_bias, backward && bias ? channels : 0, "grad_bias");
        tensors.push_back(tensor);
    }
    return tensors;
}

// (channels, eps, mean, variance, running_mean, running_var, grad_mean, grad_variance)
using LayerArguments =
    std::tuple<int64_t, double, Address, Address, Address, Address, Address, Address>;

template <class Real>
std::vector<DistanceLayerOf<Real>> distance_layers(const std::vector<LayerArguments>& list) {
    require(!list.empty(), "layers: needed is at least one");
    std::vector<DistanceLayerOf<Real>> layers;
    layers.reserve(list.size());
    for (const auto& [channels, eps, mean, variance, running_mean, running_var, grad_mean,
                      grad_variance] : list) {
        require(channels > 0, "layers: channels must be positive");
        require(channels <= most_elements, "layers: too many channels");
        layers.push_back({channels, eps, pointer<const Real>(mean, 1, "mean"),
                          pointer<const Real>(variance, 1, "variance"),
                          pointer<const Real>(running_mean, 1, "running_mean"),
                          pointer<const Real>(running_var, 1, "running_var"),
                          pointer<Real>(grad_mean, 1, "grad_mean"),
                          pointer<Real>(grad_variance, 1, "grad_variance")});
    }
    return layers;
}

Distance distance_of(int code) {
    require(code >= 0 && code <= 3, "distance code: accepted are 0 to 3");
    return static_cast<Distance>(code);
}

// ---- frozen batch norm --------------------------------------------------------------------------

// Statistics are wanted where `mean` is given.
FrozenBatchNorm frozen_batch_norm(const Sizes& sizes, int activation, Address x, Address residual,
                                  Address multiplier, Address offset, Address shift, Address mean,
                                  Address variance, Address y) {
    const Extent e = extent_of(sizes);
    const int64_t counted = mean ? e.channels : 0;
    FrozenBatchNorm norm{};
    norm.extent = e;
    norm.activation = activation_of(activation);
    norm.x = pointer(x, e.numel(), "x");
    norm.residual = pointer(residual, 0, "residual");
    norm.multiplier = pointer(multiplier, e.channels, "multiplier");
    norm.offset = pointer(offset, e.channels, "offset");
    norm.shift = pointer(shift, counted, "shift");
    norm.mean = pointer(mean, counted, "mean");
    norm.variance = pointer(variance, counted, "variance");
    norm.y = pointer(y, e.numel(), "y");
    return norm;
}

FrozenBatchNormGradient frozen_batch_norm_gradient(const Sizes& sizes, int activation, Address grad,
                                                   Address x, Address y, Address multiplier,
                                                   Address offset, Address mean, Address grad_mean,
                                                   Address grad_variance, Address grad_x,
                                                   Address grad_residual) {
    const Extent e = extent_of(sizes);
    const int64_t counted = mean ? e.channels : 0;
    FrozenBatchNormGradient norm{};
    norm.extent = e;
    norm.activation = activation_of(activation);
    norm.grad = pointer(grad, e.numel(), "grad");
    norm.x = pointer(x, mean || !y ? e.numel() : 0, "x");
    norm.y = pointer(y, 0, "y");
    norm.multiplier = pointer(multiplier, e.channels, "multiplier");
    norm.offset = pointer(offset, e.channels, "offset");
    norm.mean = pointer(mean, counted, "mean");
    norm.grad_mean = pointer(grad_mean, counted, "grad_mean");
    norm.grad_variance = pointer(grad_variance, counted, "grad_variance");
    norm.grad_x = pointer(grad_x, e.numel(), "grad_x");
    norm.grad_residual = pointer(grad_residual, 0, "grad_residual");
    return norm;
}

// ---- the functions of both backends -------------------------------------------------------------

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
                   Backend::require_workspace(where);
                   Backend::call(where, Backend::fake_quantize_learned_backward, data_type(type),
                                 tensors.data(), static_cast<int64_t>(tensors.size()));
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
        Backend::require_workspace(where);
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
        Backend::require_workspace(where);
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
            Backend::require_workspace(where);
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
            if (mean) Backend::require_workspace(where);
            Backend::call(where, Backend::batch_norm_eval, data_type(type),
                          frozen_batch_norm(sizes, activation, x, residual, multiplier, offset,
                                            shift, mean, variance, y));
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
py::module_ define_backend(py::module_& parent, const char* name) {
    py::module_ module = parent.def_submodule(name);
    define_fake_quantize<Backend>(module);
    define_observe<Backend>(module);
    define_batch_norm_matching<Backend>(module);
    define_frozen_batch_norm<Backend>(module);
    return module;
}

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

PYBIND11_MODULE(_native, module) {
    module.doc() = "Kernels of zscgan_ext; called by zscgan_ext.ops alone.";
    module.def("build_info", &zscgan::build_info);
    zscgan::define_cpu(module);
#ifdef ZSCGAN_CUDA
    zscgan::define_cuda(module);
    module.def("cuda_unavailable_reason", &zscgan::cuda::unavailable_reason);
#else
    module.def("cuda_unavailable_reason", [] { return "the native core was built without CUDA"; });
#endif
}

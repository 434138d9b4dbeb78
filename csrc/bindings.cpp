// The Python module zscgan_ext._native: checks arguments, turns addresses into pointers and calls
// the CPU or CUDA kernels. Submodules `cpu` and `cuda` offer the same functions; they end with the
// number of threads, or with the device, stream and workspace of the launch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
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

DataType data_type(int code) {
    require(code >= 0 && code <= 3, "data type code: accepted are 0 to 3");
    return static_cast<DataType>(code);
}

Extent extent_of(const Sizes& sizes) {
    int64_t product = 1;
    for (int64_t size : sizes) {
        require(size >= 0, "extent: sizes must not be negative");
        require(size == 0 || product <= INT64_MAX / 16 / size, "extent: too large");
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
    if (address == 0 && count > 0) throw std::invalid_argument(std::string(name) + ": null pointer");
    return reinterpret_cast<T*>(address);
}

// ---- where to run: threads of the CPU, or a stream of a GPU -------------------------------------

struct CpuPlace {
    int threads;

    explicit CpuPlace(int count) : threads(count) { require(count >= 1, "threads: must be positive"); }
};

#ifdef ZSCGAN_CUDA
struct CudaPlace {
    cuda::Launch launch;

    CudaPlace(int device, Address stream, Address workspace)
        : launch{reinterpret_cast<void*>(stream), reinterpret_cast<void*>(workspace)} {
        check(cuda::set_device(device));
    }
    static void check(const char* error) {
        if (error) throw std::runtime_error(std::string("CUDA: ") + error);
    }
};
#endif

// ---- lists of tensors ---------------------------------------------------------------------------

// (extent, quant_min, quant_max, gradient_scale, x, scale, zero_point, y, grad, grad_x, grad_scale,
// grad_zero_point)
using LearnedArguments = std::tuple<Sizes, double, double, double, Address, Address, Address, Address,
                                    Address, Address, Address, Address>;

std::vector<LearnedTensor> learned_tensors(const std::vector<LearnedArguments>& list, bool backward) {
    std::vector<LearnedTensor> tensors;
    tensors.reserve(list.size());
    for (const auto& [sizes, quant_min, quant_max, gradient_scale, x, scale, zero_point, y, grad,
                      grad_x, grad_scale, grad_zero_point] : list) {
        const Extent extent = extent_of(sizes);
        const int64_t numel = extent.numel(), channels = extent.channels;
        LearnedTensor tensor{};
        tensor.extent = extent;
        tensor.range = range_of(quant_min, quant_max);
        tensor.gradient_scale = gradient_scale;
        tensor.x = pointer(x, numel, "x");
        tensor.scale = pointer(scale, channels, "scale");
        tensor.zero_point = pointer(zero_point, channels, "zero_point");
        tensor.y = pointer(y, backward ? 0 : numel, "y");
        tensor.grad = pointer(grad, backward ? numel : 0, "grad");
        tensor.grad_x = pointer(grad_x, backward ? numel : 0, "grad_x");
        tensor.grad_scale = pointer(grad_scale, backward ? channels : 0, "grad_scale");
        tensor.grad_zero_point = pointer(grad_zero_point, backward ? channels : 0, "grad_zero_point");
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

ObserverState observer_state(const Extent& extent, double quant_min, double quant_max,
                             double averaging_constant, bool symmetric, Address running_min,
                             Address running_max, Address scale, Address zero_point) {
    const int64_t channels = extent.channels;
    return {pointer<float>(running_min, channels, "running_min"),
            pointer<float>(running_max, channels, "running_max"),
            pointer<float>(scale, channels, "scale"),
            pointer<float>(zero_point, channels, "zero_point"),
            averaging_constant,
            range_of(quant_min, quant_max),
            symmetric};
}

// ---- the CPU's functions ------------------------------------------------------------------------

void define_cpu(py::module_ module) {
    using py::gil_scoped_release;
    module.def("instruction_set", &cpu::instruction_set);
    module.def("select_instruction_set", [](const std::string& name) {
        require(cpu::select_instruction_set(name.c_str()),
                "instruction set: accepted are avx512, avx2 and portable, where built and supported");
    });
    module.def("fake_quantize", [](int type, Sizes sizes, double quant_min, double quant_max,
                                   Address x, Address scale, Address zero_point, Address y,
                                   Address mask, int threads) {
        const Extent e = extent_of(sizes);
        const int64_t n = e.numel();
        const CpuPlace place(threads);
        gil_scoped_release release;
        cpu::fake_quantize(data_type(type), e, range_of(quant_min, quant_max), pointer(x, n, "x"),
                           pointer(scale, e.channels, "scale"),
                           pointer(zero_point, e.channels, "zero_point"), pointer(y, n, "y"),
                           reinterpret_cast<uint8_t*>(mask), place.threads);
    });
    module.def("fake_quantize_backward", [](int type, int64_t numel, Address grad, Address mask,
                                            Address grad_x, int threads) {
        require(numel >= 0, "numel: must not be negative");
        const CpuPlace place(threads);
        gil_scoped_release release;
        cpu::fake_quantize_backward(data_type(type), numel, pointer(grad, numel, "grad"),
                                    pointer<uint8_t>(mask, numel, "mask"),
                                    pointer(grad_x, numel, "grad_x"), place.threads);
    });
    module.def("fake_quantize_learned",
               [](int type, const std::vector<LearnedArguments>& list, int threads) {
                   const auto tensors = learned_tensors(list, false);
                   const CpuPlace place(threads);
                   gil_scoped_release release;
                   cpu::fake_quantize_learned(data_type(type), tensors.data(),
                                              static_cast<int64_t>(tensors.size()), place.threads);
               });
    module.def("fake_quantize_learned_backward",
               [](int type, const std::vector<LearnedArguments>& list, int threads) {
                   const auto tensors = learned_tensors(list, true);
                   const CpuPlace place(threads);
                   gil_scoped_release release;
                   cpu::fake_quantize_learned_backward(data_type(type), tensors.data(),
                                                       static_cast<int64_t>(tensors.size()),
                                                       place.threads);
               });
    module.def("observe", [](int type, Sizes sizes, Address x, double quant_min, double quant_max,
                             double averaging_constant, bool symmetric, Address running_min,
                             Address running_max, Address scale, Address zero_point, int threads) {
        const Extent e = extent_of(sizes);
        const ObserverState state =
            observer_state(e, quant_min, quant_max, averaging_constant, symmetric, running_min,
                           running_max, scale, zero_point);
        const CpuPlace place(threads);
        gil_scoped_release release;
        cpu::observe(data_type(type), e, pointer(x, e.numel(), "x"), state, place.threads);
    });
    module.def("batch_norm_statistics", [](int type, Sizes sizes, Address x, Address shift,
                                           Address mean, Address variance, int threads) {
        const Extent e = extent_of(sizes);
        const CpuPlace place(threads);
        gil_scoped_release release;
        cpu::batch_norm_statistics(data_type(type), e, pointer(x, e.numel(), "x"),
                                   pointer(shift, e.channels, "shift"),
                                   pointer(mean, e.channels, "mean"),
                                   pointer(variance, e.channels, "variance"), place.threads);
    });
    module.def("batch_norm_statistics_backward",
               [](int type, Sizes sizes, Address x, Address mean, Address grad_mean,
                  Address grad_variance, Address grad_x, int threads) {
                   const Extent e = extent_of(sizes);
                   const CpuPlace place(threads);
                   gil_scoped_release release;
                   cpu::batch_norm_statistics_backward(
                       data_type(type), e, pointer(x, e.numel(), "x"),
                       pointer(mean, e.channels, "mean"), pointer(grad_mean, e.channels, "grad_mean"),
                       pointer(grad_variance, e.channels, "grad_variance"),
                       pointer(grad_x, e.numel(), "grad_x"), place.threads);
               });
    module.def("batch_norm_distance", [](int distance, int type,
                                         const std::vector<LayerArguments>& list, Address result,
                                         int threads) {
        const CpuPlace place(threads);
        if (data_type(type) == DataType::float64) {
            const auto layers = distance_layers<double>(list);
            cpu::batch_norm_distance(distance_of(distance), layers.data(),
                                     static_cast<int64_t>(layers.size()),
                                     pointer<double>(result, 1, "result"));
            return;
        }
        const auto layers = distance_layers<float>(list);
        cpu::batch_norm_distance(distance_of(distance), layers.data(),
                                 static_cast<int64_t>(layers.size()),
                                 pointer<float>(result, 1, "result"));
    });
}

}  // namespace
}  // namespace zscgan

PYBIND11_MODULE(_native, module) {
    module.doc() = "Kernels of zscgan_ext; called by zscgan_ext.ops alone.";
    zscgan::define_cpu(module.def_submodule("cpu"));
}

// Chooses the kernels of the best instruction set that this machine and this build have.
#include <cstring>
#include <initializer_list>

#include "../kernels.h"
#include "kernel_set.h"

namespace zscgan::cpu {

#ifdef ZSCGAN_X86
namespace avx512 {
extern const KernelSet kernel_set;
}
namespace avx2 {
extern const KernelSet kernel_set;
}
#endif
namespace portable {
extern const KernelSet kernel_set;
}

namespace {

const KernelSet* available(const char* name) {
    if (!std::strcmp(name, "portable")) return &portable::kernel_set;
#ifdef ZSCGAN_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!std::strcmp(name, "avx512") && has_avx512) return &avx512::kernel_set;
    if (!std::strcmp(name, "avx2") && has_avx2) return &avx2::kernel_set;
#endif
    return nullptr;
}

const KernelSet* best() {
    for (const char* name : {"avx512", "avx2"}) {
        if (const KernelSet* set = available(name)) return set;
    }
    return available("portable");
}

const KernelSet* chosen = best();

}  // namespace

const char* instruction_set() { return chosen->name; }

bool has_instruction_set(const char* name) { return available(name) != nullptr; }

bool select_instruction_set(const char* name) {
    const KernelSet* set = available(name);
    if (set) chosen = set;
    return set != nullptr;
}

void fake_quantize(DataType type, Extent extent, QuantRange range, const void* x, const void* scale,
                   const void* zero_point, void* y, uint8_t* mask, int threads) {
    chosen->fake_quantize(type, extent, range, x, scale, zero_point, y, mask, threads);
}

void fake_quantize_backward(DataType type, int64_t numel, const void* grad, const uint8_t* mask,
                            void* grad_x, int threads) {
    chosen->fake_quantize_backward(type, numel, grad, mask, grad_x, threads);
}

void fake_quantize_learned(DataType type, const LearnedTensor* tensors, int64_t count,
                           int threads) {
    chosen->fake_quantize_learned(type, tensors, count, threads);
}

void fake_quantize_learned_backward(DataType type, const LearnedTensor* tensors, int64_t count,
                                    int threads) {
    chosen->fake_quantize_learned_backward(type, tensors, count, threads);
}

void observe(DataType type, Extent extent, const void* x, const ObserverState& state, int threads) {
    chosen->observe(type, extent, x, state, threads);
}

void batch_norm_statistics(DataType type, Extent extent, const void* x, const void* shift,
                           void* mean, void* variance, int threads) {
    chosen->batch_norm_statistics(type, extent, x, shift, mean, variance, threads);
}

void batch_norm_statistics_backward(DataType type, Extent extent, const void* x, const void* mean,
                                    const void* grad_mean, const void* grad_variance, void* grad_x,
                                    int threads) {
    chosen->batch_norm_statistics_backward(type, extent, x, mean, grad_mean, grad_variance, grad_x,
                                           threads);
}

void batch_norm_eval(DataType type, const FrozenBatchNorm& norm, int threads) {
    chosen->batch_norm_eval(type, norm, threads);
}

void batch_norm_eval_backward(DataType type, const FrozenBatchNormGradient& norm, int threads) {
    chosen->batch_norm_eval_backward(type, norm, threads);
}

void noisy_batch_norm(DataType type, const NoisyBatchNorm& norm, int threads) {
    chosen->noisy_batch_norm(type, norm, threads);
}

void noisy_batch_norm_sums(DataType type, const NoisyBatchNormGradient& norm, int threads) {
    chosen->noisy_batch_norm_sums(type, norm, threads);
}

void noisy_batch_norm_backward(DataType type, const NoisyBatchNormGradient& norm, int threads) {
    chosen->noisy_batch_norm_backward(type, norm, threads);
}

}  // namespace zscgan::cpu

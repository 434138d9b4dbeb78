// The kernels of one instruction set, as the table that dispatch.cpp chooses from.
#pragma once

#include "../kernels.h"

namespace zscgan::cpu {

struct KernelSet {
    const char* name;
    decltype(&cpu::fake_quantize) fake_quantize;
    decltype(&cpu::fake_quantize_backward) fake_quantize_backward;
    decltype(&cpu::fake_quantize_learned) fake_quantize_learned;
    decltype(&cpu::fake_quantize_learned_backward) fake_quantize_learned_backward;
    decltype(&cpu::observe) observe;
    decltype(&cpu::batch_norm_statistics) batch_norm_statistics;
    decltype(&cpu::batch_norm_statistics_backward) batch_norm_statistics_backward;
    decltype(&cpu::batch_norm_eval) batch_norm_eval;
    decltype(&cpu::batch_norm_eval_backward) batch_norm_eval_backward;
    decltype(&cpu::noisy_batch_norm) noisy_batch_norm;
    decltype(&cpu::noisy_batch_norm_sums) noisy_batch_norm_sums;
    decltype(&cpu::noisy_batch_norm_backward) noisy_batch_norm_backward;
};

#ifdef ZSCGAN_ISA
namespace ZSCGAN_ISA {

extern const KernelSet kernel_set;

// The declarations of kernels.h, once more inside the instruction set's namespace.
void fake_quantize(DataType, Extent, QuantRange, const void* x, const void* scale,
                   const void* zero_point, void* y, uint8_t* mask, int threads);
void fake_quantize_backward(DataType, int64_t numel, const void* grad, const uint8_t* mask,
                            void* grad_x, int threads);
void fake_quantize_learned(DataType, const LearnedTensor* tensors, int64_t count, int threads);
void fake_quantize_learned_backward(DataType, const LearnedTensor* tensors, int64_t count,
                                    int threads);
void observe(DataType, Extent, const void* x, const ObserverState&, int threads);
void batch_norm_statistics(DataType, Extent, const void* x, const void* shift, void* mean,
                           void* variance, int threads);
void batch_norm_statistics_backward(DataType, Extent, const void* x, const void* mean,
                                    const void* grad_mean, const void* grad_variance, void* grad_x,
                                    int threads);
void batch_norm_eval(DataType, const FrozenBatchNorm&, int threads);
void batch_norm_eval_backward(DataType, const FrozenBatchNormGradient&, int threads);
void noisy_batch_norm(DataType, const NoisyBatchNorm&, int threads);
void noisy_batch_norm_sums(DataType, const NoisyBatchNormGradient&, int threads);
void noisy_batch_norm_backward(DataType, const NoisyBatchNormGradient&, int threads);

}  // namespace ZSCGAN_ISA
#endif

}  // namespace zscgan::cpu

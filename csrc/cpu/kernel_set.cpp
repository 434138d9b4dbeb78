#include "kernel_set.h"

#define ZSCGAN_NAME_OF(isa) #isa
#define ZSCGAN_NAME(isa) ZSCGAN_NAME_OF(isa)

namespace zscgan::cpu::ZSCGAN_ISA {

const KernelSet kernel_set = {
    ZSCGAN_NAME(ZSCGAN_ISA),
    &fake_quantize,
    &fake_quantize_backward,
    &fake_quantize_learned,
    &fake_quantize_learned_backward,
    &observe,
    &batch_norm_statistics,
    &batch_norm_statistics_backward,
    &batch_norm_eval,
    &batch_norm_eval_backward,
    &noisy_batch_norm,
    &noisy_batch_norm_sums,
    &noisy_batch_norm_backward,
};

}  // namespace zscgan::cpu::ZSCGAN_ISA

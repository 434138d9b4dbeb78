#include "kernel_set.h"

#define ZSCGAN_NAME_OF(isa) #isa
#define ZSCGAN_NAME(isa) ZSCGAN_NAME_OF(isa)

namespace zscgan::cpu::ZSCGAN_ISA {

const KernelSet kernel_set = {ZSCGAN_NAME(ZSCGAN_ISA),
#define ZSCGAN_ADDRESS(name, Arguments) &name,
                              ZSCGAN_FOR_EACH_KERNEL(ZSCGAN_ADDRESS)
#undef ZSCGAN_ADDRESS
};

}  // namespace zscgan::cpu::ZSCGAN_ISA

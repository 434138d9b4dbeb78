// The kernels of one instruction set, as the table that dispatch.cpp chooses from.
#pragma once

#include "../kernels.h"

namespace zscgan::cpu {

struct KernelSet {
    const char* instruction_set;
#define ZSCGAN_MEMBER(name, Arguments) decltype(&cpu::name) name;
    ZSCGAN_FOR_EACH_KERNEL(ZSCGAN_MEMBER)
#undef ZSCGAN_MEMBER
};

#ifdef ZSCGAN_ISA
namespace ZSCGAN_ISA {

extern const KernelSet kernel_set;

// The declarations of kernels.h, once more inside the instruction set's namespace.
#define ZSCGAN_DECLARATION(name, Arguments) void name(const Arguments&, int threads);
ZSCGAN_FOR_EACH_KERNEL(ZSCGAN_DECLARATION)
#undef ZSCGAN_DECLARATION

}  // namespace ZSCGAN_ISA
#endif

}  // namespace zscgan::cpu

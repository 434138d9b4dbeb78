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

const char* instruction_set() { return chosen->instruction_set; }

bool has_instruction_set(const char* name) { return available(name) != nullptr; }

bool select_instruction_set(const char* name) {
    const KernelSet* set = available(name);
    if (set) chosen = set;
    return set != nullptr;
}

#define ZSCGAN_DISPATCH(name, Arguments) \
    void name(const Arguments& arguments, int threads) { chosen->name(arguments, threads); }
ZSCGAN_FOR_EACH_KERNEL(ZSCGAN_DISPATCH)
#undef ZSCGAN_DISPATCH

}  // namespace zscgan::cpu

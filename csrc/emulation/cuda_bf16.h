// bfloat16 of CUDA in host arithmetic.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16 {
    uint16_t bits;
};
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

namespace zscgan::emulation {

// To nearest, ties to even.
inline __nv_bfloat16 narrow_to_bfloat16(float value) {
    if (value != value) return {0x7fff};
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

}  // namespace zscgan::emulation

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {zscgan::emulation::narrow_to_bfloat16(x), zscgan::emulation::narrow_to_bfloat16(y)};
}

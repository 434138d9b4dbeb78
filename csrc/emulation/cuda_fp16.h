// Half precision of CUDA in host arithmetic: only conversions, which are all that the kernels use.
#pragma once

#include "cuda_runtime.h"

struct __half {
    uint16_t bits;
};
struct __half2 {
    __half x, y;
};

namespace zscgan::emulation {

inline float widen(__half half) {
    const int exponent = half.bits >> 10 & 31;
    const int fraction = half.bits & 1023;
    float magnitude = exponent == 0
                          ? std::ldexp(static_cast<float>(fraction), -24)
                          : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
    return half.bits >> 15 ? -magnitude : magnitude;
}

// To nearest, ties to even.
inline __half narrow_to_half(float value) {
    const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
    if (value != value) return {0x7fff};
    if (value == 0) return {sign};
    const float magnitude = std::fabs(value);
    if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
    int exponent = 0;
    std::frexp(magnitude, &exponent);  // magnitude < 2^exponent
    const int unit = exponent - 11 < -24 ? -24 : exponent - 11;
    const int count = static_cast<int>(std::rint(std::ldexp(magnitude, -unit)));
    // With unit -24 a count of 1024 is the smallest normal number; 2048 is the next exponent.
    return {static_cast<uint16_t>(sign | (((unit + 24) << 10) + count))};
}

}  // namespace zscgan::emulation

inline float2 __half22float2(__half2 pair) {
    return {zscgan::emulation::widen(pair.x), zscgan::emulation::widen(pair.y)};
}
inline __half2 __floats2half2_rn(float x, float y) {
    return {zscgan::emulation::narrow_to_half(x), zscgan::emulation::narrow_to_half(y)};
}

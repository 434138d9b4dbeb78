// Standard normal numbers that depend on a seed and their place alone, so that nothing has to be
// stored to draw them again: Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as
// 1, 2, 3", SC 2011) and the Box-Muller transform of the halves of its words.
//
// Eight neighbouring elements take their numbers from one block of Philox, whose counter is that of
// such groups before it. Every operation rounds once and in a fixed order: the numbers have the same
// bits on every processor.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "quant_math.h"

namespace zscgan {

constexpr int numbers_per_block = 8;
constexpr int words_per_block = numbers_per_block / 2;

constexpr int philox_rounds = 10;
constexpr uint32_t philox_multiplier_0 = 0xD2511F53u;
constexpr uint32_t philox_multiplier_2 = 0xCD9E8D57u;

// The key of a round, which changes from one to the next.
struct PhiloxKey {
    uint32_t low;
    uint32_t high;

    ZSCGAN_INLINE explicit PhiloxKey(uint64_t seed)
        : low(static_cast<uint32_t>(seed)), high(static_cast<uint32_t>(seed >> 32)) {}
    ZSCGAN_INLINE void advance() {
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
};

// The block of a counter, whose upper 64 bits are zero.
ZSCGAN_INLINE void philox(uint64_t seed, uint64_t counter, uint32_t (&words)[words_per_block]) {
    uint32_t a = static_cast<uint32_t>(counter), b = static_cast<uint32_t>(counter >> 32);
    uint32_t c = 0, d = 0;
    PhiloxKey key(seed);
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int round = 0; round < philox_rounds; ++round, key.advance()) {
        const uint64_t first = static_cast<uint64_t>(philox_multiplier_0) * a;
        const uint64_t second = static_cast<uint64_t>(philox_multiplier_2) * c;
        a = static_cast<uint32_t>(second >> 32) ^ b ^ key.low;
        c = static_cast<uint32_t>(first >> 32) ^ d ^ key.high;
        b = static_cast<uint32_t>(second);
        d = static_cast<uint32_t>(first);
    }
    words[0] = a;
    words[1] = b;
    words[2] = c;
    words[3] = d;
}

ZSCGAN_INLINE float float_of_bits(uint32_t bits) {
    float result;
    memcpy(&result, &bits, sizeof(result));
    return result;
}
ZSCGAN_INLINE uint32_t bits_of_float(float value) {
    uint32_t result;
    memcpy(&result, &value, sizeof(result));
    return result;
}

// The natural logarithm of a normal positive number, with a relative error of 2e-6.
ZSCGAN_INLINE float natural_logarithm(float x) {
    // x = 2^exponent (1 + f) with f from -0.29 to 0.42
    const uint32_t shifted = bits_of_float(x) - 0x3f3504f3u;  // the bits of sqrt(1/2)
    const int32_t exponent = static_cast<int32_t>(shifted) >> 23;
    const float f = float_of_bits((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    const float square = f * f;
    float p = 1.2085285438e-1f;
    p = p * f - 1.8484226553e-1f;
    p = p * f + 2.0398901584e-1f;
    p = p * f - 2.4937617605e-1f;
    p = p * f + 3.3322458160e-1f;
    const float remainder = p * f * square - 0.5f * square + f;
    return static_cast<float>(exponent) * 0.693147180559945f + remainder;
}

struct NormalPair {
    float first;
    float second;
};

// Two independent normal numbers from 32 bits: the upper 16 give the radius, the lower the angle.
// No number is larger than 4.9.
ZSCGAN_INLINE NormalPair box_muller(uint32_t bits) {
    const float uniform = static_cast<float>(static_cast<int32_t>(bits >> 16 << 1 | 1u)) *
                          7.62939453125e-6f;  // 2^-17
    const float radius = sqrtf(-2.0f * natural_logarithm(uniform));
    // An angle between -pi/4 and pi/4, and one of four quadrants.
    const int32_t eighths = static_cast<int32_t>((bits & 0x3fffu) << 1 | 1u) - 0x4000;
    const float angle = static_cast<float>(eighths) * 4.7936899621426287e-5f;  // pi / 2^16
    const float square = angle * angle;
    const float sine = (8.1646086733e-3f * square - 1.6663458531e-1f) * square * angle + angle;
    const float cosine =
        (4.1661278619e-2f - 1.3652450089e-3f * square) * square * square - 0.5f * square + 1.0f;
    const float signed_radius = float_of_bits(bits_of_float(radius) ^ (bits << 16 & 0x80000000u));
    const bool swapped = (bits & 0x4000u) != 0;
    return {signed_radius * (swapped ? sine : cosine), signed_radius * (swapped ? cosine : sine)};
}

}  // namespace zscgan

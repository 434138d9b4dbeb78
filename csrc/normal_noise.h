// Nearly normal numbers that depend on a seed and their place alone, so that nothing has to be
// stored to draw them again. A block of Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As
// Easy as 1, 2, 3", SC 2011) has sixteen bytes, for as many numbers. A byte becomes an odd cubic of
// its value, whose mean is 0 and whose fourth moment is that of a normal number; sums of eight of
// these, with the signs of the rows of a Hadamard matrix, are eight numbers. They are uncorrelated,
// and all their moments up to the fifth, joint ones too, are those of independent normal numbers;
// the distribution function of one is nowhere more than 2.1e-4 from the normal one.
//
// All of this is computed in integers of 16 bits: the numbers are the same on every processor.
#pragma once

#include <cstdint>

#include "quant_math.h"

namespace zscgan {

// The standard deviation of the numbers.
constexpr double noise_deviation = 4842.275175472786;

// Eight neighbouring elements, a vector, take the numbers of half a block. Of eight vectors the
// first four take the first halves of four blocks, the others the second ones.
constexpr int numbers_per_vector = 8;
constexpr int vectors_per_group = 8, blocks_per_group = 4;
constexpr int numbers_per_group = numbers_per_vector * vectors_per_group;
constexpr int words_per_block = 4;

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

// The cubic of b = 2 byte + 1, an odd number from -255 to 255, is b (1040 + 3029 b^2 / 2^16) / 2^8
// but for rounding.
constexpr int noise_linear = 1040, noise_cubic = 3029;

// A product of fractions with 15 bits after the point, rounded.
ZSCGAN_INLINE int fraction_product(int a, int b) { return (a * b + 0x4000) >> 15; }

// The cubic of a byte, which is taken as a signed one.
ZSCGAN_INLINE int cubic_of_byte(uint32_t byte) {
    const int centered = static_cast<int>(byte ^ 0x80u) * 256 - 0x8000 + 0x80;
    const int square = fraction_product(centered, centered);
    return fraction_product(centered, noise_linear + fraction_product(square, noise_cubic));
}

// The numbers of the elements of a vector, in units of 1 / noise_deviation.
ZSCGAN_INLINE void vector_noise(const uint32_t (&words)[words_per_block], int half,
                                int (&numbers)[numbers_per_vector]) {
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int i = 0; i < words_per_block; ++i) {
        const uint32_t bytes = words[i] >> (16 * half);
        numbers[2 * i] = cubic_of_byte(bytes & 0xffu);
        numbers[2 * i + 1] = cubic_of_byte(bytes >> 8 & 0xffu);
    }
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int stride = 1; stride < numbers_per_vector; stride *= 2) {
#ifdef __CUDACC__
#pragma unroll
#endif
        for (int i = 0; i < numbers_per_vector; ++i) {
            if (i & stride) continue;
            const int first = numbers[i], second = numbers[i + stride];
            numbers[i] = first + second;
            numbers[i + stride] = first - second;
        }
    }
}

// Where a vector, by its index, finds its numbers.
ZSCGAN_INLINE uint64_t block_of_vector(uint64_t vector) {
    return vector / vectors_per_group * blocks_per_group + vector % blocks_per_group;
}
ZSCGAN_INLINE int half_of_vector(uint64_t vector) {
    return static_cast<int>(vector / blocks_per_group & 1);
}

}  // namespace zscgan

// Many normal numbers at a time, with the bits of ../normal_noise.h.
#pragma once

#include <algorithm>

#include "../normal_noise.h"
#include "simd.h"

namespace zscgan::cpu::ZSCGAN_ISA {

#if defined(__AVX512F__)
// Philox on lanes of 64 bits: a multiplication reads the lower half of a lane and fills all of it.
struct PhiloxVector {
    static constexpr int blocks = 8;
    __m512i value;

    static PhiloxVector broadcast(uint32_t x) { return {_mm512_set1_epi64(x)}; }
    // Counters in the order that `store` needs.
    static PhiloxVector counters(uint64_t first) {
        const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
        return {_mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(first)), order)};
    }
    static void store(PhiloxVector a, PhiloxVector b, PhiloxVector c, PhiloxVector d,
                      uint32_t* words) {
        const __m512i ab = joined(a.value, b.value), cd = joined(c.value, d.value);
        _mm512_storeu_si512(words, _mm512_unpacklo_epi64(ab, cd));
        _mm512_storeu_si512(words + 16, _mm512_unpackhi_epi64(ab, cd));
    }
    PhiloxVector upper() const { return {_mm512_srli_epi64(value, 32)}; }
    friend PhiloxVector operator*(PhiloxVector a, PhiloxVector b) {
        return {_mm512_mul_epu32(a.value, b.value)};
    }
    friend PhiloxVector operator^(PhiloxVector a, PhiloxVector b) {
        return {_mm512_xor_si512(a.value, b.value)};
    }

private:
    static __m512i joined(__m512i low, __m512i high) {
        return _mm512_mask_shuffle_epi32(low, 0xaaaa, high, _MM_PERM_CCAA);
    }
};
#elif defined(__AVX2__)
struct PhiloxVector {
    static constexpr int blocks = 4;
    __m256i value;

    static PhiloxVector broadcast(uint32_t x) { return {_mm256_set1_epi64x(x)}; }
    static PhiloxVector counters(uint64_t first) {
        const __m256i order = _mm256_setr_epi64x(0, 2, 1, 3);
        return {_mm256_add_epi64(_mm256_set1_epi64x(static_cast<int64_t>(first)), order)};
    }
    static void store(PhiloxVector a, PhiloxVector b, PhiloxVector c, PhiloxVector d,
                      uint32_t* words) {
        const __m256i ab = joined(a.value, b.value), cd = joined(c.value, d.value);
        auto* target = reinterpret_cast<__m256i*>(words);
        _mm256_storeu_si256(target, _mm256_unpacklo_epi64(ab, cd));
        _mm256_storeu_si256(target + 1, _mm256_unpackhi_epi64(ab, cd));
    }
    PhiloxVector upper() const { return {_mm256_srli_epi64(value, 32)}; }
    friend PhiloxVector operator*(PhiloxVector a, PhiloxVector b) {
        return {_mm256_mul_epu32(a.value, b.value)};
    }
    friend PhiloxVector operator^(PhiloxVector a, PhiloxVector b) {
        return {_mm256_xor_si256(a.value, b.value)};
    }

private:
    static __m256i joined(__m256i low, __m256i high) {
        return _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xaa);
    }
};
#else
struct PhiloxVector {
    static constexpr int blocks = 1;
    uint64_t value;

    static PhiloxVector broadcast(uint32_t x) { return {x}; }
    static PhiloxVector counters(uint64_t first) { return {first}; }
    static void store(PhiloxVector a, PhiloxVector b, PhiloxVector c, PhiloxVector d,
                      uint32_t* words) {
        for (PhiloxVector each : {a, b, c, d}) *words++ = static_cast<uint32_t>(each.value);
    }
    PhiloxVector upper() const { return {value >> 32}; }
    friend PhiloxVector operator*(PhiloxVector a, PhiloxVector b) {
        return {(a.value & 0xffffffffu) * b.value};
    }
    friend PhiloxVector operator^(PhiloxVector a, PhiloxVector b) { return {a.value ^ b.value}; }
};
#endif

// The standard normal numbers of consecutive elements, drawn a few hundred at a time.
class NoiseReader {
public:
    explicit NoiseReader(uint64_t seed) : seed_(seed) {}

    // n <= 16 numbers from a position on, which does not decrease from call to call.
    ZSCGAN_INLINE const float* at(int64_t position, int n) {
        if (position + n > end_) fill(position / numbers_per_block);
        return numbers_ + (position - begin_);
    }

private:
    static constexpr int blocks = 64;

    void fill(int64_t first_block) {
        alignas(64) uint32_t words[blocks * words_per_block];
        for (int i = 0; i < blocks; i += PhiloxVector::blocks) {
            draw_words(static_cast<uint64_t>(first_block + i), words + i * words_per_block);
        }
        for (int i = 0; i < blocks * words_per_block; ++i) {
            const NormalPair pair = box_muller(words[i]);
            numbers_[2 * i] = pair.first;
            numbers_[2 * i + 1] = pair.second;
        }
        begin_ = first_block * numbers_per_block;
        end_ = begin_ + blocks * numbers_per_block;
    }

    void draw_words(uint64_t first, uint32_t* words) const {
        using V = PhiloxVector;
        V a = V::counters(first), b = a.upper(), c = V::broadcast(0), d = c;
        PhiloxKey key(seed_);
        for (int round = 0; round < philox_rounds; ++round, key.advance()) {
            const V first_product = a * V::broadcast(philox_multiplier_0);
            const V second_product = c * V::broadcast(philox_multiplier_2);
            a = second_product.upper() ^ b ^ V::broadcast(key.low);
            c = first_product.upper() ^ d ^ V::broadcast(key.high);
            b = second_product;
            d = first_product;
        }
        V::store(a, b, c, d, words);
    }

    uint64_t seed_;
    int64_t begin_ = 0, end_ = 0;
    alignas(64) float numbers_[blocks * numbers_per_block];
};

}  // namespace zscgan::cpu::ZSCGAN_ISA

// Many numbers of ../normal_noise.h at a time.
#pragma once

#include <algorithm>

#include "../normal_noise.h"
#include "simd.h"

namespace zscgan::cpu::ZSCGAN_ISA {

#if defined(__AVX512F__) || defined(__AVX2__)

#if defined(__AVX512F__)
// A register of integers of any width.
struct Integers {
    static constexpr int bytes = 64;
    __m512i value;

    static Integers broadcast64(uint64_t x) { return {_mm512_set1_epi64(static_cast<int64_t>(x))}; }
    static Integers broadcast16(int x) { return {_mm512_set1_epi16(static_cast<int16_t>(x))}; }
    // first + offsets, in lanes of 64 bits
    static Integers counters(uint64_t first, const int64_t* offsets) {
        return {_mm512_add_epi64(broadcast64(first).value, _mm512_loadu_si512(offsets))};
    }
    void store(int16_t* target) const { _mm512_storeu_si512(target, value); }

    Integers upper_words() const { return {_mm512_srli_epi64(value, 32)}; }
    friend Integers product64(Integers a, Integers b) {
        return {_mm512_mul_epu32(a.value, b.value)};
    }
    friend Integers exclusive_or(Integers a, Integers b, Integers c) {
        return {_mm512_ternarylogic_epi64(a.value, b.value, c.value, 0x96)};
    }
    // The lower words of both, those of `high` in the upper halves of the lanes.
    friend Integers joined(Integers low, Integers high) {
        return {_mm512_mask_shuffle_epi32(low.value, 0xaaaa, high.value, _MM_PERM_CCAA)};
    }
    // The lower and the upper bytes of lanes of 16 bits as fractions, with half a unit added.
    Integers lower_bytes() const {
        return {_mm512_or_si512(_mm512_slli_epi16(value, 8), _mm512_set1_epi16(0x80))};
    }
    Integers upper_bytes() const {
        const __m512i upper = _mm512_set1_epi16(static_cast<int16_t>(0xff00));
        return {_mm512_ternarylogic_epi64(value, upper, _mm512_set1_epi16(0x80), 0xea)};
    }
    friend Integers fraction_product(Integers a, Integers b) {
        return {_mm512_mulhrs_epi16(a.value, b.value)};
    }
    friend Integers operator+(Integers a, Integers b) {
        return {_mm512_add_epi16(a.value, b.value)};
    }
    friend Integers operator-(Integers a, Integers b) {
        return {_mm512_sub_epi16(a.value, b.value)};
    }
    friend void interleave16(Integers& a, Integers& b) {
        const __m512i low = _mm512_unpacklo_epi16(a.value, b.value);
        b.value = _mm512_unpackhi_epi16(a.value, b.value);
        a.value = low;
    }
    friend void interleave32(Integers& a, Integers& b) {
        const __m512i low = _mm512_unpacklo_epi32(a.value, b.value);
        b.value = _mm512_unpackhi_epi32(a.value, b.value);
        a.value = low;
    }
    friend void interleave64(Integers& a, Integers& b) {
        const __m512i low = _mm512_unpacklo_epi64(a.value, b.value);
        b.value = _mm512_unpackhi_epi64(a.value, b.value);
        a.value = low;
    }
};
#else
struct Integers {
    static constexpr int bytes = 32;
    __m256i value;

    static Integers broadcast64(uint64_t x) {
        return {_mm256_set1_epi64x(static_cast<int64_t>(x))};
    }
    static Integers broadcast16(int x) { return {_mm256_set1_epi16(static_cast<int16_t>(x))}; }
    static Integers counters(uint64_t first, const int64_t* offsets) {
        const auto* source = reinterpret_cast<const __m256i*>(offsets);
        return {_mm256_add_epi64(broadcast64(first).value, _mm256_loadu_si256(source))};
    }
    void store(int16_t* target) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), value);
    }

    Integers upper_words() const { return {_mm256_srli_epi64(value, 32)}; }
    friend Integers product64(Integers a, Integers b) {
        return {_mm256_mul_epu32(a.value, b.value)};
    }
    friend Integers exclusive_or(Integers a, Integers b, Integers c) {
        return {_mm256_xor_si256(_mm256_xor_si256(a.value, b.value), c.value)};
    }
    friend Integers joined(Integers low, Integers high) {
        return {_mm256_blend_epi32(low.value, _mm256_slli_epi64(high.value, 32), 0xaa)};
    }
    Integers lower_bytes() const {
        return {_mm256_or_si256(_mm256_slli_epi16(value, 8), _mm256_set1_epi16(0x80))};
    }
    Integers upper_bytes() const {
        const __m256i upper = _mm256_set1_epi16(static_cast<int16_t>(0xff00));
        return {_mm256_or_si256(_mm256_and_si256(value, upper), _mm256_set1_epi16(0x80))};
    }
    friend Integers fraction_product(Integers a, Integers b) {
        return {_mm256_mulhrs_epi16(a.value, b.value)};
    }
    friend Integers operator+(Integers a, Integers b) {
        return {_mm256_add_epi16(a.value, b.value)};
    }
    friend Integers operator-(Integers a, Integers b) {
        return {_mm256_sub_epi16(a.value, b.value)};
    }
    friend void interleave16(Integers& a, Integers& b) {
        const __m256i low = _mm256_unpacklo_epi16(a.value, b.value);
        b.value = _mm256_unpackhi_epi16(a.value, b.value);
        a.value = low;
    }
    friend void interleave32(Integers& a, Integers& b) {
        const __m256i low = _mm256_unpacklo_epi32(a.value, b.value);
        b.value = _mm256_unpackhi_epi32(a.value, b.value);
        a.value = low;
    }
    friend void interleave64(Integers& a, Integers& b) {
        const __m256i low = _mm256_unpacklo_epi64(a.value, b.value);
        b.value = _mm256_unpackhi_epi64(a.value, b.value);
        a.value = low;
    }
};
#endif

// Sixteen blocks of Philox and their numbers. Registers of 32 bytes take two rounds for them.
class NoiseBatch {
public:
    static constexpr int numbers = 4 * numbers_per_group;

    explicit NoiseBatch(uint64_t seed) {
        PhiloxKey key(seed);
        for (int round = 0; round < philox_rounds; ++round, key.advance()) {
            keys_[2 * round] = key.low;
            keys_[2 * round + 1] = key.high;
        }
    }

    ZSCGAN_INLINE void draw(uint64_t first_block, int16_t* target) const {
        for (int part = 0; part < 64 / Integers::bytes; ++part) {
            draw_part(first_block + part * (blocks_per_group / 2),
                      target + part * (Integers::bytes / 2));
        }
    }

private:
    struct Words {
        Integers word[words_per_block];
    };

    // Lanes of 64 bits, of which a product reads the lower words and fills all.
    ZSCGAN_INLINE Words philox_words(uint64_t first_block, const int64_t* offsets) const {
        const Integers multiplier_0 = Integers::broadcast64(philox_multiplier_0);
        const Integers multiplier_2 = Integers::broadcast64(philox_multiplier_2);
        Integers a = Integers::counters(first_block, offsets), b = a.upper_words();
        Integers c = Integers::broadcast64(0), d = c;
        for (int round = 0; round < philox_rounds; ++round) {
            const Integers first = product64(a, multiplier_0), second = product64(c, multiplier_2);
            a = exclusive_or(second.upper_words(), b, Integers::broadcast64(keys_[2 * round]));
            c = exclusive_or(first.upper_words(), d, Integers::broadcast64(keys_[2 * round + 1]));
            b = second;
            d = first;
        }
        return {{a, b, c, d}};
    }

    ZSCGAN_INLINE void draw_part(uint64_t first_block, int16_t* target) const {
        // Lane i of 32 bits of a lane q of 128 bits has block 4 i + q.
        static constexpr int64_t even[8] = {0, 8, 1, 9, 2, 10, 3, 11};
        static constexpr int64_t odd[8] = {4, 12, 5, 13, 6, 14, 7, 15};
        const Words first = philox_words(first_block, even);
        const Words second = philox_words(first_block, odd);
        Integers numbers[numbers_per_vector];
        for (int i = 0; i < words_per_block; ++i) {
            const Integers words = joined(first.word[i], second.word[i]);
            numbers[2 * i] = cubic(words.lower_bytes());
            numbers[2 * i + 1] = cubic(words.upper_bytes());
        }
        add_and_subtract<1>(numbers);
        add_and_subtract<2>(numbers);
        add_and_subtract<4>(numbers);
        store_transposed(numbers, target);
    }

    static ZSCGAN_INLINE Integers cubic(Integers x) {
        const Integers square = fraction_product(x, x);
        const Integers factor = Integers::broadcast16(noise_linear) +
                                fraction_product(square, Integers::broadcast16(noise_cubic));
        return fraction_product(x, factor);
    }

    template <int stride>
    static ZSCGAN_INLINE void add_and_subtract(Integers (&x)[numbers_per_vector]) {
        for (int i = 0; i < numbers_per_vector; ++i) {
            if (i & stride) continue;
            const Integers first = x[i], second = x[i + stride];
            x[i] = first + second;
            x[i + stride] = first - second;
        }
    }

    // Register i has number i of the vectors; of each lane of 128 bits vector r comes to target r.
    static ZSCGAN_INLINE void store_transposed(Integers (&x)[numbers_per_vector], int16_t* target) {
        for (int i : {0, 2, 4, 6}) interleave16(x[i], x[i + 1]);
        for (int i : {0, 1, 4, 5}) interleave32(x[i], x[i + 2]);
        for (int i : {0, 1, 2, 3}) interleave64(x[i], x[i + 4]);
        // Each swap of neighbours moved a bit of the index.
        static constexpr int places[numbers_per_vector] = {0, 4, 2, 6, 1, 5, 3, 7};
        for (int i = 0; i < numbers_per_vector; ++i) x[i].store(target + 32 * places[i]);
    }

    uint64_t keys_[2 * philox_rounds];
};

#else

// One group of vectors after the other.
class NoiseBatch {
public:
    static constexpr int numbers = numbers_per_group;

    explicit NoiseBatch(uint64_t seed) : seed_(seed) {}

    void draw(uint64_t first_block, int16_t* target) const {
        for (int block = 0; block < blocks_per_group; ++block) {
            uint32_t words[words_per_block];
            philox(seed_, first_block + static_cast<uint64_t>(block), words);
            for (int half = 0; half < 2; ++half) {
                int found[numbers_per_vector];
                vector_noise(words, half, found);
                const int vector = half * blocks_per_group + block;
                std::copy_n(found, numbers_per_vector, target + vector * numbers_per_vector);
            }
        }
    }

private:
    uint64_t seed_;
};

#endif

// The numbers of consecutive elements, in units of 1 / noise_deviation.
class NoiseReader {
public:
    explicit NoiseReader(uint64_t seed) : batch_(seed) {}

    // n <= 16 numbers from a position on, which does not decrease from call to call.
    ZSCGAN_INLINE const int16_t* at(int64_t position, int n) {
        if (position + n > end_) fill(position / numbers_per_group);
        return numbers_ + (position - begin_);
    }

private:
    static constexpr int count = 1024;

    void fill(int64_t group) {
        const int64_t first_block = group * blocks_per_group;
        for (int i = 0; i < count; i += NoiseBatch::numbers) {
            const int64_t block = first_block + i / numbers_per_group * blocks_per_group;
            batch_.draw(static_cast<uint64_t>(block), numbers_ + i);
        }
        begin_ = group * numbers_per_group;
        end_ = begin_ + count;
    }

    NoiseBatch batch_;
    int64_t begin_ = 0, end_ = 0;
    alignas(64) int16_t numbers_[count];
};

}  // namespace zscgan::cpu::ZSCGAN_ISA

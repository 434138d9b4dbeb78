// Eight floats in a 256-bit register. Included by simd.h inside its namespace.
#pragma once

struct Avx2Vector {
    using Real = float;
    static constexpr int lanes = 8;

    struct Mask {
        __m256 value;
        uint32_t bits() const { return static_cast<uint32_t>(_mm256_movemask_ps(value)); }
        static Mask from_bits(uint32_t bits) {
            const __m256i place = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
            return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, place), place))};
        }
        friend Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.value, b.value)}; }
    };

    __m256 value;

    static __m256i first(int n) {
        const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), index);
    }

    static Avx2Vector broadcast(float x) { return {_mm256_set1_ps(x)}; }
    static Avx2Vector load(const float* source, int n) {
        if (n == lanes) return {_mm256_loadu_ps(source)};
        return {_mm256_maskload_ps(source, first(n))};
    }
    static Avx2Vector load(const BFloat16* source, int n) {
        const __m256i wide = _mm256_cvtepu16_epi32(load_half(source, n));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
    }
    static Avx2Vector load(const Float16* source, int n) {
        return {_mm256_cvtph_ps(load_half(source, n))};
    }
    void store(float* target, int n) const {
        if (n == lanes) {
            _mm256_storeu_ps(target, value);
        } else {
            _mm256_maskstore_ps(target, first(n), value);
        }
    }
    void store(BFloat16* target, int n) const {
        const __m256i bits = _mm256_castps_si256(value);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
        const __m256i result = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(result, result), 0x08);
        store_half(_mm256_castsi256_si128(packed), target, n);
    }
    void store(Float16* target, int n) const {
        store_half(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), target,
                   n);
    }
    double sum() const {
        const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(value));
        const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1));
        double parts[4];
        _mm256_storeu_pd(parts, _mm256_add_pd(low, high));
        return (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }

    friend Avx2Vector operator+(Avx2Vector a, Avx2Vector b) {
        return {_mm256_add_ps(a.value, b.value)};
    }
    friend Avx2Vector operator-(Avx2Vector a, Avx2Vector b) {
        return {_mm256_sub_ps(a.value, b.value)};
    }
    friend Avx2Vector operator*(Avx2Vector a, Avx2Vector b) {
        return {_mm256_mul_ps(a.value, b.value)};
    }
    friend Mask operator>=(Avx2Vector a, Avx2Vector b) {
        return {_mm256_cmp_ps(a.value, b.value, _CMP_GE_OQ)};
    }
    friend Mask operator<=(Avx2Vector a, Avx2Vector b) {
        return {_mm256_cmp_ps(a.value, b.value, _CMP_LE_OQ)};
    }
    // The instruction returns its second operand where one is NaN.
    friend Avx2Vector minimum(Avx2Vector bound, Avx2Vector x) {
        return {_mm256_min_ps(bound.value, x.value)};
    }
    friend Avx2Vector maximum(Avx2Vector bound, Avx2Vector x) {
        return {_mm256_max_ps(bound.value, x.value)};
    }
    friend Avx2Vector round_to_even(Avx2Vector x) {
        return {_mm256_round_ps(x.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
    }
    friend Avx2Vector select(Mask mask, Avx2Vector yes, Avx2Vector no) {
        return {_mm256_blendv_ps(no.value, yes.value, mask.value)};
    }

private:
    template <class Half>
    static __m128i load_half(const Half* source, int n) {
        if (n == lanes) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
        Half copy[lanes] = {};
        std::memcpy(copy, source, static_cast<size_t>(n) * sizeof(Half));
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(copy));
    }
    template <class Half>
    static void store_half(__m128i half, Half* target, int n) {
        if (n == lanes) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(target), half);
            return;
        }
        Half copy[lanes];
        _mm_storeu_si128(reinterpret_cast<__m128i*>(copy), half);
        std::memcpy(target, copy, static_cast<size_t>(n) * sizeof(Half));
    }
};

// Eight floats in a 256-bit register. Included by simd.h inside its namespace.
#pragma once

// Eight values of a half type, as they are in memory.
struct Avx2Halves {
    __m128i bits;

    template <class Half>
    void store(Half* target, int n) const {
        if (n == 8) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(target), bits);
            return;
        }
        Half copy[8];
        _mm_storeu_si128(reinterpret_cast<__m128i*>(copy), bits);
        std::memcpy(target, copy, static_cast<size_t>(n) * sizeof(Half));
    }
    template <class Half>
    void stream(Half* target) const {
        _mm_stream_si128(reinterpret_cast<__m128i*>(target), bits);
    }
};

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
    static Avx2Vector load(const int16_t* source, int n) {
        return {_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(load_half(source, n)))};
    }
    // Elements where the mask is set, bit by bit, and zeros elsewhere.
    static Avx2Vector load_where(Mask mask, const float* source, int n) {
        return {_mm256_and_ps(load(source, n).value, mask.value)};
    }
    template <class Half>
    static Avx2Halves load_where(Mask mask, const Half* source, int n) {
        const __m256i wide = _mm256_castps_si256(mask.value);
        const __m128i narrow =
            _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        return {_mm_and_si128(load_half(source, n), narrow)};
    }
    void store(float* target, int n) const {
        if (n == lanes) {
            _mm256_storeu_ps(target, value);
        } else {
            _mm256_maskstore_ps(target, first(n), value);
        }
    }
    template <class Half>
    void store(Half* target, int n) const {
        Avx2Halves{narrowed(Half{})}.store(target, n);
    }
    // Past the caches, to an address that is a multiple of the bytes written.
    void stream(float* target) const { _mm256_stream_ps(target, value); }
    template <class Half>
    void stream(Half* target) const {
        Avx2Halves{narrowed(Half{})}.stream(target);
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
    __m128i narrowed(BFloat16) const {
        const __m256i bits = _mm256_castps_si256(value);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
        const __m256i result = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
        return _mm256_castsi256_si128(
            _mm256_permute4x64_epi64(_mm256_packus_epi32(result, result), 0x08));
    }
    __m128i narrowed(Float16) const {
        return _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    template <class Half>
    static __m128i load_half(const Half* source, int n) {
        if (n == lanes) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
        Half copy[lanes] = {};
        std::memcpy(copy, source, static_cast<size_t>(n) * sizeof(Half));
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(copy));
    }
};

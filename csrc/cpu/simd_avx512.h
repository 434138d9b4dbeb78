// Sixteen floats in a 512-bit register. Included by simd.h inside its namespace.
#pragma once

// Sixteen values of a half type, as they are in memory.
struct Avx512Halves {
    __m256i bits;

    template <class Half>
    void store(Half* target, int n) const {
        if (n == 16) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), bits);
        } else {
            _mm256_mask_storeu_epi16(target, static_cast<__mmask16>((1u << n) - 1), bits);
        }
    }
    template <class Half>
    void stream(Half* target) const {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(target), bits);
    }
};

struct Avx512Vector {
    using Real = float;
    static constexpr int lanes = 16;

    struct Mask {
        __mmask16 value;
        uint32_t bits() const { return value; }
        static Mask from_bits(uint32_t bits) { return {static_cast<__mmask16>(bits)}; }
        friend Mask operator&(Mask a, Mask b) {
            return {static_cast<__mmask16>(a.value & b.value)};
        }
    };

    __m512 value;

    static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }

    static Avx512Vector broadcast(float x) { return {_mm512_set1_ps(x)}; }
    static Avx512Vector load(const float* source, int n) {
        if (n == lanes) return {_mm512_loadu_ps(source)};
        return {_mm512_maskz_loadu_ps(first(n), source)};
    }
    static Avx512Vector load(const BFloat16* source, int n) {
        const __m512i wide = _mm512_cvtepu16_epi32(load_half(source, n));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
    }
    static Avx512Vector load(const Float16* source, int n) {
        return {_mm512_cvtph_ps(load_half(source, n))};
    }
    static Avx512Vector load(const int16_t* source, int n) {
        return {_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(load_half(source, n)))};
    }
    // Elements where the mask is set, bit by bit, and zeros elsewhere.
    static Avx512Vector load_where(Mask mask, const float* source, int n) {
        return {_mm512_maskz_loadu_ps(mask.value & first(n), source)};
    }
    template <class Half>
    static Avx512Halves load_where(Mask mask, const Half* source, int n) {
        return {_mm256_maskz_loadu_epi16(mask.value & first(n), source)};
    }
    void store(float* target, int n) const {
        if (n == lanes) {
            _mm512_storeu_ps(target, value);
        } else {
            _mm512_mask_storeu_ps(target, first(n), value);
        }
    }
    template <class Half>
    void store(Half* target, int n) const {
        Avx512Halves{narrowed(Half{})}.store(target, n);
    }
    // Past the caches, to an address that is a multiple of the bytes written.
    void stream(float* target) const { _mm512_stream_ps(target, value); }
    template <class Half>
    void stream(Half* target) const {
        Avx512Halves{narrowed(Half{})}.stream(target);
    }
    double sum() const {
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(value));
        const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
        return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
    }

    friend Avx512Vector operator+(Avx512Vector a, Avx512Vector b) {
        return {_mm512_add_ps(a.value, b.value)};
    }
    friend Avx512Vector operator-(Avx512Vector a, Avx512Vector b) {
        return {_mm512_sub_ps(a.value, b.value)};
    }
    friend Avx512Vector operator*(Avx512Vector a, Avx512Vector b) {
        return {_mm512_mul_ps(a.value, b.value)};
    }
    friend Mask operator>=(Avx512Vector a, Avx512Vector b) {
        return {_mm512_cmp_ps_mask(a.value, b.value, _CMP_GE_OQ)};
    }
    friend Mask operator<=(Avx512Vector a, Avx512Vector b) {
        return {_mm512_cmp_ps_mask(a.value, b.value, _CMP_LE_OQ)};
    }
    // The instruction returns its second operand where one is NaN.
    friend Avx512Vector minimum(Avx512Vector bound, Avx512Vector x) {
        return {_mm512_min_ps(bound.value, x.value)};
    }
    friend Avx512Vector maximum(Avx512Vector bound, Avx512Vector x) {
        return {_mm512_max_ps(bound.value, x.value)};
    }
    friend Avx512Vector round_to_even(Avx512Vector x) {
        return {_mm512_roundscale_ps(x.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
    }
    friend Avx512Vector select(Mask mask, Avx512Vector yes, Avx512Vector no) {
        return {_mm512_mask_blend_ps(mask.value, no.value, yes.value)};
    }

private:
    template <class Half>
    static __m256i load_half(const Half* source, int n) {
        if (n == lanes) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
        return _mm256_maskz_loadu_epi16(first(n), source);
    }
    __m256i narrowed(BFloat16) const {
        const __m512i bits = _mm512_castps_si512(value);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
        const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        return _mm512_cvtepi32_epi16(_mm512_mask_set1_epi32(rounded, nan, 0x7fc0));
    }
    __m256i narrowed(Float16) const {
        return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
};

// Vectors of lanes for three instruction sets behind one interface. Every file that includes this
// is compiled once per instruction set, with ZSCGAN_ISA naming the namespace.
//
// A vector type has `lanes`, `Real`, load and store of n <= lanes elements of any data type,
// a store past the caches, arithmetic, comparisons that give a `Mask`, and the functions of
// quant_math.h.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "../quant_math.h"

namespace zscgan::cpu::ZSCGAN_ISA {

struct Float16 {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(int16_t x) { return x; }
inline float widen(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}
inline float widen(Float16 x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
    const uint32_t exponent = (x.bits >> 10) & 0x1fu;
    const uint32_t fraction = x.bits & 0x3ffu;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -magnitude : magnitude;
    }
    const uint32_t wide_exponent = exponent == 0x1f ? 0xffu : exponent + 112;
    const uint32_t bits = sign | (wide_exponent << 23) | (fraction << 13);
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void narrow(float x, float& result) { result = x; }
inline void narrow(double x, double& result) { result = x; }
inline void narrow(float x, BFloat16& result) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) {
        result.bits = 0x7fc0;
        return;
    }
    result.bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void narrow(float x, Float16& result) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits >= 0x7f800000u) {
        result.bits = static_cast<uint16_t>(sign | (bits > 0x7f800000u ? 0x7e00u : 0x7c00u));
    } else if (bits >= 0x477ff000u) {  // rounds to 65536 or more
        result.bits = static_cast<uint16_t>(sign | 0x7c00u);
    } else if (bits < 0x38800000u) {  // below the smallest normal: units of 2^-24
        float magnitude;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        result.bits =
            static_cast<uint16_t>(sign | static_cast<uint16_t>(rintf(magnitude * 16777216.0f)));
    } else {
        const uint32_t rounded = bits + 0xfffu + ((bits >> 13) & 1u) - (112u << 23);
        result.bits = static_cast<uint16_t>(sign | (rounded >> 13));
    }
}

// Elements as they are in memory.
template <class T, int Lanes>
struct ArrayCopy {
    T values[Lanes];

    void store(T* target, int n) const {
        std::memcpy(target, values, static_cast<size_t>(n) * sizeof(T));
    }
    void stream(T* target) const { store(target, Lanes); }
};

// The portable vector: an array that the compiler unrolls.
template <class Scalar, int Lanes>
struct ArrayVector {
    using Real = Scalar;
    static constexpr int lanes = Lanes;

    struct Mask {
        uint32_t value;
        uint32_t bits() const { return value; }
        static Mask from_bits(uint32_t bits) { return {bits}; }
        friend Mask operator&(Mask a, Mask b) { return {a.value & b.value}; }
    };

    Real values[Lanes];

    static ArrayVector broadcast(Real x) {
        return generate([&](int) { return x; });
    }
    template <class T>
    static ArrayVector load(const T* source, int n) {
        return generate(
            [&](int i) { return i < n ? static_cast<Real>(widen(source[i])) : Real(0); });
    }
    // Elements where the mask is set, bit by bit, and zeros elsewhere.
    template <class T>
    static ArrayCopy<T, Lanes> load_where(Mask mask, const T* source, int n) {
        ArrayCopy<T, Lanes> result{};
        for (int i = 0; i < n; ++i) {
            if ((mask.value >> i) & 1) result.values[i] = source[i];
        }
        return result;
    }
    template <class T>
    void store(T* target, int n) const {
        for (int i = 0; i < n; ++i) narrow(values[i], target[i]);
    }
    template <class T>
    void stream(T* target) const {
        store(target, lanes);
    }
    double sum() const {
        double total = 0;
        for (Real value : values) total += value;
        return total;
    }
    template <class Function>
    static ArrayVector generate(Function function) {
        ArrayVector result;
        for (int i = 0; i < Lanes; ++i) result.values[i] = function(i);
        return result;
    }
    template <class Predicate>
    static Mask test(Predicate predicate) {
        uint32_t bits = 0;
        for (int i = 0; i < Lanes; ++i) bits |= static_cast<uint32_t>(predicate(i)) << i;
        return {bits};
    }

    friend ArrayVector operator+(ArrayVector a, ArrayVector b) {
        return generate([&](int i) { return a.values[i] + b.values[i]; });
    }
    friend ArrayVector operator-(ArrayVector a, ArrayVector b) {
        return generate([&](int i) { return a.values[i] - b.values[i]; });
    }
    friend ArrayVector operator*(ArrayVector a, ArrayVector b) {
        return generate([&](int i) { return a.values[i] * b.values[i]; });
    }
    friend Mask operator>=(ArrayVector a, ArrayVector b) {
        return test([&](int i) { return a.values[i] >= b.values[i]; });
    }
    friend Mask operator<=(ArrayVector a, ArrayVector b) {
        return test([&](int i) { return a.values[i] <= b.values[i]; });
    }
    friend ArrayVector minimum(ArrayVector bound, ArrayVector x) {
        return generate([&](int i) { return zscgan::minimum(bound.values[i], x.values[i]); });
    }
    friend ArrayVector maximum(ArrayVector bound, ArrayVector x) {
        return generate([&](int i) { return zscgan::maximum(bound.values[i], x.values[i]); });
    }
    friend ArrayVector round_to_even(ArrayVector x) {
        return generate([&](int i) { return zscgan::round_to_even(x.values[i]); });
    }
    friend ArrayVector select(Mask mask, ArrayVector yes, ArrayVector no) {
        return generate(
            [&](int i) { return (mask.value >> i) & 1 ? yes.values[i] : no.values[i]; });
    }
};

#if defined(__AVX512F__)
#include "simd_avx512.h"
using FloatVector = Avx512Vector;
#elif defined(__AVX2__)
#include "simd_avx2.h"
using FloatVector = Avx2Vector;
#else
using FloatVector = ArrayVector<float, 8>;
#endif

using DoubleVector = ArrayVector<double, 8>;

template <class V>
ActivationBounds<V> broadcast_bounds(Activation activation) {
    const auto bounds = activation_bounds<typename V::Real>(activation);
    return {V::broadcast(bounds.low), V::broadcast(bounds.high)};
}

}  // namespace zscgan::cpu::ZSCGAN_ISA

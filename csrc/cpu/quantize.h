// Quantizing a tensor and back, with the mask of the values inside the range if that is wanted.
#pragma once

#include "data_types.h"
#include "memory.h"
#include "quantizer_tables.h"

namespace zscgan::cpu::ZSCGAN_ISA {

// Appends bits to a byte stream that starts at a whole byte. Bytes are those of a little-endian
// word.
class BitWriter {
public:
    explicit BitWriter(uint8_t* target) : target_(target) {}
    void append(uint32_t bits, int n) {
        if (count_ == 0 && n == 16) {  // as in rows of a multiple of 16 elements
            const uint8_t bytes[2] = {static_cast<uint8_t>(bits), static_cast<uint8_t>(bits >> 8)};
            std::memcpy(target_, bytes, 2);
            target_ += 2;
            return;
        }
        pending_ |= static_cast<uint64_t>(bits) << count_;
        count_ += n;
        if (count_ >= 32) put<4>();
    }
    void flush() {
        while (count_ > 0) put<1>();
    }

private:
    template <int bytes>
    void put() {
        for (int i = 0; i < bytes; ++i) target_[i] = static_cast<uint8_t>(pending_ >> (8 * i));
        target_ += bytes;
        pending_ >>= 8 * bytes;
        count_ -= 8 * bytes;
    }

    uint8_t* target_;
    uint64_t pending_ = 0;
    int count_ = 0;
};

template <class V, class Table, class ActivationRange, class T>
void forward_chunk(const Shape3& shape, Table& table, const Bounds<V>& bounds,
                   const ActivationRange& activation, const T* x, const Output<T>& y, uint8_t* mask,
                   int64_t begin, int64_t end) {
    BitWriter writer(mask ? mask + begin / 8 : nullptr);
    for_quantized_segments(
        shape, table, begin, end, [&](int64_t position, int64_t count, auto parameters) {
            for_lanes<V>(count, [&](int64_t i, int n) {
                const auto quantizer = parameters(i, n);
                const V biased = add_bias(read<V>(x + position + i, n), quantizer);
                const V integer = unclamped(activate(biased, activation), quantizer);
                const V rounded = dequantize(clamp(integer, bounds), quantizer);
                y.template write<V>(position + i, rounded, n);
                if (mask) writer.append(is_inside(integer, bounds).bits() & ((1u << n) - 1), n);
            });
        });
    if (mask) writer.flush();
}

template <class V, class Table, class ActivationRange, class T>
void forward(const Shape3& shape, const QuantRange& range, Table& table,
             const ActivationRange& activation, const T* x, void* result, uint8_t* mask,
             int threads) {
    const Bounds<V> bounds = broadcast_bounds<V>(range);
    const int64_t numel = shape.numel();
    if (numel == 0) return;
    const Output<T> y(result, numel);
    const int64_t chunk = elementwise_chunk(shape);
    parallel_for(ceil_divide(numel, chunk), threads, [&](int64_t task) {
        const int64_t begin = task * chunk;
        forward_chunk(shape, table, bounds, activation, x, y, mask, begin,
                      smaller(numel, begin + chunk));
    });
}

}  // namespace zscgan::cpu::ZSCGAN_ISA

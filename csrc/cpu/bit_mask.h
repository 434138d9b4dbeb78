// Masks of one bit for each element in memory order, the first in the lowest bit of a byte.
#pragma once

#include <cstdint>
#include <cstring>

#include "../quant_math.h"

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

// The n <= 16 bits from a position on.
ZSCGAN_INLINE uint32_t read_bits(const uint8_t* mask, int64_t position, int n) {
    const uint8_t* bytes = mask + position / 8;
    const int skipped = static_cast<int>(position % 8);
    if (skipped == 0 && n == 16) {
        uint16_t both;
        std::memcpy(&both, bytes, 2);
        return both;
    }
    uint32_t bits = bytes[0];
    if (skipped + n > 8) bits |= static_cast<uint32_t>(bytes[1]) << 8;
    if (skipped + n > 16) bits |= static_cast<uint32_t>(bytes[2]) << 16;
    return bits >> skipped;
}

}  // namespace zscgan::cpu::ZSCGAN_ISA

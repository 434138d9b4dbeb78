// Reading and writing tensors that are larger than the caches.
#pragma once

#include <unistd.h>

#include "rows.h"

namespace zscgan::cpu::ZSCGAN_ISA {

// Asks for what a kernel will read soon. The prefetchers of some processors lose track where
// several tensors are read and written in step: twice the time, as measured.
inline void prefetch(const void* source, int64_t bytes_ahead = 2048) {
#if defined(__AVX2__) || defined(__AVX512F__)
    _mm_prefetch(static_cast<const char*>(source) + bytes_ahead, _MM_HINT_T0);
#else
    (void)source, (void)bytes_ahead;
#endif
}

// Reads the first n lanes.
template <class V, class T>
ZSCGAN_INLINE V read(const T* source, int n) {
    prefetch(source);
    return V::load(source, n);
}

// Reads n lanes of a band, and asks for those of the next band.
template <class V, class T>
ZSCGAN_INLINE V read(const T* tensor, const Band& band, int64_t row, int64_t i, int n) {
    const T* source = tensor + band.at(row, i);
    prefetch(source, band.next() * static_cast<int64_t>(sizeof(T)));
    return V::load(source, n);
}

// Bytes from which a result goes past the caches: half of the last one, which inputs share.
inline int64_t streaming_bytes() {
    static const int64_t bytes = [] {
#ifdef _SC_LEVEL3_CACHE_SIZE
        const int64_t cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
        if (cache > 0) return cache / 2;
#endif
        return int64_t{16} << 20;
    }();
    return bytes;
}

// The tensor that a kernel writes.
//
// An ordinary store first reads the memory that it overwrites. Where a tensor is too large to stay
// in the caches, stores past them spare that read: a third of the traffic of a map.
template <class T>
class Output {
public:
    Output(void* data, int64_t numel)
        : data_(static_cast<T*>(data)),
          streams_(numel * static_cast<int64_t>(sizeof(T)) >= streaming_bytes()) {}

    explicit operator bool() const { return data_ != nullptr; }

    // Writes the first n lanes. `Values`: a vector, or what its `load_where` returns.
    template <class V, class Values>
    ZSCGAN_INLINE void write(int64_t position, const Values& values, int n) const {
        T* target = data_ + position;
        if (streams_ && n == V::lanes && is_aligned<V>(target)) {
            values.stream(target);
        } else {
            values.store(target, n);
        }
    }

private:
    template <class V>
    static bool is_aligned(const T* target) {
        return reinterpret_cast<uintptr_t>(target) % (V::lanes * sizeof(T)) == 0;
    }

    T* data_;
    bool streams_;
};

}  // namespace zscgan::cpu::ZSCGAN_ISA

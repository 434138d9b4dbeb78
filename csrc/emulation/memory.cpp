// Stores on their way, and the hooks by which the compiler tells of every store of a kernel: those
// that -fsanitize=thread calls, in a module that is not linked to the sanitizer.
#include <cstring>

#include "machine.h"

namespace zscgan::emulation {

void record_store(void* address, size_t bytes);

namespace {

// Shared memory are static variables of this module.
extern "C" __attribute__((visibility("hidden"))) char __bss_start;
extern "C" __attribute__((visibility("hidden"))) char _end;

bool is_shared(const char* address) { return address >= &__bss_start && address < &_end; }

}  // namespace

void StoreBuffer::record(void* address, size_t bytes, int thread, unsigned barriers) {
    for (size_t done = 0; done < bytes; done += sizeof(Store::other)) {
        Store store;
        store.address = static_cast<char*>(address) + done;
        store.bytes = static_cast<uint16_t>(
            bytes - done < sizeof(store.other) ? bytes - done : sizeof(store.other));
        store.thread = static_cast<uint16_t>(thread);
        store.barriers = barriers;
        std::memcpy(store.other, store.address, store.bytes);
        (is_shared(store.address) ? shared_ : stores_).push_back(store);
    }
}

void StoreBuffer::fence(int thread, unsigned barriers) {
    size_t kept = 0;
    for (const Store& store : stores_) {
        const bool is_covered = store.thread == thread || store.barriers < barriers;
        if (!is_covered) stores_[kept++] = store;
    }
    stores_.resize(kept);
}

void StoreBuffer::exchange(Store& store) {
    char present[sizeof(store.other)];
    std::memcpy(present, store.address, store.bytes);
    std::memcpy(store.address, store.other, store.bytes);
    std::memcpy(store.other, present, store.bytes);
}

void StoreBuffer::hide() {
    counts.hidden += stores_.size();
    for (size_t i = stores_.size(); i > 0; --i) exchange(stores_[i - 1]);
    for (size_t i = shared_.size(); i > 0; --i) exchange(shared_[i - 1]);
}

void StoreBuffer::show() {
    for (Store& store : stores_) exchange(store);
    for (Store& store : shared_) exchange(store);
}

void StoreBuffer::append(StoreBuffer& ended) {
    stores_.insert(stores_.end(), ended.stores_.begin(), ended.stores_.end());
    ended.stores_.clear();
    ended.shared_.clear();
}

}  // namespace zscgan::emulation

#define ZSCGAN_STORE_HOOK(name, bytes) \
    extern "C" void name(void* address) { zscgan::emulation::record_store(address, bytes); }
#define ZSCGAN_LOAD_HOOK(name) \
    extern "C" void name(void*) {}

ZSCGAN_STORE_HOOK(__tsan_write1, 1)
ZSCGAN_STORE_HOOK(__tsan_write2, 2)
ZSCGAN_STORE_HOOK(__tsan_write4, 4)
ZSCGAN_STORE_HOOK(__tsan_write8, 8)
ZSCGAN_STORE_HOOK(__tsan_write16, 16)
ZSCGAN_STORE_HOOK(__tsan_unaligned_write2, 2)
ZSCGAN_STORE_HOOK(__tsan_unaligned_write4, 4)
ZSCGAN_STORE_HOOK(__tsan_unaligned_write8, 8)
ZSCGAN_STORE_HOOK(__tsan_unaligned_write16, 16)
ZSCGAN_LOAD_HOOK(__tsan_read1)
ZSCGAN_LOAD_HOOK(__tsan_read2)
ZSCGAN_LOAD_HOOK(__tsan_read4)
ZSCGAN_LOAD_HOOK(__tsan_read8)
ZSCGAN_LOAD_HOOK(__tsan_read16)
ZSCGAN_LOAD_HOOK(__tsan_unaligned_read2)
ZSCGAN_LOAD_HOOK(__tsan_unaligned_read4)
ZSCGAN_LOAD_HOOK(__tsan_unaligned_read8)
ZSCGAN_LOAD_HOOK(__tsan_unaligned_read16)
ZSCGAN_LOAD_HOOK(__tsan_func_entry)
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
extern "C" void __tsan_read_range(void*, long) {}
extern "C" void __tsan_write_range(void* address, long bytes) {
    zscgan::emulation::record_store(address, static_cast<size_t>(bytes));
}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
// Whether a static variable of a function is made yet.
extern "C" unsigned char __tsan_atomic8_load(const volatile unsigned char* address, int) {
    return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}

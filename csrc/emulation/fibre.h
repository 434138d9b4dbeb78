// Contexts that run on stacks of their own.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace zscgan::emulation {

#if defined(__x86_64__)
// Saves the registers that a call keeps and the stack pointer, and goes on at another one.
extern "C" void zscgan_emulation_switch(void** from, void* to);
#endif

class Fibre {
public:
#ifdef __SANITIZE_ADDRESS__
    static constexpr size_t stack_bytes = 512 << 10;
#else
    static constexpr size_t stack_bytes = 64 << 10;
#endif

    // The next `enter` calls `entry`, which must not return.
    void start(void (*entry)());
    // Called outside: runs the fibre until it leaves.
    void enter();
    // Called inside.
    void leave();

    bool holds(const void* address) const {
        const char* place = static_cast<const char*>(address);
        return place >= stack_.get() && place < stack_.get() + stack_bytes;
    }

private:
    void begin_switch(void** fake_stack, const void* stack, size_t bytes);
    void end_switch(void* fake_stack, const void** stack, size_t* bytes);

    std::unique_ptr<char[]> stack_;
#if defined(__x86_64__)
    void* inside_ = nullptr;
    void* outside_ = nullptr;
#else
    ucontext_t inside_;
    ucontext_t outside_;
#endif
    // The sanitizer's view of both stacks.
    void* fake_inside_ = nullptr;
    void* fake_outside_ = nullptr;
    const void* outside_stack_ = nullptr;
    size_t outside_bytes_ = 0;

    friend void first_step(Fibre& fibre);
};

// The first thing that an entry calls.
inline void first_step(Fibre& fibre) {
    fibre.end_switch(nullptr, &fibre.outside_stack_, &fibre.outside_bytes_);
}

inline void Fibre::begin_switch([[maybe_unused]] void** fake_stack,
                                [[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}

inline void Fibre::end_switch([[maybe_unused]] void* fake_stack,
                              [[maybe_unused]] const void** stack, [[maybe_unused]] size_t* bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, stack, bytes);
#endif
}

inline void Fibre::start(void (*entry)()) {
    if (!stack_) stack_ = std::unique_ptr<char[]>(new char[stack_bytes]);
    fake_inside_ = nullptr;
#if defined(__x86_64__)
    auto** top = reinterpret_cast<void**>(stack_.get() + stack_bytes - 8);  // as after a call
    top[0] = nullptr;  // the entry has nowhere to return to
    top[-1] = reinterpret_cast<void*>(entry);
    for (int i = 2; i < 8; ++i) top[-i] = nullptr;  // registers
    inside_ = top - 7;
#else
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack_.get();
    inside_.uc_stack.ss_size = stack_bytes;
    inside_.uc_link = nullptr;
    makecontext(&inside_, entry, 0);
#endif
}

inline void Fibre::enter() {
    begin_switch(&fake_outside_, stack_.get(), stack_bytes);
#if defined(__x86_64__)
    zscgan_emulation_switch(&outside_, inside_);
#else
    swapcontext(&outside_, &inside_);
#endif
    end_switch(fake_outside_, nullptr, nullptr);
}

inline void Fibre::leave() {
    begin_switch(&fake_inside_, outside_stack_, outside_bytes_);
#if defined(__x86_64__)
    zscgan_emulation_switch(&inside_, outside_);
#else
    swapcontext(&inside_, &outside_);
#endif
    end_switch(fake_inside_, &outside_stack_, &outside_bytes_);
}

}  // namespace zscgan::emulation

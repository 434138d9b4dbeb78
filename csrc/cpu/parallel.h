// Running tasks on OpenMP threads. torch bundles the same libgomp, so the threads are torch's own.
#pragma once

#include <cstdint>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace zscgan::cpu::ZSCGAN_ISA {

// Elements of one task. Below it a call stays on its own thread: waking others costs more.
constexpr int64_t task_elements = 32768;

constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Stores past the caches (`Output`) are ordered before whatever follows a task.
inline void finish_stores() {
#if defined(__AVX2__) || defined(__AVX512F__)
    _mm_sfence();
#endif
}

// Calls task(index) for every index; neighbours run on the same thread.
template <class Task>
void parallel_for(int64_t tasks, int threads, Task task) {
    const auto run = [&](int64_t index) {
        task(index);
        finish_stores();
    };
    if (tasks <= 1 || threads <= 1) {
        for (int64_t index = 0; index < tasks; ++index) run(index);
        return;
    }
    const int team = static_cast<int>(tasks < threads ? tasks : threads);
#pragma omp parallel for schedule(static) num_threads(team)
    for (int64_t index = 0; index < tasks; ++index) run(index);
}

// Calls body(tensor, threads) for each of many tensors: large ones one after the other on all
// threads, small ones side by side on one thread each.
template <class Arguments, class Body>
void parallel_for_tensors(const Arguments& arguments, int threads, Body body) {
    const auto* tensors = arguments.tensors;
    const int64_t count = arguments.count;
    constexpr int64_t large = 4 * task_elements;
    int64_t small_elements = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t numel = tensors[i].shape.numel();
        if (count == 1 || numel >= large) {
            body(tensors[i], threads);
        } else {
            small_elements += numel;
        }
    }
    if (count == 1) return;
    const int team = small_elements <= task_elements ? 1 : threads;
#pragma omp parallel for schedule(dynamic) num_threads(team) if (team > 1)
    for (int64_t i = 0; i < count; ++i) {
        if (tensors[i].shape.numel() < large) body(tensors[i], 1);
    }
}

}  // namespace zscgan::cpu::ZSCGAN_ISA

// OpenMP's entry points, as gcc calls them, over threads that ThreadSanitizer understands.
//
// gcc's own libgomp hands work over by futexes that the sanitizer cannot see, so that every kernel
// would look like a race. Here a team is started and joined for each region: the only order between
// its threads is the one that OpenMP promises.
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// A team of threads and the one loop that it shares, if any.
struct Team {
    std::once_flag is_shared;
    std::atomic<long> next{0};
    long end = 0, step = 0, chunk = 0;
};

thread_local int thread_number = 0;
thread_local int thread_count = 1;
thread_local Team* current_team = nullptr;

}  // namespace

extern "C" {

int omp_get_thread_num() { return thread_number; }
int omp_get_num_threads() { return thread_count; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
    Team shared;
    const auto member = [&](int number) {
        thread_number = number;
        thread_count = static_cast<int>(threads);
        current_team = &shared;
        body(data);
    };
    std::vector<std::thread> team;
    for (unsigned number = 0; number < threads; ++number) team.emplace_back(member, number);
    for (std::thread& thread : team) thread.join();
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) {
    Team& team = *current_team;
    // Relaxed: handing out work must not order what the threads do with it.
    *first = team.next.fetch_add(team.step * team.chunk, std::memory_order_relaxed);
    *last = *first + team.step * team.chunk;
    if (*last > team.end) *last = team.end;
    return *first < team.end;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long* first,
                                          long* last) {
    Team& team = *current_team;
    std::call_once(team.is_shared, [&] {
        team.end = end, team.step = step, team.chunk = chunk;
        team.next.store(start, std::memory_order_relaxed);
    });
    return GOMP_loop_nonmonotonic_dynamic_next(first, last);
}

void GOMP_loop_end_nowait() {}

}  // extern "C"

// The scheduler: fibres, barriers and shuffles of a block; blocks on workers that take turns.
#include "machine.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>

#include "fibre.h"

uint3 threadIdx;
uint3 blockIdx;

#if defined(__x86_64__)
asm(R"(
    .text
    .globl zscgan_emulation_switch
    .hidden zscgan_emulation_switch
    .type zscgan_emulation_switch, @function
zscgan_emulation_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size zscgan_emulation_switch, . - zscgan_emulation_switch
)");
#endif

namespace zscgan::emulation {

Counts counts;

namespace {

// Without hooks at stores shared memory is that of one block.
#ifdef __SANITIZE_ADDRESS__
constexpr int resident_blocks = 1;
#else
constexpr int resident_blocks = 4;
#endif

uint64_t seed = 1;

enum class State : uint8_t { ready, at_barrier, at_shuffle, ended };

struct Thread {
    Fibre fibre;
    State state = State::ended;
    unsigned shuffles = 0;
};

// What the lanes of a warp show each other. Two sets: a fast lane may bring the next values while a
// slow one still reads.
struct Warp {
    uint64_t values[2][warp_lanes];
    unsigned arrived[2];
};

struct Grid {
    unsigned blocks;
    int block_threads;
    Invoke invoke;
    const void* kernel;
    const void* parameters;
    std::vector<unsigned> order;  // of blocks, the next one last
    Random random{0};
    StoreBuffer ended;  // stores of blocks that have ended
    const char* problem = nullptr;
};

Grid* grid = nullptr;  // the one that runs, on one thread of the host at a time
thread_local bool runs_grid = false;

// A resident block.
class Worker {
public:
    void start();
    void barrier();
    void fence();
    uint64_t shuffle(unsigned mask, uint64_t bits, int source);
    void store(void* address, size_t bytes);
    void consider_handover(uint32_t one_in);

    Fibre scheduler;
    StoreBuffer buffer;
    bool is_active = false;

private:
    static void main();
    void run_blocks();
    void run_block(unsigned block);
    void run_warp(int warp);
    void run_thread(int thread);
    bool release_barrier();
    static void run_kernel();

    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Warp> warps_;
    std::vector<int> lanes_;
    Thread* thread_ = nullptr;
    unsigned barriers_ = 0;
};

Worker* worker = nullptr;  // the one whose turn it is

// ---- turns --------------------------------------------------------------------------------------

// The resident blocks, of which one runs at a time.
class Turns {
public:
    void run() {
        const size_t count = std::min<size_t>(resident_blocks, grid->order.size());
        while (workers_.size() < count) workers_.push_back(std::make_unique<Worker>());
        for (size_t i = 0; i < count; ++i) workers_[i]->start();
        for (worker = workers_[0].get(); worker && !grid->problem; worker = another()) {
            worker->buffer.show();
            worker->scheduler.enter();
            worker->buffer.hide();
            if (!worker->is_active) grid->ended.append(worker->buffer);
        }
        for (const auto& resident : workers_) resident->is_active = false;
        worker = nullptr;
    }

    // Lets another resident block run, if there is one.
    void hand_over() {
        if (!has_other()) return;
        ++counts.handovers;
        Worker* const own = worker;
        const uint3 thread = threadIdx, block = blockIdx;
        own->scheduler.leave();
        threadIdx = thread;
        blockIdx = block;
    }

private:
    bool has_other() const {
        return std::any_of(workers_.begin(), workers_.end(), [](const auto& resident) {
            return resident->is_active && resident.get() != worker;
        });
    }

    // The next one to run: not the same again, unless it is the last.
    Worker* another() {
        std::vector<Worker*> active;
        for (const auto& resident : workers_) {
            if (resident->is_active && resident.get() != worker) active.push_back(resident.get());
        }
        if (active.empty()) return worker->is_active ? worker : nullptr;
        return active[grid->random.below(static_cast<uint32_t>(active.size()))];
    }

    std::vector<std::unique_ptr<Worker>> workers_;
};

Turns& turns() {
    static Turns all;
    return all;
}

// ---- a block ------------------------------------------------------------------------------------

void Worker::start() {
    is_active = true;
    buffer = {};
    scheduler.start(main);
}

void Worker::main() {
    first_step(worker->scheduler);
    worker->run_blocks();
    worker->is_active = false;
    worker->scheduler.leave();
}

void Worker::run_kernel() {
    first_step(worker->thread_->fibre);
    grid->invoke(grid->kernel, grid->parameters);
    worker->thread_->state = State::ended;
    worker->thread_->fibre.leave();
}

void Worker::run_blocks() {
    while (!grid->order.empty() && !grid->problem) {
        const unsigned block = grid->order.back();
        grid->order.pop_back();
        run_block(block);
        buffer.hide();
        grid->ended.append(buffer);
        consider_handover(2);
    }
}

void Worker::run_block(unsigned block) {
    ++counts.blocks;
    const int size = grid->block_threads;
    while (static_cast<int>(threads_.size()) < size) threads_.push_back(std::make_unique<Thread>());
    const int warp_count = (size + warp_lanes - 1) / warp_lanes;
    warps_.assign(warp_count, Warp{});
    barriers_ = 0;
    for (int i = 0; i < size; ++i) {
        threads_[i]->fibre.start(run_kernel);
        threads_[i]->state = State::ready;
        threads_[i]->shuffles = 0;
    }
    blockIdx = {block, 0, 0};
    std::vector<int> order(warp_count);
    std::iota(order.begin(), order.end(), 0);
    lanes_.resize(warp_lanes);
    std::iota(lanes_.begin(), lanes_.end(), 0);
    do {
        bool has_ready = true;
        while (has_ready && !grid->problem) {
            grid->random.shuffle(order);
            for (const int warp : order) run_warp(warp);
            has_ready = std::any_of(threads_.begin(), threads_.begin() + size,
                                    [](const auto& t) { return t->state == State::ready; });
        }
    } while (!grid->problem && release_barrier());
}

// Lets the lanes of a warp run, in an order of their own, to where each has to wait.
void Worker::run_warp(int warp) {
    const int first = warp * warp_lanes;
    const int count = std::min(warp_lanes, grid->block_threads - first);
    bool has_run = true;
    while (has_run) {
        has_run = false;
        const unsigned turned = grid->random.below(warp_lanes);
        const bool backwards = grid->random.one_in(2);
        for (int i = 0; i < warp_lanes; ++i) {
            const int turned_lane = static_cast<int>((i + turned) % warp_lanes);
            const int lane = backwards ? warp_lanes - 1 - turned_lane : turned_lane;
            if (lane >= count || threads_[first + lane]->state != State::ready) continue;
            run_thread(first + lane);
            has_run = true;
        }
        if (grid->random.one_in(4)) return;  // another warp comes between
    }
}

void Worker::run_thread(int thread) {
    thread_ = threads_[thread].get();
    threadIdx = {static_cast<unsigned>(thread), 0, 0};
    thread_->fibre.enter();
    thread_ = nullptr;
}

// True where all threads that live had arrived at the barrier; false where none lives.
bool Worker::release_barrier() {
    bool is_released = false;
    for (int i = 0; i < grid->block_threads; ++i) {
        if (threads_[i]->state == State::at_shuffle) {
            grid->problem = "a shuffle waits for lanes that have ended or wait at a barrier";
            return false;
        }
        if (threads_[i]->state != State::at_barrier) continue;
        threads_[i]->state = State::ready;
        is_released = true;
    }
    if (is_released) {
        ++barriers_;
        consider_handover(4);
    }
    return is_released;
}

void Worker::barrier() {
    thread_->state = State::at_barrier;
    thread_->fibre.leave();
}

uint64_t Worker::shuffle(unsigned mask, uint64_t bits, int source) {
    const int index = static_cast<int>(threadIdx.x);
    Warp& warp = warps_[index / warp_lanes];
    const unsigned set = thread_->shuffles++ % 2;
    const int lane = index % warp_lanes;
    if (!(mask >> lane & 1) || !(mask >> source & 1)) {
        grid->problem = "a shuffle names lanes that are not in its mask";
    }
    warp.values[set][lane] = bits;
    warp.arrived[set] |= 1u << lane;
    if (warp.arrived[set] == mask) {
        warp.arrived[set] = 0;
        const int first = index / warp_lanes * warp_lanes;
        for (int i = 0; i < warp_lanes && first + i < grid->block_threads; ++i) {
            Thread& other = *threads_[first + i];
            if (other.state == State::at_shuffle) other.state = State::ready;
        }
    } else {
        thread_->state = State::at_shuffle;
        thread_->fibre.leave();
    }
    return warp.values[set][source];
}

void Worker::fence() {
    buffer.fence(static_cast<int>(threadIdx.x), barriers_);
    consider_handover(256);
}

void Worker::store(void* address, size_t bytes) {
    if (!thread_ || thread_->fibre.holds(address)) return;
    buffer.record(address, bytes, static_cast<int>(threadIdx.x), barriers_);
}

void Worker::consider_handover(uint32_t one_in) {
    if (grid->random.one_in(one_in)) turns().hand_over();
}

std::mutex launches;

}  // namespace

// ---- what kernels call --------------------------------------------------------------------------

void block_barrier() { worker->barrier(); }
void fence() { worker->fence(); }
int lane() { return static_cast<int>(threadIdx.x % warp_lanes); }
uint64_t shuffle(unsigned mask, uint64_t bits, int source_lane) {
    return worker->shuffle(mask, bits, source_lane);
}

// Atomics act on memory that all blocks see at once, whatever stores are still on their way.
unsigned increment(unsigned* counter, unsigned last) {
    worker->consider_handover(2);
    const unsigned before = *counter;
    *counter = before >= last ? 0 : before + 1;
    worker->consider_handover(2);
    return before;
}

void record_store(void* address, size_t bytes) {
    if (runs_grid) worker->store(address, bytes);
}

// ---- what the runtime calls ---------------------------------------------------------------------

void set_seed(uint64_t value) {
    const std::lock_guard<std::mutex> lock(launches);
    seed = value;
}

uint64_t seed_of_launches() { return seed; }

const char* run_grid(unsigned blocks, unsigned block_threads, Invoke invoke, const void* kernel,
                     const void* parameters) {
    const std::lock_guard<std::mutex> lock(launches);
    ++counts.launches;
    Grid own{
        blocks, static_cast<int>(block_threads), invoke, kernel, parameters, {}, Random(seed++), {},
        nullptr};
    own.order.resize(blocks);
    std::iota(own.order.begin(), own.order.end(), 0u);
    own.random.shuffle(own.order);
    grid = &own;
    runs_grid = true;
    turns().run();
    runs_grid = false;
    grid = nullptr;
    own.ended.show();
    return own.problem;
}

}  // namespace zscgan::emulation

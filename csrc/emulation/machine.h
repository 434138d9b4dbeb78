// Runs a grid of blocks on the host, as a GPU might: in any order, several blocks at a time, and
// what a block has stored seen by the others as late as CUDA allows.
//
// Threads are fibres, those of several resident blocks at a time. A block hands over to another at
// barriers, fences and atomics. Its stores, those to shared memory among them, are then taken out
// of memory, and put back when its turn comes: what no fence has made visible, no other block sees
// before the grid has ended. All choices come from one seed.
//
// Where the compiler does not tell of stores (see memory.cpp) one block runs after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda_runtime.h"

namespace zscgan::emulation {

constexpr int most_threads = 1024;
constexpr int warp_lanes = 32;

// ---- choices ------------------------------------------------------------------------------------

class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 2654435769u + 1) {}
    uint32_t below(uint32_t count) {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return static_cast<uint32_t>((state_ >> 32) * count >> 32);
    }
    bool one_in(uint32_t count) { return below(count) == 0; }
    template <class Value>
    void shuffle(std::vector<Value>& values) {
        for (size_t i = values.size(); i > 1; --i) {
            std::swap(values[i - 1], values[below(static_cast<uint32_t>(i))]);
        }
    }

private:
    uint64_t state_;
};

// ---- memory -------------------------------------------------------------------------------------

// The stores of a block that no fence has made visible. They lie in memory while the block runs,
// and are taken out of it while others do.
class StoreBuffer {
public:
    // Called before a thread stores; `barriers` counts those that the block has passed.
    void record(void* address, size_t bytes, int thread, unsigned barriers);
    // A fence of a thread makes visible what it stored, and what others did before a barrier.
    void fence(int thread, unsigned barriers);
    void hide();
    void show();
    // Takes over the hidden stores of a block that has ended, but for those to shared memory.
    void append(StoreBuffer& ended);

private:
    struct Store {
        char* address;
        uint16_t bytes;
        uint16_t thread;
        unsigned barriers;
        char other[16];  // what memory holds in its place: the old bytes, or while hidden the new
    };
    static void exchange(Store& store);
    std::vector<Store> stores_;
    std::vector<Store> shared_;  // those to shared memory, which no fence shows to others
};

// ---- what tests can see -------------------------------------------------------------------------

struct Counts {
    uint64_t launches = 0;
    uint64_t blocks = 0;
    uint64_t handovers = 0;  // from one resident block to another
    uint64_t hidden = 0;     // stores taken out of sight
};
extern Counts counts;

void set_seed(uint64_t seed);
uint64_t seed_of_launches();

// ---- devices ------------------------------------------------------------------------------------

constexpr int device_count = 2;

// How often each device was made current, launched on or written to.
std::vector<uint64_t> device_uses();
cudaStream_t make_stream(int device);
void use_device();

// Runs all blocks; null, or why a GPU would have hung.
const char* run_grid(unsigned blocks, unsigned block_threads, Invoke invoke, const void* kernel,
                     const void* parameters);

}  // namespace zscgan::emulation

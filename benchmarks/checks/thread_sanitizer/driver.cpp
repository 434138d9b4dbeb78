// Runs every CPU kernel on four threads under ThreadSanitizer, and requires the bits of one thread.
//
// With the argument `race`, two calls write the same tensor at once: the sanitizer has to object.
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels.h"

namespace zscgan::cpu {
namespace {

using Bytes = std::vector<unsigned char>;

constexpr int many_threads = 4;
constexpr QuantRange range{-8, 7};
const char* const type_names[] = {"float32", "float16", "bfloat16", "float64"};

int64_t element_size(DataType type) {
    if (type == DataType::float64) return 8;
    return type == DataType::float32 ? 4 : 2;
}

template <class T>
void put(unsigned char* target, T value) {
    std::memcpy(target, &value, sizeof value);
}

// Values between 1 and 2 of any type, always the same.
Bytes values(DataType type, int64_t count) {
    Bytes bytes(static_cast<size_t>(count * element_size(type)));
    uint32_t random = 1;
    for (int64_t i = 0; i < count; ++i) {
        random = random * 1664525u + 1013904223u;
        unsigned char* target = &bytes[static_cast<size_t>(i * element_size(type))];
        if (type == DataType::float32) put(target, 1 + static_cast<float>(random >> 8) / (1 << 24));
        if (type == DataType::float64) put(target, 1 + static_cast<double>(random) / 4294967296.0);
        if (type == DataType::float16) put<uint16_t>(target, 0x3C00 | (random >> 22));
        if (type == DataType::bfloat16) put<uint16_t>(target, 0x3F80 | (random >> 25));
    }
    return bytes;
}

DataType real_of(DataType type) {
    return type == DataType::float64 ? DataType::float64 : DataType::float32;
}

// What all kernels write for one tensor, on a number of threads.
class Results {
public:
    Results(DataType type, Shape3 shape, int threads)
        : type_(type),
          shape_(shape),
          threads_(threads),
          x_(values(type, shape.numel())),
          grad_(x_),
          channels_(values(real_of(type), shape.channels)) {
        quantize();
        quantize_with_learned_scales();
        match();
        normalize();
    }

    bool operator==(const Results& other) const { return written_ == other.written_; }
    size_t count() const { return written_.size(); }

private:
    void* tensor() { return room(shape_.numel() * element_size(type_)); }
    void* vector() { return room(shape_.channels * element_size(real_of(type_))); }
    void* room(int64_t bytes) {
        written_.emplace_back(static_cast<size_t>(bytes));
        return written_.back().data();
    }

    void quantize() {
        void* mask = room((shape_.numel() + 7) / 8);
        const void* scale = channels_.data();
        fake_quantize(
            {type_, shape_, x_.data(), scale, scale, range, tensor(), static_cast<uint8_t*>(mask)},
            threads_);
        fake_quantize_backward(
            {type_, shape_.numel(), grad_.data(), static_cast<uint8_t*>(mask), tensor()}, threads_);
        if (type_ == DataType::float64) return;
        const size_t size = static_cast<size_t>(shape_.channels);
        std::vector<float> state[4] = {std::vector<float>(size, 9), std::vector<float>(size, -9),
                                       std::vector<float>(size), std::vector<float>(size)};
        update_min_max({type_,
                        shape_,
                        x_.data(),
                        {state[0].data(), state[1].data(), state[2].data(), state[3].data(), 0.1,
                         range, false}},
                       threads_);
        for (const auto& part : state) std::memcpy(vector(), part.data(), size * sizeof(float));
    }

    // One tensor by itself, then many together: they are shared out in different ways.
    void quantize_with_learned_scales() {
        for (const int64_t count : {1, 5}) {
            std::vector<LsqTensor> tensors;
            for (int64_t i = 0; i < count; ++i) {
                const void* c = channels_.data();
                tensors.push_back({shape_, x_.data(), c, c, range, 1, 0.5, Activation::relu, c,
                                   tensor(), grad_.data(), tensor(), vector(), vector(), vector()});
            }
            lsq_fake_quantize({type_, tensors.data(), count}, threads_);
            lsq_fake_quantize_backward({type_, tensors.data(), count}, threads_);
        }
    }

    void match() {
        const void* c = channels_.data();
        batch_norm_statistics({type_, shape_, x_.data(), c, vector(), vector()}, threads_);
        batch_norm_statistics_backward({type_, shape_, x_.data(), c, c, c, tensor()}, threads_);
    }

    void normalize() {
        const void* c = channels_.data();
        frozen_batch_norm({type_, shape_, x_.data(), c, c, c, grad_.data(), Activation::relu6,
                           tensor(), vector(), vector()},
                          threads_);
        frozen_batch_norm_backward({type_, shape_, grad_.data(), x_.data(), x_.data(), c, c, c, c,
                                    c, Activation::relu, tensor(), tensor()},
                                   threads_);
    }

    DataType type_;
    Shape3 shape_;
    int threads_;
    Bytes x_, grad_, channels_;
    std::vector<Bytes> written_;
};

int run_all() {
    int failures = 0;
    for (const char* name : {"portable", "avx2", "avx512"}) {
        if (!select_instruction_set(name)) continue;
        for (int code = 0; code < 4; ++code) {
            const auto type = static_cast<DataType>(code);
            for (const Shape3 shape : {Shape3{4, 7, 6011}, Shape3{30011, 8, 1},
                                       Shape3{1, 1, 200001}, Shape3{3, 9001, 5}}) {
                const Results one(type, shape, 1), many(type, shape, many_threads);
                const bool same = one == many;
                failures += !same;
                std::printf("%-8s %-8s [%5ld, %4ld, %6ld]: %zu results, %s\n", name,
                            type_names[code], static_cast<long>(shape.outer),
                            static_cast<long>(shape.channels), static_cast<long>(shape.inner),
                            many.count(), same ? "the bits of one thread" : "OTHER BITS");
            }
        }
    }
    return failures != 0;
}

int race() {
    select_instruction_set("portable");
    const Bytes x = values(DataType::float32, 1000), one = values(DataType::float32, 1);
    Bytes y(4000);
    const auto write = [&] {
        fake_quantize({DataType::float32,
                       {1, 1, 1000},
                       x.data(),
                       one.data(),
                       one.data(),
                       range,
                       y.data(),
                       nullptr},
                      1);
    };
    std::thread first(write), second(write);
    first.join();
    second.join();
    return 0;
}

}  // namespace
}  // namespace zscgan::cpu

int main(int count, char** arguments) {
    if (count > 1 && !std::strcmp(arguments[1], "race")) return zscgan::cpu::race();
    return zscgan::cpu::run_all();
}

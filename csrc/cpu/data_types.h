// From a run-time data type to a vector type and an element type.
#pragma once

#include "simd.h"

namespace zscgan::cpu::ZSCGAN_ISA {

template <class V, class T>
struct Types {
    using Vector = V;
    using Element = T;
};

// Calls function(Types<Vector, Element>{}).
template <class Function>
void with_types(DataType type, Function function) {
    switch (type) {
        case DataType::float32:
            return function(Types<FloatVector, float>{});
        case DataType::float16:
            return function(Types<FloatVector, Float16>{});
        case DataType::bfloat16:
            return function(Types<FloatVector, BFloat16>{});
        case DataType::float64:
            return function(Types<DoubleVector, double>{});
    }
}

}  // namespace zscgan::cpu::ZSCGAN_ISA

// The two products, on any variant.
#pragma once

#include "variant.h"

namespace sterna {

// y [rows, n] = x [rows, k] W^T, rows of x quantised to int8.
void forward(const Variant&, const Weights&, const float* x, int64_t rows, float* y);

// dx [rows, k] = g [rows, n] W, rows of g quantised to `limbs` (1 or 2) int8 limbs.
void backward(const Variant&, const Weights&, const float* g, int64_t rows, int limbs, float* dx);

}  // namespace sterna

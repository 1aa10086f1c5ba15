// The two products, on any variant, and the weights as bytes.
#pragma once

#include "finish.h"
#include "variant.h"

namespace sterna {

// y [rows, n] = x [rows, k] W^T, rows of x quantised to int8. Scales of rows of W multiply y at the end; scales of
// groups multiply each group's part, and the parts are added in the order of their columns. `thin` is added last.
void forward(const Variant&, const Weights&, const float* x, int64_t rows, const Thin& thin, Result y);

// dx [rows, k] = g [rows, n] W, rows of g, times the scales of rows of W, quantised to `limbs` (1 or 2) int8
// limbs; for each group of columns of W anew. `thin` is added last.
void backward(const Variant&, const Weights&, const float* g, int64_t rows, int limbs, const Thin& thin, Result dx);

// The weights -1, 0, +1 of the rows from `first`, [rows, k].
void unpack(const Weights&, int64_t first, int64_t rows, int8_t* codes);

}  // namespace sterna

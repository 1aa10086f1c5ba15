// The small side of an adapter: rows of activations times the few rows of A.
#pragma once

#include <cstdint>

#include "activations.h"

namespace sterna {

// left [count][rank] = x [count][length] a [rank][length]^T. Sums are float32, in 16 interleaved parts of
// every 1,024 columns; whether multiplication and addition are rounded apart is the processor's affair.
void lower(const float* x, int64_t count, int64_t length, const float* a, int64_t rank, float* left);

// Rows as `read` gives them, [..][length], whose products with `a` go to `left` on their way.
ReadRows lowered(const ReadRows& read, int64_t length, const float* a, int64_t rank, float* left);

// The gradient of the other side, to [columns][rank] = scale * g [rows][columns]^T left [rows][rank], in float32.
void outer(Rows g, int64_t rows, int64_t columns, const float* left, int64_t rank, float scale, float* to);

}  // namespace sterna

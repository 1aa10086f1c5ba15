// The small side of an adapter: rows of activations times the few rows of A.
#pragma once

#include <cstdint>

namespace sterna {

// left [count][rank] = x [count][length] a [rank][length]^T. Sums are float32, in 16 interleaved parts of
// every 1,024 columns; whether multiplication and addition are rounded apart is the processor's affair.
void lower(const float* x, int64_t count, int64_t length, const float* a, int64_t rank, float* left);

}  // namespace sterna

// What a decoder does with rows between two products: norms, gated activations, rotations. One pass over memory
// each, where a chain of elementwise operators takes five to ten.
//
// Rows come in float32 or, rounded, in bfloat16 (the type of `Rows`); sums and results are float32 unless said
// otherwise. Unlike the products these are not bit for bit the same everywhere: the order of a sum follows the
// vector length. Nothing that peers must agree on depends on them.
#pragma once

#include <cstdint>

#include "bfloat16.h"

namespace sterna {

// [count][length], dense.
struct Rows {
  const void* data;
  bool is_bfloat16;

  const float* floats() const { return is_bfloat16 ? nullptr : static_cast<const float*>(data); }
  const Bfloat16* halves() const { return is_bfloat16 ? static_cast<const Bfloat16*>(data) : nullptr; }

  // What begins so many numbers further on.
  Rows from(int64_t count) const {
    return {static_cast<const char*>(data) + count * (is_bfloat16 ? 2 : 4), is_bfloat16};
  }
};

inline constexpr int64_t kElementWork = 16;  // an element costs about as much as this many multiplications

// The angles of positions, cos and sin [period][head_size / 2]: row t has those of t % period.
struct Angles {
  const float* cos;
  const float* sin;
  int64_t period;
};

enum class Activation { kRelu2, kSilu };

// y = w x / rms(x), rms(x) = sqrt(mean(x^2) + eps); inverse [rows] receives 1 / rms(x).
void rms_norm(Rows x, const float* w, float eps, int64_t rows, int64_t length, float* y, float* inverse);

// dx = residual + the norm's gradient for g; `residual` may be null and may be dx itself.
void rms_norm_backward(const float* g, Rows x, const float* w, const float* inverse, const float* residual,
                       int64_t rows, int64_t length, float* dx);

// y = act(gate) * up, normed as above if `w` is not null.
void gated(Activation act, Rows gate, Rows up, const float* w, float eps, int64_t rows, int64_t length, float* y,
           float* inverse);

// y = act(gate) * up for a block of both, dense rows `stride` apart; y may be in bfloat16, its rows `y_stride` apart.
void gate_block(Activation act, const float* gate, const float* up, int64_t stride, int64_t rows, int64_t columns,
                void* y, bool to_bfloat16, int64_t y_stride);

// The gradients of both inputs, in what they are in; `inverse` as gated() gave it, null without a norm.
void gated_backward(Activation act, const float* g, Rows gate, Rows up, const float* w, const float* inverse,
                    int64_t rows, int64_t length, void* dgate, void* dup);

// Half-rotation of x [tokens][heads][size] by the angles of its positions; `sign` -1 turns back. Reads and writes
// float32 or bfloat16.
void rotate(Rows x, const Angles&, float sign, int64_t tokens, int64_t heads, int64_t size, bool to_bfloat16, void* y);

// The same of a block of one head: rows from position `t0` on, the columns from `i0` on of both halves, `stride` apart;
// y and, `half` further on, its second half have rows `y_stride` apart.
void rotate_block(const float* first, const float* second, int64_t stride, int64_t rows, int64_t columns, const Angles&,
                  int64_t t0, int64_t i0, int64_t half, void* y, bool to_bfloat16, int64_t y_stride);

// `count` numbers in float32: where they are or, from bfloat16, in `room`.
Rows widened(Rows x, int64_t count, float* room);

// Rows x [tokens][heads][size] become the rows from `first` on of each head in `room` [heads][capacity][size].
void put_heads(Rows x, int64_t tokens, int64_t heads, int64_t size, int64_t capacity, int64_t first, float* room);

// The attention of one token, y [heads][size] = softmax(q k^T / sqrt(size)) v: q [heads][size], the first `count`
// rows of keys and values [kv_heads][capacity][size]; heads / kv_heads heads in a row share theirs.
void attend(const float* q, const float* keys, const float* values, int64_t heads, int64_t kv_heads, int64_t size,
            int64_t capacity, int64_t count, float* y);

}  // namespace sterna

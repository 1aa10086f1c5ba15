// The two products, on any variant, and the weights as bytes.
#pragma once

#include "activations.h"
#include "finish.h"
#include "rows.h"
#include "variant.h"

namespace sterna {

// Rows [rows, k] of activations, quantised to int8 once for all the products that take them. They lie in memory of the
// thread that made them, which has room for one such input at a time.
class Input {
 public:
  Input(const Variant&, int64_t rows, int64_t k, const ReadRows&);

  // So few that the products read the packed weights and unpack nothing.
  bool is_few() const { return rows <= variant.gemv_rows; }

  const Variant& variant;
  const int64_t rows;
  const int64_t depth;
  const int8_t* codes;
  const int32_t* sums;
  const float* steps;
};

// y [rows, n] = x W^T. Scales of rows of W multiply y at the end; scales of groups multiply each group's part, and the
// parts are added in the order of their columns. `thin` is added after that.
void forward(const Weights&, const Input& x, const Thin& thin, Result y);

// z [rows, n] = act(x Wgate^T + thin) * (x Wup^T + thin): neither product lies in memory as a whole. For more than a few
// rows, and for matrices without scales of groups.
void forward_gated(const Weights& gate, const Weights& up, Activation, const Input& x, const Thin& gate_thin,
                   const Thin& up_thin, Result z);

// y [rows, n] = x W^T + thin, each head of `size` columns rotated by the angles of its row's position. Where it `turns`:
// for more than a few rows, no scales of groups, and heads whose halves are whole panels.
bool turns(const Weights&, const Input& x, int64_t size);
void forward_turned(const Weights&, const Input& x, const Thin& thin, const Angles&, int64_t size, Result y);

// y of rows x [rows, k] that no other product takes.
void forward(const Variant&, const Weights&, const ReadRows& x, int64_t rows, const Thin& thin, Result y);

// dx [rows, k] = g [rows, n] W, rows of g, times the scales of rows of W, quantised to `limbs` (1 or 2) int8
// limbs; for each group of columns of W anew. `thin` is added last.
void backward(const Variant&, const Weights&, const ReadRows& g, int64_t rows, int limbs, const Thin& thin, Result dx);

// The weights -1, 0, +1 of the rows from `first`, [rows, k].
void unpack(const Weights&, int64_t first, int64_t rows, int8_t* codes);

}  // namespace sterna

// Rows on their way into a product: quantised, laid out for a variant, and taken apart where columns have groups.
#pragma once

#include <functional>

#include "rows.h"
#include "scratch.h"
#include "variant.h"

namespace sterna {

// Returns the rows [count][k] from m on of what goes into a product, and may write them to `room`, which takes as many
// in float32. Threads that work call it, once for each row, in any order.
using ReadRows = std::function<Rows(int64_t m, int64_t count, float* room)>;

// Rows that lie in memory, [..][length].
ReadRows rows_at(Rows, int64_t length);

// Rows as QuantiseTask describes them, in memory of the thread that made them.
struct Activations {
  const int8_t* codes;
  const int32_t* sums;
  const float* factors;
  int64_t depth;
};

// What the quantised rows of a product are.
struct RowKind {
  float floor;
  int limbs;
  bool is_stochastic;
};
inline constexpr RowKind kActivationRows = {1e-5f, 1, false};  // the floor is BitNet b1.58's

// Small elements beside a large one would all round to zero: by chance the sum of many comes out right. The floor keeps
// 127 * 256 / floor finite and floor / (127 * 256) normal.
constexpr RowKind gradient_rows(int limbs) { return {0x1p-100f, limbs, limbs == 1}; }

// Rows [rows][length] in tiles of `tile` rows; the factors are the steps alone.
Activations quantise(const Variant&, int64_t tile, int64_t rows, int64_t length, const RowKind&, const ReadRows&);

// The same for a product with a matrix of this scale.
Activations scaled(const Activations&, int64_t rows, float scale, Scratch&);

// Rows of one limb, group after group of columns of W: each group is laid out as if it were all there is, so that
// the variants know nothing of groups.
class GroupedActivations {
 public:
  GroupedActivations(const Activations&, int64_t tile, int64_t rows, int64_t group);

  // Of one group; the factors are the rows', because a row is quantised as a whole.
  Activations of(int64_t group) const;

 private:
  const Activations a_;
  const int64_t rows_, padded_rows_, group_;
  int8_t* const codes_;
  int32_t* const sums_;
};

}  // namespace sterna

// Compiled with fused multiply-add where there is one: nothing says to the bit what comes out here.
#include "lower.h"

#include <algorithm>
#include <cstring>

#include "clones.h"
#include "line.h"

namespace sterna {
namespace {

constexpr int64_t kRows = 4, kRanks = 2;  // whose sums are kept in registers
constexpr int64_t kColumns = 1024;        // of so many rows stay in the first-level cache

[[gnu::always_inline]] inline float total(const Line& line) {
  float parts[kLine];
  memcpy(parts, &line, sizeof parts);
  for (int64_t half = kLine / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

// Adds the part of `columns` columns to kCount x kWidth sums.
template <int kCount, int kWidth>
[[gnu::always_inline]] inline void add_block(const float* x, const float* a, int64_t length, int64_t columns,
                                             float* left, int64_t rank) {
  Line sums[kCount][kWidth] = {};
  const auto add = [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    Line right[kWidth];
    for (int r = 0; r < kWidth; ++r) load_line(a + r * length + c, count, right[r]);
    for (int m = 0; m < kCount; ++m) {
      Line row;
      load_line(x + m * length + c, count, row);
      for (int r = 0; r < kWidth; ++r) sums[m][r] += row * right[r];
    }
  };
  int64_t c = 0;
  for (; c + kLine <= columns; c += kLine) add(c, kLine);
  if (c < columns) add(c, columns - c);
  for (int m = 0; m < kCount; ++m)
    for (int r = 0; r < kWidth; ++r) left[m * rank + r] += total(sums[m][r]);
}

STERNA_CLONES void add_columns(const float* x, int64_t count, int64_t length, int64_t columns, const float* a,
                               int64_t rank, float* left) {
  int64_t r = 0;
  for (; r + kRanks <= rank; r += kRanks) {
    int64_t m = 0;
    for (; m + kRows <= count; m += kRows)
      add_block<kRows, kRanks>(x + m * length, a + r * length, length, columns, left + m * rank + r, rank);
    for (; m < count; ++m)
      add_block<1, kRanks>(x + m * length, a + r * length, length, columns, left + m * rank + r, rank);
  }
  for (int64_t m = 0; r < rank && m < count; ++m)
    add_block<1, 1>(x + m * length, a + r * length, length, columns, left + m * rank + r, rank);
}

}  // namespace

void lower(const float* x, int64_t count, int64_t length, const float* a, int64_t rank, float* left) {
  std::fill_n(left, count * rank, 0.0f);
  for (int64_t c = 0; c < length; c += kColumns)
    add_columns(x + c, count, length, std::min(kColumns, length - c), a + c, rank, left);
}

}  // namespace sterna

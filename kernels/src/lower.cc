// Compiled with fused multiply-add where there is one: nothing says to the bit what comes out here.
#include "lower.h"

#include <algorithm>
#include <cstring>

#include "clones.h"
#include "line.h"
#include "threads.h"

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

constexpr int64_t kWide = 4;  // lines of columns beside each other
constexpr int64_t kOuterWork = 4;  // a multiplication here costs about as much as this many of a ternary product

[[gnu::always_inline]] inline void load_columns(const float* from, int64_t count, Line& line) {
  load_line(from, count, line);
}

[[gnu::always_inline]] inline void load_columns(const Bfloat16* from, int64_t count, Line& line) {
  float wide[kLine] = {};
  for (int64_t i = 0; i < count; ++i) wide[i] = load(from + i);
  memcpy(&line, wide, sizeof line);
}

// kCount ranks of up to kWide lines of columns.
template <int kCount, class T>
[[gnu::always_inline]] inline void outer_block(const T* g, int64_t rows, int64_t stride, int64_t columns,
                                               const float* left, int64_t rank, float scale, float* to) {
  Line sums[kCount][kWide] = {};
  const auto add = [&](int64_t m, int64_t lines, int64_t count) __attribute__((always_inline)) {
    Line row[kWide];
    for (int64_t l = 0; l < lines; ++l) load_columns(g + m * stride + l * kLine, count, row[l]);
    for (int j = 0; j < kCount; ++j)
      for (int64_t l = 0; l < lines; ++l) sums[j][l] += left[m * rank + j] * row[l];
  };
  if (columns == kWide * kLine) {
    for (int64_t m = 0; m < rows; ++m) add(m, kWide, kLine);
  } else {
    for (int64_t m = 0; m < rows; ++m) add(m, 1, columns);
  }
  for (int64_t c = 0; c < columns; ++c)
    for (int j = 0; j < kCount; ++j) to[c * rank + j] = scale * sums[j][c / kLine][c % kLine];
}

template <class T>
STERNA_CLONES void outer_columns(const T* g, int64_t rows, int64_t stride, int64_t columns, const float* left,
                                 int64_t rank, float scale, float* to) {
  int64_t j = 0;
  for (; j + 4 <= rank; j += 4) outer_block<4>(g, rows, stride, columns, left + j, rank, scale, to + j);
  for (; j < rank; ++j) outer_block<1>(g, rows, stride, columns, left + j, rank, scale, to + j);
}

}  // namespace

ReadRows lowered(const ReadRows& read, int64_t length, const float* a, int64_t rank, float* left) {
  return [=](int64_t m, int64_t count, float* room) {
    const Rows x = widened(read(m, count, room), count * length, room);
    lower(x.floats(), count, length, a, rank, left + m * rank);
    return x;
  };
}

void outer(Rows g, int64_t rows, int64_t columns, const float* left, int64_t rank, float scale, float* to) {
  constexpr int64_t kBlock = kWide * kLine;
  for_each_item((columns + kBlock - 1) / kBlock, rows * columns * rank * kOuterWork, [&](int64_t item) {
    // What is left over goes by single lines.
    for (int64_t c = item * kBlock, end = std::min(columns, c + kBlock); c < end;) {
      const int64_t count = end - c == kBlock ? kBlock : std::min(kLine, end - c);
      if (g.is_bfloat16) {
        outer_columns(g.halves() + c, rows, columns, count, left, rank, scale, to + c * rank);
      } else {
        outer_columns(g.floats() + c, rows, columns, count, left, rank, scale, to + c * rank);
      }
      c += count;
    }
  });
}

void lower(const float* x, int64_t count, int64_t length, const float* a, int64_t rank, float* left) {
  std::fill_n(left, count * rank, 0.0f);
  for (int64_t c = 0; c < length; c += kColumns)
    add_columns(x + c, count, length, std::min(kColumns, length - c), a + c, rank, left);
}

}  // namespace sterna

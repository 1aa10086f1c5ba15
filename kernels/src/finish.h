// The end of a product: from the results of a panel to what the caller gets.
#pragma once

#include <cstdint>

namespace sterna {

// A product of low rank that is added to a result of `columns` columns: left [rows][rank] x right [rank][columns].
struct Thin {
  const float* left = nullptr;
  const float* right = nullptr;
  int64_t rank = 0;
};

// Where a result goes, dense, in float32 or bfloat16, or what it is added to, in float32.
struct Result {
  void* data;
  bool is_bfloat16 = false;
  bool is_added = false;
};

// out[m][c] = part[m][c] * scales[c] + left[m][0] * right[0][c] + left[m][1] * right[1][c] + ...
//
// in this order, each operation rounded once, and in the end to bfloat16 if that is wanted: to nearest, halves to
// even. Where the result is added, what stands in out[m][c] comes last.
struct FinishTask {
  const float* part;  // [rows][part_stride]
  int64_t part_stride;
  int64_t rows, columns;
  const float* scales;  // [columns], or null
  Thin thin;            // its first row and column are those of `part`
  int64_t right_stride;
  Result out;  // from the first row and column of `part` on
  int64_t out_stride;
  bool streams;  // write past the caches; columns then start on 64 bytes and are a multiple of 16
};

void finish(const FinishTask&);

}  // namespace sterna

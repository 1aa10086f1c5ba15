#include "activations.h"

#include <algorithm>

#include "threads.h"

namespace sterna {
namespace {

constexpr int64_t kRows = 8;   // read at once
constexpr int64_t kWork = 32;  // an element costs about as much as this many multiplications

// Of the calling thread.
thread_local Scratch codes_scratch, sums_scratch, steps_scratch, grouped_scratch, grouped_sums_scratch;
thread_local Scratch rows_scratch;  // of each thread that works

}  // namespace

ReadRows rows_at(Rows x, int64_t length) {
  return [=](int64_t m, int64_t, float*) { return x.from(m * length); };
}

Activations quantise(const Variant& v, int64_t tile, int64_t rows, int64_t length, const RowKind& kind,
                     const ReadRows& read) {
  const int64_t depth = round_up(length, kBlockColumns), limbs = kind.limbs;
  int8_t* codes = codes_scratch.get<int8_t>(round_up(rows * limbs, tile) * depth);
  int32_t* sums = sums_scratch.get<int32_t>(rows * limbs);
  float* steps = steps_scratch.get<float>(rows);
  const auto start = [&](int64_t limb_row) {
    return codes + limb_row / tile * tile * depth + limb_row % tile * kBlockColumns;
  };
  for_each_item(ceil_div(rows, kRows), rows * length * kWork, [&](int64_t item) {
    const int64_t first = item * kRows, count = std::min(rows - first, kRows);
    float* room = rows_scratch.get<float>(kRows * length);
    Rows some = read(first, count, room);
    if (!v.has_bfloat16) some = widened(some, count * length, room);
    for (int64_t m = first; m < first + count; ++m) {
      const Rows x = some.from((m - first) * length);
      v.quantise_row({x.floats(), length, depth, kind.floor, kind.limbs, start(m * limbs),
                      start(m * limbs + limbs - 1), tile * kBlockColumns, sums + m * limbs, steps + m,
                      kind.is_stochastic, m, x.halves()});
    }
  });
  return {codes, sums, steps, depth};
}

Activations scaled(const Activations& a, int64_t rows, float scale, Scratch& scratch) {
  float* factors = scratch.get<float>(rows);
  std::transform(a.factors, a.factors + rows, factors, [scale](float step) { return step * scale; });
  return {a.codes, a.sums, factors, a.depth};
}

GroupedActivations::GroupedActivations(const Activations& a, int64_t tile, int64_t rows, int64_t group)
    : a_(a), rows_(rows), padded_rows_(round_up(rows, tile)), group_(group),
      codes_(grouped_scratch.get<int8_t>(padded_rows_ * a.depth)),
      sums_(grouped_sums_scratch.get<int32_t>(rows * ceil_div(a.depth, group))) {
  for_each_item(padded_rows_ / tile, rows * a.depth, [&](int64_t item) {
    const int8_t* from = a.codes + item * tile * a.depth;
    const int64_t end = std::min(rows, (item + 1) * tile);
    for (int64_t first = 0; first < a.depth; first += group) {
      const int64_t depth = std::min(group, a.depth - first);
      int8_t* to = codes_ + padded_rows_ * first + item * tile * depth;
      std::copy_n(from + tile * first, tile * depth, to);
      for (int64_t m = item * tile; m < end; ++m) {
        int32_t sum = 0;
        for (int64_t d = 0; d < depth; d += kBlockColumns) {
          const int8_t* chunk = to + d * tile + m % tile * kBlockColumns;
          for (int64_t i = 0; i < kBlockColumns; ++i) sum += chunk[i];
        }
        sums_[first / group * rows + m] = sum;
      }
    }
  });
}

Activations GroupedActivations::of(int64_t group) const {
  const int64_t first = group * group_;
  return {codes_ + padded_rows_ * first, sums_ + group * rows_, a_.factors, std::min(group_, a_.depth - first)};
}

}  // namespace sterna

#include "product.h"

#include <algorithm>
#include <functional>

#include "scratch.h"
#include "threads.h"

namespace sterna {
namespace {

constexpr float kActivationFloor = 1e-5f;        // BitNet b1.58
constexpr float kGradientFloor = 0x1p-100f;      // keeps 127 * 256 / floor finite, floor / (127 * 256) normal
constexpr int64_t kActivationBytes = 1 << 20;    // quantised rows that a second-level cache holds
constexpr int64_t kStreamedElements = 1 << 18;   // 1 MiB of results leave the cache before they are read
constexpr int64_t kGemvBlocks = 4;               // rows of blocks a thread takes at once
constexpr int64_t kQuantiseRows = 8;
constexpr int64_t kQuantiseWork = 32;  // an element costs about as much as this many multiplications

thread_local Scratch activations_scratch, sums_scratch, factors_scratch;  // of the calling thread
thread_local Scratch panel_scratch, ragged_scratch, scaled_scratch;       // of each thread that works

struct Activations {
  int8_t* codes;
  int32_t* sums;
  float* factors;
  int64_t depth;
};

// `scales`, if any, multiply the elements of each row before anything else.
Activations quantise(const Variant& v, int64_t tile, const float* x, int64_t rows, int64_t length,
                     const float* scales, float floor, int limbs, bool is_stochastic, float scale) {
  const int64_t depth = round_up(length, kBlockColumns);
  const Activations a = {activations_scratch.get<int8_t>(round_up(rows * limbs, tile) * depth),
                         sums_scratch.get<int32_t>(rows * limbs), factors_scratch.get<float>(rows), depth};
  const auto start = [&](int64_t limb_row) {
    return a.codes + limb_row / tile * tile * depth + limb_row % tile * kBlockColumns;
  };
  for_each_item(ceil_div(rows, kQuantiseRows), rows * length * kQuantiseWork, [&](int64_t item) {
    const int64_t end = std::min(rows, (item + 1) * kQuantiseRows);
    for (int64_t m = item * kQuantiseRows; m < end; ++m) {
      float step;
      const float* row = x + m * length;
      if (scales != nullptr) {
        float* scaled = scaled_scratch.get<float>(length);
        std::transform(row, row + length, scales, scaled, std::multiplies<>());
        row = scaled;
      }
      v.quantise_row({row, length, depth, floor, limbs, start(m * limbs), start(m * limbs + limbs - 1),
                      tile * kBlockColumns, a.sums + m * limbs, &step, is_stochastic, m});
      a.factors[m] = step * scale;
    }
  });
  return a;
}

// Moves `count` results to their place, if they are not there yet, and multiplies them by their rows' scales.
void finish(const float* from, int64_t count, const float* scales, float* to) {
  if (scales != nullptr) {
    std::transform(from, from + count, scales, to, std::multiplies<>());
  } else if (from != to) {
    std::copy_n(from, count, to);
  }
}

// Every panel of columns of the result, for chunks of rows that fit the cache.
void multiply_panels(const Variant& v, const Weights& w, bool is_forward, const Activations& a, int64_t rows,
                     int limbs, float* out) {
  const int64_t columns = is_forward ? w.n : w.k;
  const int64_t panels = ceil_div(columns, v.panel_columns);
  const int64_t fitting = std::max<int64_t>(16, kActivationBytes / (a.depth * limbs));
  const int64_t chunk = round_up(ceil_div(rows, ceil_div(rows, fitting)), 16);
  const int64_t chunks = ceil_div(rows, chunk);
  const bool scales_follow = is_forward && w.row_scales != nullptr;
  const bool on_lines = reinterpret_cast<uintptr_t>(out) % 64 == 0 && columns % 16 == 0;
  const bool streams = on_lines && !scales_follow && rows * columns >= kStreamedElements;
  for_each_item(chunks * panels, rows * limbs * w.n * w.k, [&](int64_t item) {
    const int64_t m0 = item / panels * chunk, c0 = item % panels * v.panel_columns;
    const int64_t m = std::min(chunk, rows - m0), c = std::min(v.panel_columns, columns - c0);
    uint8_t* codes = panel_scratch.get<uint8_t>(a.depth * v.panel_columns);
    float* target = out + m0 * columns + c0;
    const bool ragged = c < v.panel_columns;
    float* direct = ragged ? ragged_scratch.get<float>(m * v.panel_columns) : target;
    // m0 is a multiple of 16, so it starts a tile.
    v.multiply({w, is_forward, c0, codes, a.codes + m0 * limbs * a.depth, a.sums + m0 * limbs, a.factors + m0,
                m, a.depth, limbs, direct, ragged ? v.panel_columns : columns, streams && !ragged});
    const float* scales = scales_follow ? w.row_scales + c0 : nullptr;
    if (!ragged && scales == nullptr) return;
    for (int64_t r = 0; r < m; ++r)
      finish(direct + r * (ragged ? v.panel_columns : columns), c, scales, target + r * columns);
  });
}

// A few rows, one after the other, on a few rows of blocks that stay in the cache: memory is read once.
void multiply_few(const Variant& v, const Weights& w, const Activations& a, int64_t rows, float* y) {
  const int64_t blocks = w.n_blocks();
  for_each_item(ceil_div(blocks, kGemvBlocks), rows * w.n * w.k, [&](int64_t item) {
    const int64_t nb = item * kGemvBlocks, count = std::min(kGemvBlocks, blocks - nb);
    const int64_t columns = std::min(w.n - nb * kBlockRows, count * kBlockRows);
    const bool ragged = columns < count * kBlockRows;
    float edge[kGemvBlocks * kBlockRows];
    for (int64_t m = 0; m < rows; ++m) {
      float* target = y + m * w.n + nb * kBlockRows;
      v.gemv({w.block(nb, 0), count, w.k_blocks(), a.codes + m * a.depth, a.sums[m], a.factors[m],
              ragged ? edge : target});
      const float* scales = w.row_scales != nullptr ? w.row_scales + nb * kBlockRows : nullptr;
      finish(ragged ? edge : target, columns, scales, target);
    }
  });
}

}  // namespace

void forward(const Variant& v, const Weights& w, const float* x, int64_t rows, float* y) {
  if (rows == 0) return;
  if (rows <= v.gemv_rows) {
    const auto a = quantise(v, 1, x, rows, w.k, nullptr, kActivationFloor, 1, false, w.scale);
    multiply_few(v, w, a, rows, y);
  } else {
    const auto a = quantise(v, v.tile_rows, x, rows, w.k, nullptr, kActivationFloor, 1, false, w.scale);
    multiply_panels(v, w, true, a, rows, 1, y);
  }
}

void backward(const Variant& v, const Weights& w, const float* g, int64_t rows, int limbs, float* dx) {
  if (rows == 0) return;
  // Small elements beside a large one would all round to zero: by chance the sum of many comes out right.
  const bool is_stochastic = limbs == 1;
  const auto a = quantise(v, v.tile_rows, g, rows, w.n, w.row_scales, kGradientFloor, limbs, is_stochastic,
                          w.scale);
  multiply_panels(v, w, false, a, rows, limbs, dx);
}

void unpack(const Weights& w, int64_t first, int64_t rows, int8_t* codes) {
  for (int64_t r = first; r < first + rows; ++r)
    for (int64_t c = 0; c < w.k; c += 4) {
      const uint8_t* four =
          w.block(r / kBlockRows, c / kBlockColumns) + c % kBlockColumns / 16 * 64 + r % kBlockRows * 4;
      const int shift = static_cast<int>(c % 16 / 4 * 2);
      for (int64_t kk = 0; kk < std::min<int64_t>(4, w.k - c); ++kk)
        *codes++ = static_cast<int8_t>((four[kk] >> shift & 3) - 1);
    }
}

}  // namespace sterna

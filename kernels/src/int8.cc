#include "int8.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "scratch.h"
#include "threads.h"

namespace sterna {
namespace {

// A logit's row has no floor of its own: like a gradient's, it only keeps limit / floor finite.
constexpr float kFloor = 0x1p-100f;
constexpr int64_t kActivationBytes = 1 << 20;  // quantised rows that stay in a 2 MiB L2 beside a panel
constexpr int64_t kGemvRowsAtOnce = 64;        // rows of W that a thread takes at once
constexpr int64_t kQuantiseRows = 8;
constexpr int64_t kQuantiseWork = 32;  // an element costs about as much as this many multiplications

thread_local Scratch codes_scratch, sums_scratch, steps_scratch;     // of the calling thread
thread_local Scratch panel_scratch, ragged_scratch, scaled_scratch;  // of each thread that works
thread_local Scratch scales_scratch, joined_scratch;

const Int8Kernels& kernels_of([[maybe_unused]] const Variant& v) {
#ifdef STERNA_X86
  if (&v == &kAvx2) return kInt8Avx2;
  if (&v == &kAvxVnni) return kInt8AvxVnni;
  if (&v == &kAvxVnniEvex) return kInt8AvxVnniEvex;
  if (&v == &kAvx512Vnni) return kInt8Avx512Vnni;
  if (&v == &kAmxEmulated) return kInt8AmxEmulated;
#endif
#ifdef STERNA_AMX
  if (&v == &kAmx) return kInt8Amx;
#endif
  return kInt8Scalar;
}

struct Limbs {
  int8_t* codes;
  int32_t* sums;
  float* steps;
  int64_t depth;
};

// The two limb rows of a row become one of int16 in their place.
void join_limbs(int8_t* limbs, int64_t depth) {
  int16_t* joined = joined_scratch.get<int16_t>(depth);
  for (int64_t d = 0; d < depth; ++d) joined[d] = static_cast<int16_t>(256 * limbs[d] + limbs[depth + d]);
  std::memcpy(limbs, joined, static_cast<size_t>(2 * depth));
}

// `length` floats of each row from x, `stride` apart, times `scales`, if any.
Limbs quantise(const Variant& v, const Int8Kernels& kernels, int64_t tile, const float* x, int64_t stride,
               int64_t rows, int64_t length, const float* scales) {
  const int64_t depth = round_up(length, 64);
  const Limbs a = {codes_scratch.get<int8_t>(round_up(rows * 2, tile) * depth),
                   sums_scratch.get<int32_t>(rows * 2), steps_scratch.get<float>(rows), depth};
  const auto start = [&](int64_t limb_row) {
    return a.codes + limb_row / tile * tile * depth + limb_row % tile * 64;
  };
  for_each_item(ceil_div(rows, kQuantiseRows), rows * length * kQuantiseWork, [&](int64_t item) {
    const int64_t end = std::min(rows, (item + 1) * kQuantiseRows);
    for (int64_t m = item * kQuantiseRows; m < end; ++m) {
      const float* row = x + m * stride;
      if (scales != nullptr) {
        float* scaled = scaled_scratch.get<float>(length);
        std::transform(row, row + length, scales, scaled, std::multiplies<>());
        row = scaled;
      }
      v.quantise_row({row, length, depth, kFloor, 2, start(2 * m), start(2 * m + 1), tile * 64,
                      a.sums + 2 * m, a.steps + m, false, m});
      if (kernels.joins_limbs) join_limbs(start(2 * m), depth);
    }
  });
  return a;
}

// Columns c0 .. c0 + count - 1 of the result for all rows, from a panel that is ready. `scales` and `out`
// start at c0.
void multiply_panel(const Int8Kernels& kernels, const void* codes, const Limbs& a, int64_t m0, int64_t rows,
                    const float* scales, int64_t count, bool adds, float* out, int64_t out_stride) {
  const int64_t width = kernels.panel_columns;
  const bool ragged = count < width;
  const float* full_scales = scales;
  float* direct = out + m0 * out_stride;
  if (ragged) {
    direct = ragged_scratch.get<float>(rows * width);
    if (scales != nullptr) {
      float* padded = scales_scratch.get<float>(width);
      std::fill(std::copy_n(scales, count, padded), padded + width, 0.0f);
      full_scales = padded;
    }
  }
  // m0 is a multiple of 16, so it starts a tile.
  kernels.multiply({codes, a.codes + m0 * 2 * a.depth, a.sums + 2 * m0, a.steps + m0, full_scales, rows,
                    a.depth, direct, ragged ? width : out_stride, adds && !ragged});
  if (!ragged) return;
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = direct + r * width;
    float* to = out + (m0 + r) * out_stride;
    if (adds) {
      std::transform(from, from + count, to, to, std::plus<>());
    } else {
      std::copy_n(from, count, to);
    }
  }
}

int64_t chunk_rows(int64_t rows, int64_t depth) {
  const int64_t fitting = std::max<int64_t>(16, kActivationBytes / (2 * depth));
  return round_up(ceil_div(rows, ceil_div(rows, fitting)), 16);
}

void forward_few(const Int8Kernels& kernels, const Int8Weights& w, const Limbs& a, int64_t rows, float* y) {
  for_each_item(ceil_div(w.n, kGemvRowsAtOnce), rows * w.n * w.k, [&](int64_t item) {
    const int64_t first = item * kGemvRowsAtOnce, count = std::min(kGemvRowsAtOnce, w.n - first);
    for (int64_t m = 0; m < rows; ++m) {
      kernels.gemv({w.codes + first * w.k, count, w.k, a.codes + 2 * m * a.depth, a.sums + 2 * m, a.steps[m],
                    w.scales + first, y + m * w.n + first});
    }
  });
}

}  // namespace

void int8_forward(const Variant& v, const Int8Weights& w, const float* x, int64_t rows, float* y) {
  if (rows == 0) return;
  const Int8Kernels& kernels = kernels_of(v);
  if (rows <= kernels.gemv_rows) {
    forward_few(kernels, w, quantise(v, kernels, 1, x, w.k, rows, w.k, nullptr), rows, y);
    return;
  }
  const Limbs a = quantise(v, kernels, kernels.tile_rows, x, w.k, rows, w.k, nullptr);
  const int64_t chunk = chunk_rows(rows, a.depth);
  for_each_item(ceil_div(w.n, kernels.panel_columns), 2 * rows * w.n * w.k, [&](int64_t panel) {
    const int64_t c0 = panel * kernels.panel_columns, count = std::min(kernels.panel_columns, w.n - c0);
    void* codes = panel_scratch.get<int16_t>(a.depth * kernels.panel_columns);
    kernels.panel_forward({w.codes + c0 * w.k, w.k, count, w.k, codes});
    for (int64_t m0 = 0; m0 < rows; m0 += chunk)
      multiply_panel(kernels, codes, a, m0, std::min(chunk, rows - m0), w.scales + c0, count, false, y + c0,
                     w.n);
  });
}

void int8_backward(const Variant& v, const Int8Weights& w, const float* g, int64_t rows, float* dx) {
  if (rows == 0) return;
  const Int8Kernels& kernels = kernels_of(v);
  for (int64_t first = 0; first < w.n; first += kInt8Group) {
    const int64_t group = std::min(kInt8Group, w.n - first);
    const Limbs a = quantise(v, kernels, kernels.tile_rows, g + first, w.n, rows, group, w.scales + first);
    for_each_item(ceil_div(w.k, kernels.panel_columns), 2 * rows * group * w.k, [&](int64_t panel) {
      const int64_t c0 = panel * kernels.panel_columns, count = std::min(kernels.panel_columns, w.k - c0);
      void* codes = panel_scratch.get<int16_t>(a.depth * kernels.panel_columns);
      kernels.panel_backward({w.codes + first * w.k + c0, w.k, group, count, codes});
      multiply_panel(kernels, codes, a, 0, rows, nullptr, count, first > 0, dx + c0, w.k);
    });
  }
}

}  // namespace sterna

// What attention and its gradient do with AMX tiles of bfloat16: tdpbf16ps multiplies 16 rows x 32 numbers with 32 x 16.
//
// Everything here has internal linkage: each file that includes it gets its own copy with its own flags.
#pragma once

#include <immintrin.h>

#include <cstring>

#ifdef STERNA_AMX_EMULATED
#include "amx_emulated.h"
#endif

#include "amx_tiles.h"
#include "avx512.h"
#include "bfloat16.h"
#include "layout.h"

namespace sterna {
namespace {

constexpr int64_t kDepth = 32;  // numbers of a tile's row
constexpr int64_t kElement = sizeof(Bfloat16);

// A step of transposing 16 rows of 16 lanes: blocks of kLanes x kLanes beside the diagonal change places.
template <int kLanes>
[[gnu::always_inline]] inline void swap_halves(__m512i rows[16]) {
  // Lanes of two rows `kLanes` apart that change places.
  alignas(64) static constexpr auto indices = [] {
    struct {
      int32_t low[16], high[16];
    } found{};
    for (int i = 0; i < 16; ++i) {
      const bool moves = i & kLanes;
      found.low[i] = moves ? 16 + i - kLanes : i;
      found.high[i] = moves ? 16 + i : i + kLanes;
    }
    return found;
  }();
  const __m512i low = _mm512_load_si512(indices.low), high = _mm512_load_si512(indices.high);
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) {
    if (r & kLanes) continue;
    const __m512i first = rows[r], second = rows[r + kLanes];
    rows[r] = _mm512_permutex2var_epi32(first, low, second);
    rows[r + kLanes] = _mm512_permutex2var_epi32(first, high, second);
  }
}

// A tile whose columns are 16 rows of 32 numbers, as the right side wants it: its row p has the numbers 2p and 2p+1 of
// each.
inline void pack_across(const Bfloat16* from, int64_t stride, int64_t count, uint8_t* tile) {
  __m512i rows[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) rows[r] = r < count ? _mm512_loadu_si512(from + r * stride) : _mm512_setzero_si512();
  swap_halves<8>(rows);
  swap_halves<4>(rows);
  swap_halves<2>(rows);
  swap_halves<1>(rows);
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) _mm512_store_si512(tile + 64 * r, rows[r]);
}

// A tile whose depth is 32 rows of 16 numbers: its row p has those of the rows 2p and 2p+1 in turns.
inline void pack_along(const Bfloat16* from, int64_t stride, int64_t count, uint8_t* tile) {
  const auto row = [&](int64_t r) {
    const auto* at = reinterpret_cast<const __m256i*>(from + r * stride);
    return r < count ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(at)) : _mm512_setzero_si512();
  };
  for (int64_t p = 0; p < 16; ++p)
    _mm512_store_si512(tile + 64 * p, _mm512_or_si512(row(2 * p), _mm512_slli_epi32(row(2 * p + 1), 16)));
}

// The two tiles of an `along` (PackTask) with the numbers from e on, of its first 32 rows, lie beside each other; those of
// the next rows follow.
constexpr int64_t kAlongBytes = 2 * kTileBytes / kDepth;  // of a row
template <class Byte>
Byte* along_tiles(Byte* along, int64_t padded, int64_t e) {
  return along + e / kDepth * padded * kAlongBytes + e % kDepth / 16 * kTileBytes;
}

// Two tiles of rows, and two of columns, both of them as far from one step in depth to the next.
struct Operands {
  const void *top, *bottom;
  int64_t row_stride, row_step;  // bytes: from a row to the next, from a tile to the next in depth
  const uint8_t *left, *right;
  int64_t column_step;
};

// Their four products, at to and 16 further down or right.
[[gnu::always_inline]] inline void multiply_tiles(const Operands& o, int64_t steps, float* to, int64_t stride) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const auto *top = static_cast<const uint8_t*>(o.top), *bottom = static_cast<const uint8_t*>(o.bottom);
  for (int64_t s = 0; s < steps; ++s) {
    _tile_loadd(4, top + s * o.row_step, o.row_stride);
    _tile_loadd(6, o.left + s * o.column_step, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, o.right + s * o.column_step, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, bottom + s * o.row_step, o.row_stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, to, row_bytes);
  _tile_stored(1, to + 16, row_bytes);
  _tile_stored(2, to + 16 * stride, row_bytes);
  _tile_stored(3, to + 16 * stride + 16, row_bytes);
}

// Rows [rows][size], `stride` apart, as the left side of 32 rows: [size / 32][32 rows]. Those that are not there count as
// the first.
inline void take_rows(const Bfloat16* from, int64_t stride, int64_t rows, int64_t size, Bfloat16* to) {
  for (int64_t r = 0; r < 2 * kTileRows; ++r)
    for (int64_t e = 0; e < size; e += kDepth)
      memcpy(to + e * 2 * kTileRows + r * kDepth, from + (r < rows ? r * stride : 0) + e, kDepth * kElement);
}

// The products of such rows with 32 columns.
[[gnu::always_inline]] inline void multiply_across(const Bfloat16* rows, const uint8_t* across, int64_t size, float* to,
                                                   int64_t stride) {
  multiply_tiles({rows, rows + kTileRows * kDepth, kDepth * kElement, 2 * kTileRows * kDepth * kElement, across,
                  across + size / kDepth * kTileBytes, kTileBytes},
                 size / kDepth, to, stride);
}

// The products of 32 rows of weights, `line` apart, with 32 numbers of so many rows `along`.
[[gnu::always_inline]] inline void multiply_along(const Bfloat16* weights, int64_t line, const uint8_t* along,
                                                  int64_t count, float (*to)[2 * 16]) {
  multiply_tiles({weights, weights + kTileRows * line, line * kElement, kDepth * kElement, along, along + kTileBytes,
                  2 * kTileBytes},
                 count / kDepth, to[0], 2 * 16);
}

constexpr float kLog2E = 1.44269504f;  // a power of e becomes one of two

// 1 / sqrt(size)
inline float score_scale(int64_t size) {
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(static_cast<float>(size))));
}

// The largest of the first `count` scores; those behind them in their vector count for nothing from now on. An infinity
// would become a NaN.
inline float keep_seen(float* scores, int64_t count) {
  const __m512 nothing = _mm512_set1_ps(-1e30f);
  const int64_t last = (count - 1) / 16 * 16;
  const auto seen = static_cast<__mmask16>((2u << (count - 1 - last)) - 1);
  _mm512_store_ps(scores + last, _mm512_mask_mov_ps(nothing, seen, _mm512_load_ps(scores + last)));
  __m512 largest = nothing;
  for (int64_t k = 0; k <= last; k += 16) largest = _mm512_max_ps(largest, _mm512_load_ps(scores + k));
  return _mm512_reduce_max_ps(largest);
}

// 2^x for x <= 0, within 2^-14 of it: less than bfloat16 tells apart.
[[gnu::always_inline]] inline __m512 power_of_two(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(0.0096181f);
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.0555041f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.2402265f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.6931472f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}

// To nearest, halves to even.
[[gnu::always_inline]] inline __m256i rounded(__m512 x) {
#ifdef __AVX512BF16__
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
#else
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounding(_mm512_castps_si512(x)), 16));
#endif
}

[[gnu::always_inline]] inline void store16(__m512 x, Bfloat16* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded(x));
}

}  // namespace
}  // namespace sterna

// What the two variants with 256-bit registers share: quantisation and unpacking.
//
// Everything here has internal linkage: each file that includes it gets its own copy with its own flags.
#pragma once

#include <immintrin.h>

#include "variant.h"

namespace sterna {
namespace {

constexpr int64_t kColumns = 16;  // of a panel: two registers of 8 int32

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

inline __m256i broadcast4(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}

inline int32_t sum8(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

inline int32_t max8(__m256i v) {
  __m128i s = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// 32 int32 that fit int8, in order.
inline __m256i narrow(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// 64 floats of a row from `i`, zeros beyond its end.
inline const float* chunk(const QuantiseTask& t, int64_t i, float* edge) {
  if (i + 64 <= t.length) return t.x + i;
  memset(edge, 0, 64 * sizeof(float));
  memcpy(edge, t.x + i, static_cast<size_t>(t.length - i) * sizeof(float));
  return edge;
}

// `dither` of variant.h for the 8 columns from `column` on, added and rounded down.
[[gnu::always_inline]] inline __m256i rounded_by_chance(__m256 scaled, uint32_t key, int64_t column) {
  const __m256i limit = _mm256_set1_epi32(127);
  const __m256i columns = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                             _mm256_set1_epi32(static_cast<int32_t>(kColumnStep)));
  const uint32_t first = key + static_cast<uint32_t>(column) * kColumnStep;
  __m256i h = _mm256_add_epi32(columns, _mm256_set1_epi32(static_cast<int32_t>(first)));
  h = _mm256_xor_si256(h, _mm256_srli_epi32(h, 15));
  h = _mm256_srli_epi32(_mm256_mullo_epi32(h, _mm256_set1_epi32(static_cast<int32_t>(kDitherFactor))), 16);
  const __m256 u = _mm256_mul_ps(_mm256_cvtepi32_ps(h), _mm256_set1_ps(0x1p-16f));
  const __m256i code = _mm256_cvttps_epi32(_mm256_floor_ps(_mm256_add_ps(scaled, u)));
  return _mm256_max_epi32(_mm256_min_epi32(code, limit), _mm256_sub_epi32(_mm256_setzero_si256(), limit));
}

inline void quantise_row256(const QuantiseTask& t) {
  alignas(32) float edge[64];
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest0 = _mm256_setzero_si256(), largest1 = largest0;
  for (int64_t i = 0; i < t.length; i += 64) {
    const float* x = chunk(t, i, edge);
    for (int j = 0; j < 64; j += 16) {
      largest0 = _mm256_max_epi32(largest0, _mm256_and_si256(load(x + j), magnitude));
      largest1 = _mm256_max_epi32(largest1, _mm256_and_si256(load(x + j + 8), magnitude));
    }
  }
  const int32_t largest = max8(_mm256_max_epi32(largest0, largest1));
  const RowScale row = row_scale(largest, t.floor, t.limbs);
  *t.step = row.step;

  const __m256 scale = _mm256_set1_ps(row.scale);
  const uint32_t key = dither_key(largest, t.row);
  const __m256i half = _mm256_set1_epi32(128);
  __m256i sum_high = _mm256_setzero_si256(), sum_low = sum_high;
  for (int64_t i = 0; i < t.depth; i += 64) {
    const float* x = chunk(t, i, edge);
    for (int j = 0; j < 64; j += 32) {
      __m256i high[4], low[4] = {};
      for (int r = 0; r < 4; ++r) {
        const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + j + 8 * r), scale);
        high[r] = t.is_stochastic ? rounded_by_chance(scaled, key, i + j + 8 * r) : _mm256_cvtps_epi32(scaled);
        if (!row.finite) high[r] = _mm256_setzero_si256();
        if (t.limbs == 2) {
          const __m256i code = high[r];
          high[r] = _mm256_srai_epi32(_mm256_add_epi32(code, half), 8);
          low[r] = _mm256_sub_epi32(code, _mm256_slli_epi32(high[r], 8));
          sum_low = _mm256_add_epi32(sum_low, low[r]);
        }
        sum_high = _mm256_add_epi32(sum_high, high[r]);
      }
      const int64_t at = i / 64 * t.chunk_stride + j;
      store(t.high + at, narrow(high[0], high[1], high[2], high[3]));
      if (t.limbs == 2) store(t.low + at, narrow(low[0], low[1], low[2], low[3]));
    }
  }
  t.sums[0] = sum8(sum_high);
  if (t.limbs == 2) t.sums[1] = sum8(sum_low);
}

inline void unpack_forward256(const Weights& w, int64_t c0, uint8_t* codes) {
  const __m256i three = _mm256_set1_epi8(3);
  const uint8_t* p = w.block(c0 / kBlockRows, 0);
  for (const uint8_t* end = p + w.k_blocks() * kBlockBytes; p < end; p += 64, codes += 256) {
    for (int half = 0; half < 64; half += 32) {
      const __m256i v = load(p + half);
      store(codes + half, _mm256_and_si256(v, three));
      store(codes + half + 64, _mm256_and_si256(_mm256_srli_epi16(v, 2), three));
      store(codes + half + 128, _mm256_and_si256(_mm256_srli_epi16(v, 4), three));
      store(codes + half + 192, _mm256_and_si256(_mm256_srli_epi16(v, 6), three));
    }
  }
}

// Four rows n of a quarter, 4 x 4 bytes, transposed to [kk][n]; field j then gives the columns 4j .. 4j+3.
inline void unpack_backward256(const Weights& w, int64_t c0, uint8_t* codes) {
  const __m256i three = _mm256_set1_epi8(3);
  const __m256i transpose =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m256i fields01 = _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2),
                fields23 = _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6);
  const uint8_t* p = w.block(0, c0 / kBlockColumns) + c0 % kBlockColumns * 4;
  const int64_t stride = w.row_blocks * kBlockBytes;
  for (int64_t nb = 0; nb < w.n_blocks(); ++nb, p += stride) {
    for (int n = 0; n < 64; n += 16, codes += 64) {
      const __m128i four_rows = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + n));
      const __m256i v = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(four_rows), transpose);
      store(codes, _mm256_and_si256(_mm256_srlv_epi32(v, fields01), three));
      store(codes + 32, _mm256_and_si256(_mm256_srlv_epi32(v, fields23), three));
    }
  }
  memset(codes, 0, static_cast<size_t>((round_up(w.n, 64) - w.n_blocks() * kBlockRows) * kColumns));
}

// The 16 columns of a row of the result: `high` is the sum of limb row r, `low` that of r + 1, if any.
[[gnu::always_inline]] inline void store16(const PanelTask& t, int64_t r, const __m256i (&high)[2],
                                           const __m256i (&low)[2]) {
  const int64_t m = r / t.limbs;
  const __m256 factor = _mm256_set1_ps(t.factors[m]);
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(high[h], _mm256_set1_epi32(t.sums[r])));
    if (t.limbs == 2) {
      const __m256 second = _mm256_cvtepi32_ps(_mm256_sub_epi32(low[h], _mm256_set1_epi32(t.sums[r + 1])));
      sum = _mm256_add_ps(_mm256_mul_ps(sum, _mm256_set1_ps(256.0f)), second);
    }
    _mm256_storeu_ps(t.out + m * t.out_stride + 8 * h, _mm256_mul_ps(sum, factor));
  }
}

// One row of x straight from the packed bytes, with kStretches rows of blocks side by side. There are no registers for
// the sums of all: they lie in memory between the blocks of a row. kBlock adds one block to them, and kTotal gives
// the sums of the lower (0) or the upper (1) eight rows of W.
template <class Sums, void (*kBlock)(const uint8_t* p, const int8_t* a, int64_t ahead, Sums& sums),
          __m256i (*kTotal)(const Sums& sums, int half)>
inline void gemv256(const GemvTask& t) {
  const int64_t stride = t.row_blocks * kBlockBytes;
  for (int64_t nb = 0; nb < t.n_blocks; nb += kStretches) {
    const int64_t rows = t.n_blocks - nb < kStretches ? t.n_blocks - nb : kStretches;
    const uint8_t* p = t.packed + nb * stride;
    Sums sums[kStretches] = {};
    for (int64_t kb = 0; kb < t.k_blocks; ++kb, p += kBlockBytes) {
      const int64_t ahead = packed_ahead(t, kb, rows);
      for (int64_t r = 0; r < rows; ++r)
        kBlock(p + r * stride, t.activations + kb * kBlockColumns, ahead, sums[r]);
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int half = 0; half < 2; ++half) {
        const __m256i exact = _mm256_sub_epi32(kTotal(sums[r], half), _mm256_set1_epi32(t.sum));
        _mm256_storeu_ps(t.out + (nb + r) * kBlockRows + 8 * half,
                         _mm256_mul_ps(_mm256_cvtepi32_ps(exact), _mm256_set1_ps(t.factor)));
      }
  }
}

}  // namespace
}  // namespace sterna

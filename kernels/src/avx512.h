// What the two variants with 512-bit registers share: quantisation, unpacking, the single row.
//
// Everything here has internal linkage: each file that includes it gets its own copy with its own flags.
#pragma once

#include <immintrin.h>

#include "variant.h"

namespace sterna {
namespace {

// sum += codes (unsigned) * x (signed), four products an int32. As an instruction and not as the intrinsic,
// whose two-operand form makes GCC 12 copy and spill the sums: 2.5 times slower with 24 of them.
[[gnu::always_inline]] inline void dot(__m512i& sum, __m512i codes, __m512i x) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
}

inline __m512i broadcast4(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}

// Stores 16 columns of a row of the result: `high` is the sum of limb row r, `low` that of r + 1, if any.
template <int kLimbs, bool kStream>
[[gnu::always_inline]] inline void store16(const PanelTask& t, int64_t r, int64_t group, __m512i high,
                                           __m512i low) {
  const int64_t m = r / kLimbs;
  __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(high, _mm512_set1_epi32(t.sums[r])));
  if (kLimbs == 2) {
    const __m512 second = _mm512_cvtepi32_ps(_mm512_sub_epi32(low, _mm512_set1_epi32(t.sums[r + 1])));
    sum = _mm512_add_ps(_mm512_mul_ps(sum, _mm512_set1_ps(256.0f)), second);
  }
  const __m512 result = _mm512_mul_ps(sum, _mm512_set1_ps(t.factors[m]));
  float* to = t.out + m * t.out_stride + 16 * group;
  if (kStream) {
    _mm512_stream_ps(to, result);
  } else {
    _mm512_storeu_ps(to, result);
  }
}

// Lanes of the 16 from `i` that lie in a row of this length.
inline __mmask16 lanes(int64_t i, int64_t length) {
  const int64_t left = length - i;
  return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

// `dither` of variant.h for the 16 columns from `column` on, added and rounded down.
[[gnu::always_inline]] inline __m512i rounded_by_chance(__m512 scaled, uint32_t key, int64_t column) {
  const __m512i columns =
      _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(static_cast<int32_t>(kColumnStep)));
  const uint32_t first = key + static_cast<uint32_t>(column) * kColumnStep;
  __m512i h = _mm512_add_epi32(columns, _mm512_set1_epi32(static_cast<int32_t>(first)));
  h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 15));
  h = _mm512_srli_epi32(_mm512_mullo_epi32(h, _mm512_set1_epi32(static_cast<int32_t>(kDitherFactor))), 16);
  const __m512 u = _mm512_mul_ps(_mm512_cvtepi32_ps(h), _mm512_set1_ps(0x1p-16f));
  const __m512i code =
      _mm512_cvt_roundps_epi32(_mm512_add_ps(scaled, u), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return _mm512_max_epi32(_mm512_min_epi32(code, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
}

inline void quantise_row512(const QuantiseTask& t) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const int64_t whole = t.length / 64 * 64;
  __m512i largest[4] = {};
  for (int64_t i = 0; i < whole; i += 64)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i x = _mm512_loadu_si512(t.x + i + 16 * j);
      largest[j] = _mm512_max_epi32(largest[j], _mm512_and_si512(x, magnitude));
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i x = _mm512_maskz_loadu_epi32(lanes(whole + 16 * j, t.length), t.x + whole + 16 * j);
    largest[j] = _mm512_max_epi32(largest[j], _mm512_and_si512(x, magnitude));
  }
  const __m512i all =
      _mm512_max_epi32(_mm512_max_epi32(largest[0], largest[1]), _mm512_max_epi32(largest[2], largest[3]));
  const int32_t most = _mm512_reduce_max_epi32(all);
  const RowScale row = row_scale(most, t.floor, t.limbs);
  *t.step = row.step;

  const __m512 scale = _mm512_set1_ps(row.scale);
  const uint32_t key = dither_key(most, t.row);
  const __m512i half = _mm512_set1_epi32(128);
  __m512i sum_high = _mm512_setzero_si512(), sum_low = sum_high;
  const auto store = [&](int64_t column, int64_t at, __m512 x) {
    const __m512 scaled = _mm512_mul_ps(x, scale);
    __m512i high = t.is_stochastic ? rounded_by_chance(scaled, key, column) : _mm512_cvtps_epi32(scaled);
    if (t.limbs == 2) {
      const __m512i code = high;
      high = _mm512_srai_epi32(_mm512_add_epi32(code, half), 8);
      const __m512i low = _mm512_sub_epi32(code, _mm512_slli_epi32(high, 8));
      sum_low = _mm512_add_epi32(sum_low, low);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(t.low + at), _mm512_cvtepi32_epi8(low));
    }
    sum_high = _mm512_add_epi32(sum_high, high);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(t.high + at), _mm512_cvtepi32_epi8(high));
  };
  int64_t at = 0, i = 0;
  if (row.finite)
    for (; i < whole; i += 64, at += t.chunk_stride)
#pragma GCC unroll 4
      for (int j = 0; j < 64; j += 16) {
        _mm_prefetch(reinterpret_cast<const char*>(t.x + t.length + i + j), _MM_HINT_T0);  // the next row
        store(i + j, at + j, _mm512_loadu_ps(t.x + i + j));
      }
  const int64_t length = row.finite ? t.length : 0;  // nothing of a row with a NaN or an infinity
  for (; i < t.depth; i += 64, at += t.chunk_stride)
    for (int j = 0; j < 64; j += 16)
      store(i + j, at + j, _mm512_maskz_loadu_ps(lanes(i + j, length), t.x + i + j));
  t.sums[0] = _mm512_reduce_add_epi32(sum_high);
  if (t.limbs == 2) t.sums[1] = _mm512_reduce_add_epi32(sum_low);
}

// 16 rows n x 16 columns k: four times the 64 codes of four columns.
[[gnu::always_inline]] inline void unpack_quarter(const uint8_t* p, uint8_t* codes, int64_t stride) {
  const __m512i three = _mm512_set1_epi8(3), v = _mm512_loadu_si512(p);
  _mm512_store_si512(codes, _mm512_and_si512(v, three));
  _mm512_store_si512(codes + stride, _mm512_and_si512(_mm512_srli_epi16(v, 2), three));
  _mm512_store_si512(codes + 2 * stride, _mm512_and_si512(_mm512_srli_epi16(v, 4), three));
  _mm512_store_si512(codes + 3 * stride, _mm512_and_si512(_mm512_srli_epi16(v, 6), three));
}

// Four rows n of a quarter, 4 x 4 bytes, are transposed to [kk][n] in every lane; lane j then keeps field j,
// the columns 4j .. 4j+3.
[[gnu::always_inline]] inline void unpack_transposed(const uint8_t* p, uint8_t* codes) {
  const __m512i three = _mm512_set1_epi8(3);
  const __m512i transpose =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i field = _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6);
  const __m512i v = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m512i shifted = _mm512_srlv_epi32(_mm512_shuffle_epi8(v, transpose), field);
  _mm512_store_si512(codes, _mm512_and_si512(shifted, three));
}

// One row of x with kRows rows of blocks, straight from the packed bytes. Fields stay in their bytes, at 1, 4, 16
// and 64 times their value; one shift at the end undoes it.
template <int kRows>
[[gnu::always_inline]] inline void gemv_rows(const GemvTask& t, int64_t nb) {
  const __m512i masks[4] = {_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c), _mm512_set1_epi8(0x30),
                            _mm512_set1_epi8(static_cast<char>(0xc0))};
  const int64_t stride = t.row_blocks * kBlockBytes;
  const uint8_t* p = t.packed + nb * stride;
  const int8_t* a = t.activations;
  __m512i total[kRows][4];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) total[r][j] = _mm512_setzero_si512();
  for (int64_t kb = 0; kb < t.k_blocks; ++kb) {
    const int64_t ahead = packed_ahead(t, kb, kRows);
    for (int q = 0; q < 4; ++q, p += 64, a += 16) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        _mm_prefetch(reinterpret_cast<const char*>(p + r * stride + ahead), _MM_HINT_T0);
        const __m512i v = _mm512_loadu_si512(p + r * stride);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) dot(total[r][j], _mm512_and_si512(v, masks[j]), broadcast4(a + 4 * j));
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m512i low = _mm512_add_epi32(total[r][0], _mm512_srai_epi32(total[r][1], 2));
    const __m512i high =
        _mm512_add_epi32(_mm512_srai_epi32(total[r][2], 4), _mm512_srai_epi32(total[r][3], 6));
    const __m512i sum = _mm512_sub_epi32(_mm512_add_epi32(low, high), _mm512_set1_epi32(t.sum));
    _mm512_storeu_ps(t.out + (nb + r) * kBlockRows,
                     _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(t.factor)));
  }
}

inline void gemv512(const GemvTask& t) {
  int64_t nb = 0;
  for (; nb + kStretches <= t.n_blocks; nb += kStretches) gemv_rows<kStretches>(t, nb);
  for (; nb + 2 <= t.n_blocks; nb += 2) gemv_rows<2>(t, nb);
  if (nb < t.n_blocks) gemv_rows<1>(t, nb);
}

}  // namespace
}  // namespace sterna

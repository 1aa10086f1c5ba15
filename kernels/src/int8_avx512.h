// What the 512-bit variants of the products with an int8 matrix share: panels, the store, the single row.
//
// Everything here has internal linkage: each file that includes it gets its own copy with its own flags.
#pragma once

#include "avx512.h"
#include "int8.h"

namespace sterna {
namespace {

// Bytes of the 64 from `i` that lie in a row of this length.
inline __mmask64 bytes(int64_t i, int64_t length) {
  const int64_t left = length - i;
  return left >= 64 ? ~__mmask64{0} : left <= 0 ? 0 : (__mmask64{1} << left) - 1;
}

// 16 x 16 int32: rows become columns.
[[gnu::always_inline]] inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]), b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]),
                  d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
    // t[i + j], lane l: the column 4l + j of the rows i .. i + 3
    t[i] = _mm512_unpacklo_epi64(a, c);
    t[i + 1] = _mm512_unpackhi_epi64(a, c);
    t[i + 2] = _mm512_unpacklo_epi64(b, d);
    t[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(t[j], t[4 + j], 0x88),
                  b = _mm512_shuffle_i32x4(t[j], t[4 + j], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0x88),
                  d = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0xdd);
    r[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    r[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    r[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    r[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}

// 16 rows of W a time: the dwords d/4 of all of them become one register.
template <int kGroups>
inline void int8_panel_forward512(const Int8PanelTask& t) {
  const __m512i bias = _mm512_set1_epi8(static_cast<char>(0x80));
  const int64_t depth = round_up(t.columns, 64);
  for (int64_t g = 0; g < kGroups && g * 16 < t.rows; ++g) {
    const int8_t* from = t.from + g * 16 * t.stride;
    const int64_t rows = t.rows - g * 16 < 16 ? t.rows - g * 16 : 16;
    for (int64_t d = 0; d < depth; d += 64) {
      const __mmask64 given = bytes(d, t.columns);
      __m512i r[16];
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i) {
        // Rows beyond the matrix repeat its last one and are dropped.
        const int8_t* row = from + (i < rows ? i : rows - 1) * t.stride;
        r[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(given, row + d), bias);
      }
      transpose16(r);
      uint8_t* to = static_cast<uint8_t*>(t.codes) + (d / 4 * kGroups + g) * 64;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * kGroups * 64, r[i]);
    }
  }
}

// 4 rows x 16 columns of W a time, transposed to [column][row].
template <int kGroups>
inline void int8_panel_backward512(const Int8PanelTask& t) {
  static_assert(kGroups == 2 || kGroups == 4);
  const __m512i bias = _mm512_set1_epi8(static_cast<char>(0x80));
  const __mmask64 given = bytes(0, t.columns);
  const int64_t depth = round_up(t.rows, 64);
  uint8_t* to = static_cast<uint8_t*>(t.codes);
  for (int64_t d = 0; d < depth; d += 4, to += kGroups * 64) {
    __m512i r[4];
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i)
      r[i] = _mm512_maskz_loadu_epi8(d + i < t.rows ? given : 0, t.from + (d + i) * t.stride);
    const __m512i left01 = _mm512_unpacklo_epi8(r[0], r[1]), left23 = _mm512_unpacklo_epi8(r[2], r[3]);
    const __m512i right01 = _mm512_unpackhi_epi8(r[0], r[1]), right23 = _mm512_unpackhi_epi8(r[2], r[3]);
    // Lane l of these: the columns 16l + 0..3, 4..7, 8..11, 12..15.
    const __m512i c0 = _mm512_unpacklo_epi16(left01, left23), c1 = _mm512_unpackhi_epi16(left01, left23);
    const __m512i c2 = _mm512_unpacklo_epi16(right01, right23), c3 = _mm512_unpackhi_epi16(right01, right23);
    const __m512i even01 = _mm512_shuffle_i32x4(c0, c1, 0x88), odd01 = _mm512_shuffle_i32x4(c0, c1, 0xdd);
    const __m512i even23 = _mm512_shuffle_i32x4(c2, c3, 0x88), odd23 = _mm512_shuffle_i32x4(c2, c3, 0xdd);
    // even01: lanes 0, 2 of c0 and of c1; group g of columns takes lane g of all four.
    const auto put = [&](int g, __m512i v) { _mm512_store_si512(to + 64 * g, _mm512_xor_si512(v, bias)); };
    put(0, _mm512_shuffle_i32x4(even01, even23, 0x88));
    put(1, _mm512_shuffle_i32x4(odd01, odd23, 0x88));
    if (kGroups == 4) {
      put(2, _mm512_shuffle_i32x4(even01, even23, 0xdd));
      put(3, _mm512_shuffle_i32x4(odd01, odd23, 0xdd));
    }
  }
}

// float32 of 256 * high + low, 8 columns.
[[gnu::always_inline]] inline __m256 joined(__m256i high, __m256i low) {
  const __m512d first = _mm512_mul_pd(_mm512_cvtepi32_pd(high), _mm512_set1_pd(256.0));
  return _mm512_cvtpd_ps(_mm512_add_pd(first, _mm512_cvtepi32_pd(low)));
}

// 16 columns of the row m of the result.
[[gnu::always_inline]] inline void int8_store16(const Int8MultiplyTask& t, int64_t m, int64_t group,
                                                __m512i high, __m512i low) {
  const __m512i first = _mm512_sub_epi32(high, _mm512_set1_epi32(t.sums[2 * m] * 128));
  const __m512i second = _mm512_sub_epi32(low, _mm512_set1_epi32(t.sums[2 * m + 1] * 128));
  const __m256 left = joined(_mm512_castsi512_si256(first), _mm512_castsi512_si256(second));
  const __m256 right = joined(_mm512_extracti64x4_epi64(first, 1), _mm512_extracti64x4_epi64(second, 1));
  __m512 y = _mm512_castpd_ps(
      _mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_castps_pd(left)), _mm256_castps_pd(right), 1));
  y = _mm512_mul_ps(y, _mm512_set1_ps(t.steps[m]));
  if (t.scales != nullptr) y = _mm512_mul_ps(y, _mm512_loadu_ps(t.scales + 16 * group));
  float* out = t.out + m * t.out_stride + 16 * group;
  _mm512_storeu_ps(out, t.adds ? _mm512_add_ps(_mm512_loadu_ps(out), y) : y);
}

// One row of x with kRows neighbouring rows of W, read side by side and asked for ahead of their use.
template <int kRows>
[[gnu::always_inline]] inline void int8_gemv_rows(const Int8GemvTask& t, int64_t first) {
  const __m512i bias = _mm512_set1_epi8(static_cast<char>(0x80));
  const int8_t* w = t.rows + first * t.k;
  const int8_t* x = static_cast<const int8_t*>(t.activations);
  const int64_t depth = round_up(t.k, 64), ahead = kRows * t.k;
  __m512i high[kRows], low[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) high[r] = low[r] = _mm512_setzero_si512();
  for (int64_t d = 0; d < t.k; d += 64) {
    const __mmask64 given = bytes(d, t.k);
    const __m512i x_high = _mm512_loadu_si512(x + d), x_low = _mm512_loadu_si512(x + depth + d);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      _mm_prefetch(reinterpret_cast<const char*>(w + r * t.k + d + ahead), _MM_HINT_T0);
      const __m512i codes = _mm512_xor_si512(_mm512_maskz_loadu_epi8(given, w + r * t.k + d), bias);
      dot(high[r], codes, x_high);
      dot(low[r], codes, x_low);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const double first_limb = _mm512_reduce_add_epi32(high[r]) - 128 * t.sums[0];
    const double second_limb = _mm512_reduce_add_epi32(low[r]) - 128 * t.sums[1];
    t.out[first + r] = static_cast<float>(256.0 * first_limb + second_limb) * t.step * t.scales[first + r];
  }
}

inline void int8_gemv512(const Int8GemvTask& t) {
  int64_t row = 0;
  for (; row + 4 <= t.count; row += 4) int8_gemv_rows<4>(t, row);
  for (; row < t.count; ++row) int8_gemv_rows<1>(t, row);
}

}  // namespace
}  // namespace sterna

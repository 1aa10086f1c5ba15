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

// 16 columns of a row of the result: `high` is the sum of limb row r, `low` that of r + 1, if any.
template <int kLimbs>
[[gnu::always_inline]] inline __m512 result16(const PanelTask& t, int64_t r, __m512i high, __m512i low) {
  __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(high, _mm512_set1_epi32(t.sums[r])));
  if (kLimbs == 2) {
    const __m512 second = _mm512_cvtepi32_ps(_mm512_sub_epi32(low, _mm512_set1_epi32(t.sums[r + 1])));
    sum = _mm512_add_ps(_mm512_mul_ps(sum, _mm512_set1_ps(256.0f)), second);
  }
  return _mm512_mul_ps(sum, _mm512_set1_ps(t.factors[r / kLimbs]));
}

// What `store` in bfloat16.h adds before it drops the lower half.
inline __m512i rounding(__m512i bits) {
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}

// 32 numbers in bfloat16.
inline __m512i narrowed(__m512 left, __m512 right) {
  const __m512i low = _mm512_srli_epi32(rounding(_mm512_castps_si512(left)), 16);
  const __m512i high = _mm512_srli_epi32(rounding(_mm512_castps_si512(right)), 16);
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packus_epi32(low, high));
}

template <bool kStream>
[[gnu::always_inline]] inline void store_line(void* to, __m512i line) {
  kStream ? _mm512_stream_si512(static_cast<__m512i*>(to), line) : _mm512_storeu_si512(to, line);
}

// Stores 32 columns of row m of the result, `pair` times 32 after the panel's first.
template <bool kStream>
[[gnu::always_inline]] inline void store32(const PanelTask& t, int64_t m, int64_t pair, __m512 left, __m512 right) {
  const int64_t at = m * t.out_stride + 32 * pair;
  if (t.narrow_out == nullptr) {
    store_line<kStream>(t.out + at, _mm512_castps_si512(left));
    store_line<kStream>(t.out + at + 16, _mm512_castps_si512(right));
    return;
  }
  if (t.beside != nullptr) store_line<kStream>(t.narrow_out + at - 32, _mm512_load_si512(t.beside + 32 * m));
  store_line<kStream>(t.narrow_out + at, narrowed(left, right));
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

// 16 numbers, or those that the mask names and zeros.
inline __m512 load16(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 load16(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }

inline __m512 widened(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline __m512 load16(const Bfloat16* x) { return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))); }
inline __m512 load16(const Bfloat16* x, __mmask16 mask) { return widened(_mm256_maskz_loadu_epi16(mask, x)); }

// The largest bit pattern of |x|, as row_scale wants it.
inline int32_t largest_of(const float* x, int64_t length) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const int64_t whole = length / 64 * 64;
  __m512i largest[4] = {};
  const auto take = [&](int j, __m512 values) __attribute__((always_inline)) {
    largest[j] = _mm512_max_epi32(largest[j], _mm512_and_si512(_mm512_castps_si512(values), magnitude));
  };
  for (int64_t i = 0; i < whole; i += 64)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) take(j, load16(x + i + 16 * j));
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) take(j, load16(x + whole + 16 * j, lanes(whole + 16 * j, length)));
  return _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_max_epi32(largest[0], largest[1]),
                                                  _mm512_max_epi32(largest[2], largest[3])));
}

inline int32_t largest_of(const Bfloat16* x, int64_t length) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  const int64_t whole = length / 64 * 64;
  __m512i largest[2] = {};
  const auto take = [&](int j, __m512i halves) __attribute__((always_inline)) {
    largest[j] = _mm512_max_epu16(largest[j], _mm512_and_si512(halves, magnitude));
  };
  for (int64_t i = 0; i < whole; i += 64)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) take(j, _mm512_loadu_si512(x + i + 32 * j));
  const __mmask64 left = (__mmask64{1} << (length - whole)) - 1;
  for (int j = 0; j < 2; ++j)
    take(j, _mm512_maskz_loadu_epi16(static_cast<__mmask32>(left >> 32 * j), x + whole + 32 * j));
  const __m512i all = _mm512_max_epu16(largest[0], largest[1]);
  return _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_slli_epi32(all, 16),
                                                  _mm512_and_si512(all, _mm512_set1_epi32(0x7fff0000))));
}

// 64 numbers as bytes.
[[gnu::always_inline]] inline __m512i bytes_of(const __m512i (&parts)[4]) {
  const __m512i bytes =
      _mm512_packs_epi16(_mm512_packs_epi32(parts[0], parts[1]), _mm512_packs_epi32(parts[2], parts[3]));
  // Each lane of 128 bits has four bytes of each part.
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
}

template <class T>
[[gnu::always_inline]] inline void quantise_row_of(const QuantiseTask& t, const T* x) {
  const int32_t most = largest_of(x, t.length);
  const RowScale row = row_scale(most, t.floor, t.limbs);
  *t.step = row.step;

  const __m512 scale = _mm512_set1_ps(row.scale);
  const uint32_t key = dither_key(most, t.row);
  const __m512i half = _mm512_set1_epi32(128), ones = _mm512_set1_epi8(1);
  __m512i sum_high = _mm512_setzero_si512(), sum_low = sum_high;
  const auto store = [&](int64_t column, int64_t at, const __m512 (&values)[4]) __attribute__((always_inline)) {
    __m512i high[4], low[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512 scaled = _mm512_mul_ps(values[j], scale);
      high[j] = t.is_stochastic ? rounded_by_chance(scaled, key, column + 16 * j) : _mm512_cvtps_epi32(scaled);
      if (t.limbs == 1) continue;
      const __m512i code = high[j];
      high[j] = _mm512_srai_epi32(_mm512_add_epi32(code, half), 8);
      low[j] = _mm512_sub_epi32(code, _mm512_slli_epi32(high[j], 8));
    }
    const __m512i codes = bytes_of(high);
    dot(sum_high, ones, codes);
    _mm512_storeu_si512(t.high + at, codes);
    if (t.limbs == 1) return;
    const __m512i low_codes = bytes_of(low);
    dot(sum_low, ones, low_codes);
    _mm512_storeu_si512(t.low + at, low_codes);
  };
  const int64_t whole = t.length / 64 * 64;
  int64_t at = 0, i = 0;
  if (row.finite)
    for (; i < whole; i += 64, at += t.chunk_stride) {
      __m512 values[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        // Of the next row.
        if (j * sizeof(T) % 4 == 0) _mm_prefetch(reinterpret_cast<const char*>(x + t.length + i + 16 * j), _MM_HINT_T0);
        values[j] = load16(x + i + 16 * j);
      }
      store(i, at, values);
    }
  const int64_t length = row.finite ? t.length : 0;  // nothing of a row with a NaN or an infinity
  for (; i < t.depth; i += 64, at += t.chunk_stride) {
    __m512 values[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) values[j] = load16(x + i + 16 * j, lanes(i + 16 * j, length));
    store(i, at, values);
  }
  t.sums[0] = _mm512_reduce_add_epi32(sum_high);
  if (t.limbs == 2) t.sums[1] = _mm512_reduce_add_epi32(sum_low);
}

inline void quantise_row512(const QuantiseTask& t) {
  t.narrow_x != nullptr ? quantise_row_of(t, t.narrow_x) : quantise_row_of(t, t.x);
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

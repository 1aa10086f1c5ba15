// AVX2: vpmaddubsw multiplies 32 codes (unsigned) with 32 activations (signed) and adds pairs to int16.
#include <immintrin.h>

#include "cpu.h"
#include "variant.h"

namespace sterna {
namespace {

constexpr int64_t kColumns = 16;  // two registers of 8 int32 (or 16 int16 pairs) each

// Steps of four activations whose pairs are added up in int16: a pair is 2 * 3 * 128 = 768 at most, and
// 42 * 768 is the last multiple below 2^15.
constexpr int64_t kInt16Steps = 32;

// Rows that share each load of a panel: 6 x 2 sums, 2 codes, an activation and a product are 16 registers.
constexpr int64_t kRowsAtOnce = 6;

__m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

__m256i broadcast4(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}

// sum += codes (unsigned) * x (signed), two products an int16. As instructions, because GCC 12 gathers the
// intrinsics of all rows before it adds them up, and has no registers for that.
[[gnu::always_inline]] inline void add_pairs(__m256i& sum, __m256i codes, __m256i x) {
  __m256i pairs;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(pairs) : "x"(codes), "x"(x));
}

int32_t sum8(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

int32_t max8(__m256i v) {
  __m128i s = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// 32 int32 that fit int8, in order.
__m256i narrow(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// 64 floats of a row from `i`, zeros beyond its end.
const float* chunk(const QuantiseTask& t, int64_t i, float* edge) {
  if (i + 64 <= t.length) return t.x + i;
  memset(edge, 0, 64 * sizeof(float));
  memcpy(edge, t.x + i, static_cast<size_t>(t.length - i) * sizeof(float));
  return edge;
}

void quantise_row(const QuantiseTask& t) {
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
  const RowScale row = row_scale(max8(_mm256_max_epi32(largest0, largest1)), t.floor, t.limbs);
  *t.step = row.step;

  const __m256 scale = _mm256_set1_ps(row.scale);
  const __m256i half = _mm256_set1_epi32(128);
  __m256i sum_high = _mm256_setzero_si256(), sum_low = sum_high;
  for (int64_t i = 0; i < t.depth; i += 64) {
    const float* x = chunk(t, i, edge);
    for (int j = 0; j < 64; j += 32) {
      __m256i high[4], low[4];
      for (int r = 0; r < 4; ++r) {
        high[r] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + j + 8 * r), scale));
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

void unpack_forward(const Weights& w, int64_t c0, uint8_t* codes) {
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
void unpack_backward(const Weights& w, int64_t c0, uint8_t* codes) {
  const __m256i three = _mm256_set1_epi8(3);
  const __m256i transpose =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m256i fields01 = _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2),
                fields23 = _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6);
  const uint8_t* p = w.block(0, c0 / kBlockColumns) + c0 % kBlockColumns * 4;
  const int64_t stride = w.k_blocks() * kBlockBytes;
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

template <int kRows>
[[gnu::always_inline]] inline void multiply_rows(const MultiplyTask& t, int64_t first) {
  const __m256i ones = _mm256_set1_epi16(1);
  const int8_t* a = t.activations + first * t.depth;
  const uint8_t* codes = t.codes;
  __m256i total[kRows][2];
  // Every loop over the sums is unrolled: only constant indices keep them in registers.
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = _mm256_setzero_si256();
  for (int64_t steps = t.depth / 4; steps > 0; steps -= kInt16Steps) {
    __m256i sum[kRows][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    const uint8_t* end = codes + (steps < kInt16Steps ? steps : kInt16Steps) * 64;
    for (; codes < end; codes += 64, a += 4) {
      const __m256i left = load(codes), right = load(codes + 32);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m256i x = broadcast4(a + r * t.depth);
        add_pairs(sum[r][0], left, x);
        add_pairs(sum[r][1], right, x);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h)
        total[r][h] = _mm256_add_epi32(total[r][h], _mm256_madd_epi16(sum[r][h], ones));
  }

  const auto exact = [&](int r, int h) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(total[r][h], _mm256_set1_epi32(t.sums[first + r])));
  };
  const __m256 radix = _mm256_set1_ps(256.0f);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    if (t.limbs == 2 && r % 2 == 1) continue;
    const int64_t m = (first + r) / t.limbs;
    const __m256 factor = _mm256_set1_ps(t.factors[m]);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256 sum = exact(r, h);
      if (t.limbs == 2) sum = _mm256_add_ps(_mm256_mul_ps(sum, radix), exact((r + 1) % kRows, h));
      _mm256_storeu_ps(t.out + m * t.out_stride + 8 * h, _mm256_mul_ps(sum, factor));
    }
  }
}

void multiply(const MultiplyTask& t) {
  const int64_t rows = t.rows * t.limbs;
  int64_t r = 0;
  for (; r + kRowsAtOnce <= rows; r += kRowsAtOnce) multiply_rows<kRowsAtOnce>(t, r);
  for (; r + 2 <= rows; r += 2) multiply_rows<2>(t, r);
  if (r < rows) multiply_rows<1>(t, r);
}

// One row of x straight from the packed bytes. Fields stay in their bytes: at 1 and, for the odd ones, at 4
// times their value, which one shift at the end undoes. A block adds 8 pairs to each int16 sum, which is
// 8 * 2 * 4 * 3 * 128 = 24576 at most.
void gemv(const GemvTask& t) {
  const __m256i even = _mm256_set1_epi8(0x03), odd = _mm256_set1_epi8(0x0c), ones = _mm256_set1_epi16(1);
  const uint8_t* p = t.packed;
  for (int64_t nb = 0; nb < t.n_blocks; ++nb) {
    __m256i total[2] = {}, total4[2] = {};
    const int8_t* a = t.activations;
    for (int64_t kb = 0; kb < t.k_blocks; ++kb) {
      __m256i sum[2] = {}, sum4[2] = {};
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q, p += 64, a += 16) {
        const __m256i x0 = broadcast4(a), x1 = broadcast4(a + 4), x2 = broadcast4(a + 8),
                      x3 = broadcast4(a + 12);
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const __m256i v = load(p + 32 * h), upper = _mm256_srli_epi16(v, 4);
          add_pairs(sum[h], _mm256_and_si256(v, even), x0);
          add_pairs(sum4[h], _mm256_and_si256(v, odd), x1);
          add_pairs(sum[h], _mm256_and_si256(upper, even), x2);
          add_pairs(sum4[h], _mm256_and_si256(upper, odd), x3);
        }
      }
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        total[h] = _mm256_add_epi32(total[h], _mm256_madd_epi16(sum[h], ones));
        total4[h] = _mm256_add_epi32(total4[h], _mm256_madd_epi16(sum4[h], ones));
      }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256i sum = _mm256_add_epi32(total[h], _mm256_srai_epi32(total4[h], 2));
      const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(t.sum)));
      _mm256_storeu_ps(t.out + nb * 16 + 8 * h, _mm256_mul_ps(exact, _mm256_set1_ps(t.factor)));
    }
  }
}

}  // namespace

const Variant kAvx2 = {"avx2",         has_avx2,        1,        kColumns, quantise_row,
                       unpack_forward, unpack_backward, multiply, gemv};

}  // namespace sterna

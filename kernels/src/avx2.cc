// AVX2: vpmaddubsw multiplies 32 codes (unsigned) with 32 activations (signed) and adds pairs to int16.
#include "avx2.h"
#include "cpu.h"
#include "variant.h"

namespace sterna {
namespace {

// Steps of four activations whose pairs are added up in int16: a pair is 2 * 3 * 128 = 768 at most, and
// 42 * 768 is the last multiple below 2^15.
constexpr int64_t kInt16Steps = 42;

// Rows that share each load of a panel: 6 x 2 sums, 2 codes, an activation and a product are 16 registers.
constexpr int64_t kRowsAtOnce = 6;

constexpr int64_t kGemvRows = 8;

// sum += codes (unsigned) * x (signed), two products an int16. As instructions, because GCC 12 gathers the
// intrinsics of all rows before it adds them up, and has no registers for that.
[[gnu::always_inline]] inline void add_pairs(__m256i& sum, __m256i codes, __m256i x) {
  __m256i pairs;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(pairs) : "x"(codes), "x"(x));
}

// The first step of a run needs nothing added.
[[gnu::always_inline]] inline __m256i pairs_of(__m256i codes, __m256i x) {
  __m256i pairs;
  __asm__("vpmaddubsw %2, %1, %0" : "=x"(pairs) : "x"(codes), "x"(x));
  return pairs;
}

template <int kRows>
[[gnu::always_inline]] inline void multiply_rows(const PanelTask& t, int64_t first) {
  const __m256i ones = _mm256_set1_epi16(1);
  const int8_t* a = t.activations + first * t.depth;
  const uint8_t* codes = t.codes;
  __m256i total[kRows][2];
  // Every loop over the sums is unrolled: only constant indices keep them in registers.
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = _mm256_setzero_si256();
  for (int64_t steps = t.depth / 4; steps > 0; steps -= kInt16Steps) {
    const uint8_t* end = codes + (steps < kInt16Steps ? steps : kInt16Steps) * 64;
    __m256i sum[kRows][2];
    __m256i left = load(codes), right = load(codes + 32);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = broadcast4(a + r * t.depth);
      sum[r][0] = pairs_of(left, x);
      sum[r][1] = pairs_of(right, x);
    }
    for (codes += 64, a += 4; codes < end; codes += 64, a += 4) {
      left = load(codes), right = load(codes + 32);
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

#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    if (t.limbs == 2 && r % 2 == 1) continue;
    store16(t, first + r, total[r], total[(r + 1) % kRows]);
  }
}

void multiply(const PanelTask& t) {
  (t.is_forward ? unpack_forward256 : unpack_backward256)(t.weights, t.column, t.codes);
  const int64_t rows = t.rows * t.limbs;
  int64_t r = 0;
  for (; r + kRowsAtOnce <= rows; r += kRowsAtOnce) multiply_rows<kRowsAtOnce>(t, r);
  if (r + 4 <= rows) multiply_rows<4>(t, r), r += 4;
  if (r + 2 <= rows) multiply_rows<2>(t, r), r += 2;
  if (r < rows) multiply_rows<1>(t, r);
}

// Four times the sums of one row of blocks, in memory between its blocks.
struct GemvSums {
  __m256i of[2];
};

// One block of one row. A block adds 8 pairs to each int16 sum, which is 8 * 2 * 4 * 3 * 128 = 24576 at most. Odd
// fields stay in their bytes, at four times their value; even ones are brought there when the sums are widened.
[[gnu::always_inline]] inline void gemv_block(const uint8_t* p, const int8_t* a, int64_t ahead, GemvSums& total) {
  const __m256i even = _mm256_set1_epi8(0x03), odd = _mm256_set1_epi8(0x0c);
  const __m256i ones = _mm256_set1_epi16(1), fours = _mm256_set1_epi16(4);
  __m256i sum[2], sum4[2];
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q, p += 64, a += 16) {
    _mm_prefetch(reinterpret_cast<const char*>(p + ahead), _MM_HINT_T0);
    const __m256i x0 = broadcast4(a), x1 = broadcast4(a + 4), x2 = broadcast4(a + 8), x3 = broadcast4(a + 12);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256i v = load(p + 32 * h), upper = _mm256_srli_epi16(v, 4);
      if (q == 0) {
        sum[h] = pairs_of(_mm256_and_si256(v, even), x0);
        sum4[h] = pairs_of(_mm256_and_si256(v, odd), x1);
      } else {
        add_pairs(sum[h], _mm256_and_si256(v, even), x0);
        add_pairs(sum4[h], _mm256_and_si256(v, odd), x1);
      }
      add_pairs(sum[h], _mm256_and_si256(upper, even), x2);
      add_pairs(sum4[h], _mm256_and_si256(upper, odd), x3);
    }
  }
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const __m256i block = _mm256_add_epi32(_mm256_madd_epi16(sum[h], fours), _mm256_madd_epi16(sum4[h], ones));
    total.of[h] = _mm256_add_epi32(total.of[h], block);
  }
}

[[gnu::always_inline]] inline __m256i gemv_total(const GemvSums& sums, int half) {
  return _mm256_srai_epi32(sums.of[half], 2);
}

}  // namespace

const Variant kAvx2 = {"avx2", has_avx2, 1, kColumns, kGemvRows, quantise_row256, multiply,
                        gemv256<GemvSums, gemv_block, gemv_total>};

}  // namespace sterna

// AVX2: vpmaddubsw would saturate at 255 * 128 * 2, so that codes and joined limbs meet as int16 in vpmaddwd.
//
// A pair of products is within 2 * 32512 * 128 < 2^23, so that int32 takes 255 of them; every kSteps they go
// on to float64, which is exact.
#include "int8_avx2.h"

namespace sterna {
namespace {

constexpr int64_t kSteps = 128;
constexpr int64_t kRowsAtOnce = 6;  // 6 x 2 sums, 2 codes, an activation and a product are 16 registers
constexpr int64_t kGemvRows = 4;

// sum += codes * x, two products an int32. As instructions, because GCC 12 gathers the intrinsics of all rows
// before it adds them up, and has no registers for that.
[[gnu::always_inline]] inline void add_pairs(__m256i& sum, __m256i codes, __m256i x) {
  __m256i pairs;
  __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(pairs) : "x"(codes), "x"(x));
}

inline __m256i broadcast2(const int16_t* p) {
  int32_t two;
  memcpy(&two, p, sizeof two);
  return _mm256_set1_epi32(two);
}

// The codes of two rows of W, [column][2].
inline void interleave(__m128i first, __m128i second, int16_t* codes) {
  store(codes, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(first, second)));
  store(codes + 16, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(first, second)));
}

void panel_forward(const Int8PanelTask& t) {
  int16_t* codes = static_cast<int16_t*>(t.codes);
  for (int64_t row = 0; row < t.rows; ++row) {
    const int8_t* from = t.from + row * t.stride;
    for (int64_t d = 0; d < round_up(t.columns, 64); d += 2) {
      int16_t* to = codes + d * kColumns + row * 2;
      to[0] = d < t.columns ? from[d] : 0;
      to[1] = d + 1 < t.columns ? from[d + 1] : 0;
    }
  }
}

void panel_backward(const Int8PanelTask& t) {
  int16_t* codes = static_cast<int16_t*>(t.codes);
  for (int64_t d = 0; d < round_up(t.rows, 64); d += 2)
    interleave(row16(t, d), row16(t, d + 1), codes + d * kColumns);
}

// total[0 .. 7] += sum
[[gnu::always_inline]] inline void add_to(double* total, __m256i sum) {
  const __m256d low = _mm256_cvtepi32_pd(_mm256_castsi256_si128(sum));
  const __m256d high = _mm256_cvtepi32_pd(_mm256_extracti128_si256(sum, 1));
  _mm256_store_pd(total, _mm256_add_pd(_mm256_load_pd(total), low));
  _mm256_store_pd(total + 4, _mm256_add_pd(_mm256_load_pd(total + 4), high));
}

template <int kRows>
[[gnu::always_inline]] inline void multiply_rows(const Int8MultiplyTask& t, int64_t first) {
  const int16_t* a = static_cast<const int16_t*>(t.activations) + first * t.depth;
  const int16_t* codes = static_cast<const int16_t*>(t.codes);
  alignas(32) double total[kRows][kColumns] = {};
  for (int64_t steps = t.depth / 2; steps > 0; steps -= kSteps) {
    __m256i sum[kRows][2];
    // Every loop over the sums is unrolled: only constant indices keep them in registers.
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    const int16_t* end = codes + (steps < kSteps ? steps : kSteps) * 2 * kColumns;
    for (; codes < end; codes += 2 * kColumns, a += 2) {
      const __m256i left = load(codes), right = load(codes + kColumns);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m256i x = broadcast2(a + r * t.depth);
        add_pairs(sum[r][0], left, x);
        add_pairs(sum[r][1], right, x);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      add_to(total[r], sum[r][0]);
      add_to(total[r] + 8, sum[r][1]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const __m128 step = _mm_set1_ps(t.steps[first + r]);
    for (int c = 0; c < kColumns; c += 4) {
      __m128 y = _mm_mul_ps(_mm256_cvtpd_ps(_mm256_load_pd(total[r] + c)), step);
      if (t.scales != nullptr) y = _mm_mul_ps(y, _mm_loadu_ps(t.scales + c));
      float* out = t.out + (first + r) * t.out_stride + c;
      _mm_storeu_ps(out, t.adds ? _mm_add_ps(_mm_loadu_ps(out), y) : y);
    }
  }
}

void multiply(const Int8MultiplyTask& t) {
  int64_t m = 0;
  for (; m + kRowsAtOnce <= t.rows; m += kRowsAtOnce) multiply_rows<kRowsAtOnce>(t, m);
  for (; m + 2 <= t.rows; m += 2) multiply_rows<2>(t, m);
  if (m < t.rows) multiply_rows<1>(t, m);
}

inline __m256i widened(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

void gemv(const Int8GemvTask& t) {
  const int16_t* x = static_cast<const int16_t*>(t.activations);
  const int8_t* w = t.rows;
  for (int64_t row = 0; row < t.count; ++row, w += t.k) {
    alignas(32) double total[8] = {};
    int64_t d = 0;
    while (d + 32 <= t.k) {
      __m256i sum[2] = {};
      const int64_t end = t.k - d < 32 * kSteps ? t.k : d + 32 * kSteps;
      for (; d + 32 <= end; d += 32) {
        add_pairs(sum[0], widened(w + d), load(x + d));
        add_pairs(sum[1], widened(w + d + 16), load(x + d + 16));
      }
      add_to(total, sum[0]);
      add_to(total, sum[1]);
    }
    for (; d < t.k; ++d) total[0] += w[d] * x[d];
    double all = 0;
    for (const double part : total) all += part;
    t.out[row] = static_cast<float>(all) * t.step * t.scales[row];
  }
}

}  // namespace

const Int8Kernels kInt8Avx2 = {1, kColumns, true, kGemvRows, panel_forward, panel_backward, multiply, gemv};

}  // namespace sterna

// AVX-VNNI: vpdpbusd on 256-bit registers.
//
// int8_avxvnni_evex.cc compiles this same file with the AVX-512 encoding of that instruction, for tests on
// processors that have it in that encoding only.
#include "avxvnni.h"
#include "int8_avx2.h"

#ifdef STERNA_EVEX
#define STERNA_INT8_KERNELS kInt8AvxVnniEvex
#else
#define STERNA_INT8_KERNELS kInt8AvxVnni
#endif

namespace sterna {
namespace {

// Rows at once: 6 limb rows x 2 sums, 2 codes and an activation are 15 of the 16 registers.
constexpr int kPairs = 3;
constexpr int64_t kGemvRows = 4;

// Four codes of each of up to 16 rows of W after one another.
void panel_forward(const Int8PanelTask& t) {
  const int64_t whole = t.columns / 4 * 4;
  for (int64_t row = 0; row < t.rows; ++row) {
    const int8_t* from = t.from + row * t.stride;
    uint8_t* to = static_cast<uint8_t*>(t.codes) + row * 4;
    for (int64_t d = 0; d < whole; d += 4) {
      uint32_t four;
      memcpy(&four, from + d, 4);
      four ^= 0x80808080u;
      memcpy(to + d * kColumns, &four, 4);
    }
    for (int64_t d = whole; d < round_up(t.columns, 64); ++d)
      to[d / 4 * 4 * kColumns + d % 4] = d < t.columns ? static_cast<uint8_t>(from[d]) ^ 0x80 : 0;
  }
}

// 4 rows x 16 columns of W, transposed to [column][row].
void panel_backward(const Int8PanelTask& t) {
  const __m128i bias = _mm_set1_epi8(static_cast<char>(0x80));
  const int64_t depth = round_up(t.rows, 64);
  __m128i* to = static_cast<__m128i*>(t.codes);
  for (int64_t d = 0; d < depth; d += 4, to += 4) {
    const __m128i r0 = row16(t, d), r1 = row16(t, d + 1), r2 = row16(t, d + 2), r3 = row16(t, d + 3);
    const __m128i left01 = _mm_unpacklo_epi8(r0, r1), left23 = _mm_unpacklo_epi8(r2, r3);
    const __m128i right01 = _mm_unpackhi_epi8(r0, r1), right23 = _mm_unpackhi_epi8(r2, r3);
    _mm_store_si128(to, _mm_xor_si128(_mm_unpacklo_epi16(left01, left23), bias));
    _mm_store_si128(to + 1, _mm_xor_si128(_mm_unpackhi_epi16(left01, left23), bias));
    _mm_store_si128(to + 2, _mm_xor_si128(_mm_unpacklo_epi16(right01, right23), bias));
    _mm_store_si128(to + 3, _mm_xor_si128(_mm_unpackhi_epi16(right01, right23), bias));
  }
}

// (256 * (high - 128 sum) + low - 128 sum) * step, 4 columns.
[[gnu::always_inline]] inline __m128 joined(__m128i high, __m128i low, const int32_t* sums, float step) {
  const __m256d first = _mm256_cvtepi32_pd(_mm_sub_epi32(high, _mm_set1_epi32(sums[0] * 128)));
  const __m256d second = _mm256_cvtepi32_pd(_mm_sub_epi32(low, _mm_set1_epi32(sums[1] * 128)));
  const __m256d total = _mm256_add_pd(_mm256_mul_pd(first, _mm256_set1_pd(256.0)), second);
  return _mm_mul_ps(_mm256_cvtpd_ps(total), _mm_set1_ps(step));
}

template <int kPairsAtOnce>
[[gnu::always_inline]] inline void multiply_rows(const Int8MultiplyTask& t, int64_t first) {
  constexpr int kRows = 2 * kPairsAtOnce;
  const int8_t* a = static_cast<const int8_t*>(t.activations) + 2 * first * t.depth;
  __m256i total[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = _mm256_setzero_si256();
  const uint8_t* codes = static_cast<const uint8_t*>(t.codes);
  for (const uint8_t* end = codes + t.depth * kColumns; codes < end; codes += 64, a += 4) {
    const __m256i left = load(codes), right = load(codes + 32);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = broadcast4(a + r * t.depth);
      dot(total[r][0], left, x);
      dot(total[r][1], right, x);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < kPairsAtOnce; ++p)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const int64_t m = first + p;
      const __m256i high = total[2 * p][h], low = total[2 * p + 1][h];
      const __m128 left =
          joined(_mm256_castsi256_si128(high), _mm256_castsi256_si128(low), t.sums + 2 * m, t.steps[m]);
      const __m128 right = joined(_mm256_extracti128_si256(high, 1), _mm256_extracti128_si256(low, 1),
                                  t.sums + 2 * m, t.steps[m]);
      __m256 y = _mm256_set_m128(right, left);
      if (t.scales != nullptr) y = _mm256_mul_ps(y, _mm256_loadu_ps(t.scales + 8 * h));
      float* out = t.out + m * t.out_stride + 8 * h;
      _mm256_storeu_ps(out, t.adds ? _mm256_add_ps(_mm256_loadu_ps(out), y) : y);
    }
}

void multiply(const Int8MultiplyTask& t) {
  int64_t m = 0;
  for (; m + kPairs <= t.rows; m += kPairs) multiply_rows<kPairs>(t, m);
  for (; m < t.rows; ++m) multiply_rows<1>(t, m);
}

// Rows of W that share the loads of x.
template <int kRows>
[[gnu::always_inline]] inline void gemv_rows(const Int8GemvTask& t, int64_t first) {
  const __m256i bias = _mm256_set1_epi8(static_cast<char>(0x80));
  const int8_t* w = t.rows + first * t.k;
  const int8_t* x = static_cast<const int8_t*>(t.activations);
  const int64_t depth = round_up(t.k, 64);
  __m256i total[kRows][2];
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = _mm256_setzero_si256();
  for (int64_t d = 0; d < t.k; d += 32) {
    const __m256i high = load(x + d), low = load(x + depth + d);
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
      __m256i codes;
      if (d + 32 <= t.k) {
        codes = load(w + r * t.k + d);
      } else {
        alignas(32) int8_t edge[32] = {};
        memcpy(edge, w + r * t.k + d, static_cast<size_t>(t.k - d));
        codes = load(edge);
      }
      const __m256i biased = _mm256_xor_si256(codes, bias);
      dot(total[r][0], biased, high);
      dot(total[r][1], biased, low);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const double high = sum8(total[r][0]) - 128 * t.sums[0], low = sum8(total[r][1]) - 128 * t.sums[1];
    t.out[first + r] = static_cast<float>(256.0 * high + low) * t.step * t.scales[first + r];
  }
}

void gemv(const Int8GemvTask& t) {
  int64_t row = 0;
  for (; row + 2 <= t.count; row += 2) gemv_rows<2>(t, row);
  if (row < t.count) gemv_rows<1>(t, row);
}

}  // namespace

const Int8Kernels STERNA_INT8_KERNELS = {1,        kColumns, false, kGemvRows, panel_forward, panel_backward,
                                         multiply, gemv};

}  // namespace sterna

// AVX-512 VNNI: vpdpbusd multiplies 64 codes (unsigned) with 64 activations (signed) and adds fours to int32.
#include "int8_avx512.h"

namespace sterna {
namespace {

constexpr int kGroups = 4;  // registers of 16 columns in a panel
constexpr int64_t kColumns = 16 * kGroups;
constexpr int kPairs =
    3;  // rows at once: 6 limb rows x 4 sums, 4 codes and an activation of the 32 registers
constexpr int64_t kGemvRows = 4;

template <int kPairs>
[[gnu::always_inline]] inline void multiply_rows(const Int8MultiplyTask& t, int64_t first) {
  constexpr int kRows = 2 * kPairs;
  const int8_t* a = static_cast<const int8_t*>(t.activations) + 2 * first * t.depth;
  __m512i total[kRows][kGroups];
  // Every loop over the sums is unrolled: only constant indices keep them in registers.
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) total[r][g] = _mm512_setzero_si512();
  const uint8_t* codes = static_cast<const uint8_t*>(t.codes);
  for (const uint8_t* end = codes + t.depth * kColumns; codes < end; codes += kColumns * 4, a += 4) {
    __m512i c[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) c[g] = _mm512_loadu_si512(codes + 64 * g);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = broadcast4(a + r * t.depth);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) dot(total[r][g], c[g], x);
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) int8_store16(t, first + p, g, total[2 * p][g], total[2 * p + 1][g]);
}

void multiply(const Int8MultiplyTask& t) {
  int64_t m = 0;
  for (; m + kPairs <= t.rows; m += kPairs) multiply_rows<kPairs>(t, m);
  for (; m < t.rows; ++m) multiply_rows<1>(t, m);
}

}  // namespace

const Int8Kernels kInt8Avx512Vnni = {
    1,        kColumns,    false, kGemvRows, int8_panel_forward512<kGroups>, int8_panel_backward512<kGroups>,
    multiply, int8_gemv512};

}  // namespace sterna

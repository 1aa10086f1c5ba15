// AVX-VNNI: vpdpbusd on 256-bit registers, for processors with AVX-VNNI and without AVX-512.
//
// avxvnni_evex.cc compiles this same file with the AVX-512 encoding of that instruction, for tests on
// processors that have it in that encoding only.
#include "avxvnni.h"
#include "cpu.h"
#include "variant.h"

namespace sterna {
namespace {

// Rows that share each load of a panel: 6 x 2 sums, 2 codes and an activation are 15 of the 16 registers.
constexpr int64_t kRowsAtOnce = 6;

constexpr int64_t kGemvRows = 8;

template <int kRows>
[[gnu::always_inline]] inline void multiply_rows(const PanelTask& t, int64_t first) {
  const int8_t* a = t.activations + first * t.depth;
  __m256i total[kRows][2];
  // Every loop over the sums is unrolled: only constant indices keep them in registers.
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) total[r][0] = total[r][1] = _mm256_setzero_si256();
  const uint8_t* end = t.codes + t.depth * kColumns;
  for (const uint8_t* codes = t.codes; codes < end; codes += 64, a += 4) {
    const __m256i left = load(codes), right = load(codes + 32);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = broadcast4(a + r * t.depth);
      dot(total[r][0], left, x);
      dot(total[r][1], right, x);
    }
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

// Sums of one row of blocks, in memory between its blocks: of each field, for the lower and the upper eight rows.
struct GemvSums {
  __m256i of[2][4];
};

[[gnu::always_inline]] inline void gemv_block(const uint8_t* p, const int8_t* a, int64_t ahead, GemvSums& total) {
  const __m256i masks[4] = {_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c), _mm256_set1_epi8(0x30),
                            _mm256_set1_epi8(static_cast<char>(0xc0))};
  GemvSums sum = total;
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q, p += 64, a += 16) {
    _mm_prefetch(reinterpret_cast<const char*>(p + ahead), _MM_HINT_T0);
    const __m256i left = load(p), right = load(p + 32);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256i x = broadcast4(a + 4 * j);
      dot(sum.of[0][j], _mm256_and_si256(left, masks[j]), x);
      dot(sum.of[1][j], _mm256_and_si256(right, masks[j]), x);
    }
  }
  total = sum;
}

// Fields stay in their bytes, at 1, 4, 16 and 64 times their value; one shift at the end undoes it.
[[gnu::always_inline]] inline __m256i gemv_total(const GemvSums& sums, int half) {
  const auto& of = sums.of[half];
  const __m256i low = _mm256_add_epi32(of[0], _mm256_srai_epi32(of[1], 2));
  return _mm256_add_epi32(low, _mm256_add_epi32(_mm256_srai_epi32(of[2], 4), _mm256_srai_epi32(of[3], 6)));
}

#ifdef STERNA_EVEX
#define STERNA_AVXVNNI_VARIANT kAvxVnniEvex
constexpr char kName[] = "avxvnni-evex";
bool runs_here() { return has_avx512vnni(); }
#else
#define STERNA_AVXVNNI_VARIANT kAvxVnni
constexpr char kName[] = "avxvnni";
bool runs_here() { return has_avxvnni(); }
#endif

}  // namespace

const Variant STERNA_AVXVNNI_VARIANT = {
    kName, runs_here, 1, kColumns, kGemvRows, quantise_row256, multiply, gemv256<GemvSums, gemv_block, gemv_total>};

}  // namespace sterna

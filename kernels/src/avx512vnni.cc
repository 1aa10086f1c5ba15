// AVX-512 VNNI: vpdpbusd multiplies 64 codes (unsigned) with 64 activations (signed) and adds fours to int32.
#include "avx512.h"
#include "cpu.h"
#include "variant.h"

namespace sterna {
namespace {

constexpr int kGroups = 4;  // registers of 16 columns in a panel
constexpr int64_t kColumns = 16 * kGroups;
constexpr int64_t kRowsAtOnce = 6;  // 6 x 4 sums, 4 codes and an activation of the 32 registers
constexpr int64_t kCodesAhead = 2048;  // bytes; a panel is larger than the first-level cache
constexpr int64_t kBlocksAhead = 16;  // of a panel of dx: they lie too far apart for the processor to foresee
constexpr int64_t kGemvRows = 8;

template <int kRows>
[[gnu::always_inline]] inline void multiply_rows(const PanelTask& t, int64_t first) {
  const int8_t* a = t.activations + first * t.depth;
  __m512i total[kRows][kGroups];
  // Every loop over the sums is unrolled: only constant indices keep them in registers.
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) total[r][g] = _mm512_setzero_si512();
  const uint8_t* end = t.codes + t.depth * kColumns;
  for (const uint8_t* codes = t.codes; codes < end; codes += kColumns * 4, a += 4) {
    __m512i c[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      _mm_prefetch(reinterpret_cast<const char*>(codes + 64 * g + kCodesAhead), _MM_HINT_T0);
      c[g] = _mm512_loadu_si512(codes + 64 * g);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = broadcast4(a + r * t.depth);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) dot(total[r][g], c[g], x);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    if (t.limbs == 2 && r % 2 == 1) continue;
    const int64_t row = first + r;
    __m512 results[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      const __m512i high = total[r][g], low = total[(r + 1) % kRows][g];
      results[g] = t.limbs == 1 ? result16<1>(t, row, high, low) : result16<2>(t, row, high, low);
    }
#pragma GCC unroll 2
    for (int pair = 0; pair < kGroups / 2; ++pair) {
      const __m512 left = results[2 * pair], right = results[2 * pair + 1];
      t.streams ? store32<true>(t, row / t.limbs, pair, left, right)
                : store32<false>(t, row / t.limbs, pair, left, right);
    }
  }
}

// The panel's codes as [depth/4][kColumns][4].
void unpack_forward(const Weights& w, int64_t c0, uint8_t* codes) {
  const int64_t nb = c0 / kBlockRows, row = w.k_blocks() * kBlockBytes, stride = w.row_blocks * kBlockBytes;
  const int64_t groups = w.n_blocks() - nb < kGroups ? w.n_blocks() - nb : kGroups;
  if (groups < kGroups) memset(codes, 0, static_cast<size_t>(row * 4 * kGroups));
  const uint8_t* p = w.block(nb, 0);
  for (const uint8_t* end = p + row; p < end; p += 64, codes += 4 * kGroups * 64)
    for (int64_t g = 0; g < groups; ++g) unpack_quarter(p + g * stride, codes + 64 * g, 64 * kGroups);
}

void unpack_backward(const Weights& w, int64_t c0, uint8_t* codes) {
  const uint8_t* block = w.block(0, c0 / kBlockColumns);
  const int64_t stride = w.row_blocks * kBlockBytes;
  for (int64_t nb = 0; nb < w.n_blocks(); ++nb, block += stride) {
    for (int g = 0; g < kGroups; ++g)
      _mm_prefetch(reinterpret_cast<const char*>(block + kBlocksAhead * stride + 64 * g), _MM_HINT_T0);
    for (int n = 0; n < 64; n += 16, codes += kGroups * 64)
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) unpack_transposed(block + g * 64 + n, codes + 64 * g);
  }
  memset(codes, 0, static_cast<size_t>((round_up(w.n, 64) - w.n_blocks() * kBlockRows) * kColumns));
}

void multiply(const PanelTask& t) {
  (t.is_forward ? unpack_forward : unpack_backward)(t.weights, t.column, t.codes);
  const int64_t rows = t.rows * t.limbs;
  int64_t r = 0;
  for (; r + kRowsAtOnce <= rows; r += kRowsAtOnce) multiply_rows<kRowsAtOnce>(t, r);
  if (r + 4 <= rows) multiply_rows<4>(t, r), r += 4;
  if (r + 2 <= rows) multiply_rows<2>(t, r), r += 2;
  if (r < rows) multiply_rows<1>(t, r);
}

}  // namespace

const Variant kAvx512Vnni = {"avx512vnni", has_avx512vnni,  1,        kColumns,
                             kGemvRows,    quantise_row512, multiply, gemv512, true};

}  // namespace sterna

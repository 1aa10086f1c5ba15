// ARM int8 matrix products: smmla multiplies 2 rows x 8 activations with 8 x 2 columns of codes into 2 x 2
// int32.
//
// A panel lies in memory as [depth/8][16 columns][8], so that a register is the eight codes of two columns.
#include "cpu.h"
#include "neon.h"
#include "variant.h"

namespace sterna {
namespace {

// Pairs of limb rows that share each load of a panel: 3 x 8 sums of 2 x 2, 3 x 2 x 8 activations and a load
// of codes are 28 of 32 registers.
constexpr int64_t kPairsAtOnce = 3;

// usdot: the extension does not promise sdot, which has a name of its own.
struct Dot {
  template <int kLane>
  [[gnu::always_inline]] static int32x4_t add(int32x4_t sum, uint8x16_t codes, int8x16_t x) {
    return vusdotq_laneq_s32(sum, codes, x, kLane);
  }
};

// The sums of the upper and the lower row of a pair, out of their tiles of 2 x 2.
[[gnu::always_inline]] inline void split_rows(const int32x4_t (&tiles)[8], int32x4_t (&upper)[4],
                                              int32x4_t (&lower)[4]) {
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const int64x2_t left = vreinterpretq_s64_s32(tiles[2 * c]),
                    right = vreinterpretq_s64_s32(tiles[2 * c + 1]);
    upper[c] = vreinterpretq_s32_s64(vzip1q_s64(left, right));
    lower[c] = vreinterpretq_s32_s64(vzip2q_s64(left, right));
  }
}

// kPairs pairs of limb rows from `first` on. Where `second` is 0, a pair is one row twice, stored once.
template <int kPairs>
[[gnu::always_inline]] inline void multiply_pairs(const PanelTask& t, int64_t first, int64_t second) {
  const int8_t* a = t.activations + first * t.depth;
  const uint8_t* codes = t.codes;
  int32x4_t total[kPairs][8];
  // Every loop over the sums is unrolled: only constant indices keep them in registers.
#pragma GCC unroll 3
  for (int r = 0; r < kPairs; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < 8; ++c) total[r][c] = vdupq_n_s32(0);
  for (int64_t d = 0; d < t.depth; d += 8, codes += 128) {
    int8x16_t x[kPairs];
#pragma GCC unroll 3
    for (int r = 0; r < kPairs; ++r) {
      const int8_t* upper = a + 2 * r * t.depth + d;
      x[r] = vcombine_s8(vld1_s8(upper), vld1_s8(upper + second * t.depth));
    }
#pragma GCC unroll 8
    for (int c = 0; c < 8; ++c) {
      const int8x16_t two_columns = vreinterpretq_s8_u8(vld1q_u8(codes + 16 * c));
#pragma GCC unroll 3
      for (int r = 0; r < kPairs; ++r) total[r][c] = vmmlaq_s32(total[r][c], x[r], two_columns);
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < kPairs; ++r) {
    int32x4_t upper[4], lower[4];
    split_rows(total[r], upper, lower);
    store16(t, first + 2 * r, upper, lower);
    if (t.limbs == 1 && second == 1) store16(t, first + 2 * r + 1, lower, lower);
  }
}

void multiply(const PanelTask& t) {
  (t.is_forward ? unpack_forward128<true> : unpack_backward128<true>)(t.weights, t.column, t.codes);
  const int64_t rows = t.rows * t.limbs;
  int64_t r = 0;
  for (; r + 2 * kPairsAtOnce <= rows; r += 2 * kPairsAtOnce) multiply_pairs<kPairsAtOnce>(t, r, 1);
  for (; r + 2 <= rows; r += 2) multiply_pairs<1>(t, r, 1);
  if (r < rows) multiply_pairs<1>(t, r, 0);
}

}  // namespace

const Variant kNeonI8mm = {"neon-i8mm", has_i8mm,        1,        kColumns,
                           kGemvRows,   quantise_row128, multiply, gemv128<Dot>};

}  // namespace sterna

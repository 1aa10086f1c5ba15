// ARM dot products: sdot adds four products of int8 to each int32. Codes are 0 .. 3, so they are int8 as
// well.
#include "cpu.h"
#include "neon.h"
#include "variant.h"

namespace sterna {
namespace {

// Limb rows that share each load of a panel: 4 x 4 sums, 4 codes and 4 x 16 activations are 24 of 32
// registers.
constexpr int64_t kRowsAtOnce = 4;

struct Dot {
  template <int kLane>
  [[gnu::always_inline]] static int32x4_t add(int32x4_t sum, uint8x16_t codes, int8x16_t x) {
    return vdotq_laneq_s32(sum, vreinterpretq_s8_u8(codes), x, kLane);
  }
};

// Step kStep of the four that 16 activations of each row are.
template <int kStep, int kRows>
[[gnu::always_inline]] inline void add_step(int32x4_t (&total)[kRows][4], const uint8_t* codes,
                                            const int8x16_t (&x)[kRows]) {
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const uint8x16_t four_columns = vld1q_u8(codes + 64 * kStep + 16 * c);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) total[r][c] = Dot::add<kStep>(total[r][c], four_columns, x[r]);
  }
}

template <int kRows>
[[gnu::always_inline]] inline void multiply_rows(const PanelTask& t, int64_t first) {
  const int8_t* a = t.activations + first * t.depth;
  const uint8_t* codes = t.codes;
  int32x4_t total[kRows][4];
  // Every loop over the sums is unrolled: only constant indices keep them in registers.
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) total[r][c] = vdupq_n_s32(0);
  for (int64_t d = 0; d < t.depth; d += 16, codes += 256) {
    int8x16_t x[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) x[r] = vld1q_s8(a + r * t.depth + d);
    add_step<0>(total, codes, x);
    add_step<1>(total, codes, x);
    add_step<2>(total, codes, x);
    add_step<3>(total, codes, x);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    if (t.limbs == 2 && r % 2 == 1) continue;
    store16(t, first + r, total[r], total[(r + 1) % kRows]);
  }
}

void multiply(const PanelTask& t) {
  (t.is_forward ? unpack_forward128<false> : unpack_backward128<false>)(t.weights, t.column, t.codes);
  const int64_t rows = t.rows * t.limbs;
  int64_t r = 0;
  for (; r + kRowsAtOnce <= rows; r += kRowsAtOnce) multiply_rows<kRowsAtOnce>(t, r);
  for (; r + 2 <= rows; r += 2) multiply_rows<2>(t, r);
  if (r < rows) multiply_rows<1>(t, r);
}

}  // namespace

const Variant kNeonDotprod = {"neon-dotprod", has_dotprod,     1,        kColumns,
                              kGemvRows,      quantise_row128, multiply, gemv128<Dot>};

}  // namespace sterna

// What the two ARM variants share: quantisation, unpacking, the store of a result, and gemv.
//
// Everything here has internal linkage: each file that includes it gets its own copy with its own flags.
#pragma once

#include <arm_neon.h>

#include "variant.h"

namespace sterna {
namespace {

constexpr int64_t kColumns = 16;  // of a panel: four registers of 4 int32

constexpr int64_t kGemvRows = 4;

// 16 int32 that fit int8, in order: the lowest byte of each.
inline int8x16_t narrow(const int32x4_t (&v)[4]) {
  const int16x8_t left = vuzp1q_s16(vreinterpretq_s16_s32(v[0]), vreinterpretq_s16_s32(v[1]));
  const int16x8_t right = vuzp1q_s16(vreinterpretq_s16_s32(v[2]), vreinterpretq_s16_s32(v[3]));
  return vuzp1q_s8(vreinterpretq_s8_s16(left), vreinterpretq_s8_s16(right));
}

// 16 floats of a row from `i`, zeros beyond its end.
inline const float* chunk(const QuantiseTask& t, int64_t i, float* edge) {
  if (i + 16 <= t.length) return t.x + i;
  memset(edge, 0, 16 * sizeof(float));
  if (i < t.length) memcpy(edge, t.x + i, static_cast<size_t>(t.length - i) * sizeof(float));
  return edge;
}

// `dither` of variant.h for the 4 columns from `column` on, added and rounded down.
[[gnu::always_inline]] inline int32x4_t rounded_by_chance(float32x4_t scaled, uint32_t key, int64_t column) {
  static const uint32_t kFirstColumns[4] = {0, kColumnStep, 2 * kColumnStep, 3 * kColumnStep};
  const uint32_t first = key + static_cast<uint32_t>(column) * kColumnStep;
  uint32x4_t h = vaddq_u32(vld1q_u32(kFirstColumns), vdupq_n_u32(first));
  h = veorq_u32(h, vshrq_n_u32(h, 15));
  h = vshrq_n_u32(vmulq_n_u32(h, kDitherFactor), 16);
  const float32x4_t u = vmulq_n_f32(vcvtq_f32_u32(h), 0x1p-16f);
  const int32x4_t code = vcvtmq_s32_f32(vaddq_f32(scaled, u));
  return vmaxq_s32(vminq_s32(code, vdupq_n_s32(127)), vdupq_n_s32(-127));
}

inline void quantise_row128(const QuantiseTask& t) {
  float edge[16];
  int32x4_t tops = vdupq_n_s32(0);
  for (int64_t i = 0; i < t.length; i += 16) {
    const float* x = chunk(t, i, edge);
    for (int r = 0; r < 4; ++r) {
      const int32x4_t bits = vreinterpretq_s32_f32(vld1q_f32(x + 4 * r));
      tops = vmaxq_s32(tops, vandq_s32(bits, vdupq_n_s32(0x7fffffff)));
    }
  }
  const int32_t largest = vmaxvq_s32(tops);
  const RowScale row = row_scale(largest, t.floor, t.limbs);
  *t.step = row.step;

  const uint32_t key = dither_key(largest, t.row);
  int32x4_t sum_high = vdupq_n_s32(0), sum_low = sum_high;
  for (int64_t i = 0; i < t.depth; i += 16) {
    const float* x = chunk(t, i, edge);
    int32x4_t high[4], low[4];
    for (int r = 0; r < 4; ++r) {
      const float32x4_t scaled = vmulq_n_f32(vld1q_f32(x + 4 * r), row.scale);
      high[r] = t.is_stochastic ? rounded_by_chance(scaled, key, i + 4 * r) : vcvtnq_s32_f32(scaled);
      if (!row.finite) high[r] = vdupq_n_s32(0);
      low[r] = vdupq_n_s32(0);
      if (t.limbs == 2) {
        const int32x4_t code = high[r];
        high[r] = vshrq_n_s32(vaddq_s32(code, vdupq_n_s32(128)), 8);
        low[r] = vsubq_s32(code, vshlq_n_s32(high[r], 8));
        sum_low = vaddq_s32(sum_low, low[r]);
      }
      sum_high = vaddq_s32(sum_high, high[r]);
    }
    const int64_t at = i / 64 * t.chunk_stride + i % 64;
    vst1q_s8(t.high + at, narrow(high));
    if (t.limbs == 2) vst1q_s8(t.low + at, narrow(low));
  }
  t.sums[0] = vaddvq_s32(sum_high);
  if (t.limbs == 2) t.sums[1] = vaddvq_s32(sum_low);
}

// Field j of each byte, as a code.
[[gnu::always_inline]] inline uint8x16_t field(uint8x16_t v, int j) {
  return vandq_u8(vshlq_u8(v, vdupq_n_s8(static_cast<int8_t>(-2 * j))), vdupq_n_u8(3));
}

// Two steps of four codes for each of 16 columns: one after the other, [2][16][4], or side by side, [16][8].
template <bool kSideBySide>
[[gnu::always_inline]] inline void put_two_steps(uint8_t* codes, const uint8x16_t (&first)[4],
                                                 const uint8x16_t (&second)[4]) {
  for (int c = 0; c < 4; ++c) {
    if (kSideBySide) {
      const uint32x4_t a = vreinterpretq_u32_u8(first[c]), b = vreinterpretq_u32_u8(second[c]);
      vst1q_u8(codes + 32 * c, vreinterpretq_u8_u32(vzip1q_u32(a, b)));
      vst1q_u8(codes + 32 * c + 16, vreinterpretq_u8_u32(vzip2q_u32(a, b)));
    } else {
      vst1q_u8(codes + 16 * c, first[c]);
      vst1q_u8(codes + 16 * c + 64, second[c]);
    }
  }
}

template <bool kSideBySide>
inline void unpack_forward128(const Weights& w, int64_t c0, uint8_t* codes) {
  const uint8_t* p = w.block(c0 / kBlockRows, 0);
  for (const uint8_t* end = p + w.k_blocks() * kBlockBytes; p < end; p += 64)
    for (int j = 0; j < 4; j += 2, codes += 128) {
      uint8x16_t first[4], second[4];
      for (int c = 0; c < 4; ++c) {
        const uint8x16_t v = vld1q_u8(p + 16 * c);
        first[c] = field(v, j);
        second[c] = field(v, j + 1);
      }
      put_two_steps<kSideBySide>(codes, first, second);
    }
}

// Four rows n of a quarter, 4 x 4 bytes, transposed to [kk][n]; field j then gives the columns 4j .. 4j+3.
template <bool kSideBySide>
inline void unpack_backward128(const Weights& w, int64_t c0, uint8_t* codes) {
  static const uint8_t kTransposed[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const uint8x16_t transposed = vld1q_u8(kTransposed);
  const uint8_t* p = w.block(0, c0 / kBlockColumns) + c0 % kBlockColumns * 4;
  const int64_t stride = w.row_blocks * kBlockBytes;
  for (int64_t nb = 0; nb < w.n_blocks(); ++nb, p += stride)
    for (int n = 0; n < 64; n += 32, codes += 128) {
      const uint8x16_t v = vqtbl1q_u8(vld1q_u8(p + n), transposed);
      const uint8x16_t u = vqtbl1q_u8(vld1q_u8(p + n + 16), transposed);
      uint8x16_t first[4], second[4];
      for (int j = 0; j < 4; ++j) {
        first[j] = field(v, j);
        second[j] = field(u, j);
      }
      put_two_steps<kSideBySide>(codes, first, second);
    }
  memset(codes, 0, static_cast<size_t>((round_up(w.n, 64) - w.n_blocks() * kBlockRows) * kColumns));
}

// The 16 columns of a row of the result: `high` is the sum of limb row r, `low` that of r + 1, if any.
[[gnu::always_inline]] inline void store16(const PanelTask& t, int64_t r, const int32x4_t (&high)[4],
                                           const int32x4_t (&low)[4]) {
  const int64_t m = r / t.limbs;
  for (int c = 0; c < 4; ++c) {
    float32x4_t sum = vcvtq_f32_s32(vsubq_s32(high[c], vdupq_n_s32(t.sums[r])));
    if (t.limbs == 2) {
      const float32x4_t second = vcvtq_f32_s32(vsubq_s32(low[c], vdupq_n_s32(t.sums[r + 1])));
      sum = vaddq_f32(vmulq_n_f32(sum, 256.0f), second);
    }
    vst1q_f32(t.out + m * t.out_stride + 4 * c, vmulq_n_f32(sum, t.factors[m]));
  }
}

// One row of x straight from the packed bytes. Dot::add<j>(sum, codes, x) adds to each int32 the products of
// four codes with the activations 4j .. 4j+3 of x. The middle fields stay in their bytes, at 4 and 16 times
// their value, which still fits int8; one shift at the end undoes it.
template <class Dot>
inline void gemv128(const GemvTask& t) {
  for (int64_t nb = 0; nb < t.n_blocks; ++nb) {
    const uint8_t* p = t.packed + nb * t.row_blocks * kBlockBytes;
    int32x4_t plain[4], times4[4], times16[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) plain[c] = times4[c] = times16[c] = vdupq_n_s32(0);
    for (int64_t d = 0; d < t.k_blocks * kBlockColumns; d += 16, p += 64) {
      const int8x16_t x = vld1q_s8(t.activations + d);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const uint8x16_t v = vld1q_u8(p + 16 * c);
        plain[c] = Dot::template add<0>(plain[c], vandq_u8(v, vdupq_n_u8(0x03)), x);
        times4[c] = Dot::template add<1>(times4[c], vandq_u8(v, vdupq_n_u8(0x0c)), x);
        times16[c] = Dot::template add<2>(times16[c], vandq_u8(v, vdupq_n_u8(0x30)), x);
        plain[c] = Dot::template add<3>(plain[c], vshrq_n_u8(v, 6), x);
      }
    }
    for (int c = 0; c < 4; ++c) {
      const int32x4_t middle = vaddq_s32(vshrq_n_s32(times4[c], 2), vshrq_n_s32(times16[c], 4));
      const int32x4_t sum = vsubq_s32(vaddq_s32(plain[c], middle), vdupq_n_s32(t.sum));
      vst1q_f32(t.out + nb * kBlockRows + 4 * c, vmulq_n_f32(vcvtq_f32_s32(sum), t.factor));
    }
  }
}

}  // namespace
}  // namespace sterna

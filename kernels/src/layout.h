// The packed layout of a ternary matrix W [N, K], and the sizes that follow from it.
//
// The matrix is cut into blocks of 16 rows (n) x 64 columns (k), stored row of blocks after row of blocks:
//
//            k 0..63   64..127                        one block = 256 bytes = 4 quarters of 64 bytes
//   n  0..15   [0]       [1]    ...                   quarter q holds the columns 16q .. 16q+15
//   n 16..31   [KB]     [KB+1]  ...  KB = ceil(K/64)
//
//   byte 64*q + 4*n + kk of a block, bits 2j and 2j+1   <->   row n, column 16*q + 4*j + kk
//
//   bits     7 6     5 4     3 2     1 0              n = 0..15   q, j, kk = 0..3
//   column  12+kk   8+kk    4+kk      kk   (+ 16q)    code = weight + 1: 00 = -1, 01 = 0, 10 = +1
//
// Why so: a quarter shifted right by 2j and masked with 3 is [16 n][4 k], the operand that maddubs, vpdpbusd
// and tdpbsud want for y = x W^T; and the 4 x 4 bytes of a quarter transposed are [4 k][4 n], the operand for
// dx = g W. The same bytes serve both directions.
//
// N is padded to a multiple of 16 and K to a multiple of 64 with code 01. Products do not depend on the
// padding: it meets zeros on the other side or lands in outputs that are dropped. Code 11 is not used by
// anything that packs; every variant takes it as the weight +2 and stays within its bounds, so that a damaged
// file does no harm.
#pragma once

#include <cstdint>

namespace sterna {

inline constexpr int64_t kBlockRows = 16;
inline constexpr int64_t kBlockColumns = 64;
inline constexpr int64_t kBlockBytes = kBlockRows * kBlockColumns / 4;

// Longest side of a matrix, so of every sum. With |activation| <= 128 and code <= 3:
//   |sum of activation * code|              <= 3 * 128 * 2^17 < 2^26          fits int32
//   the same, a field (K/4 codes) in place  <= 64 * 3 * 128 * 2^15 < 2^30     fits int32
//   |sum of activation * weight|            <= 128 * 2^17 = 2^24              exact in float32
// the last for weights -1, 0, +1.
inline constexpr int64_t kMaxSide = int64_t{1} << 17;

// Always inlined, because files with other flags than the rest use them: see variant.h.
[[gnu::always_inline]] constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
[[gnu::always_inline]] constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// W as the kernels see it.
struct Weights {
  const uint8_t* packed;
  int64_t n, k;
  float scale;
  const float* scales;      // [n][groups()], or null when the scale is all there is
  int64_t group = k;        // columns that share a scale of their row: all of them, or a multiple of 64
  int64_t row_blocks = ceil_div(k, kBlockColumns);  // from one row of blocks to the next; a slice skips some

  [[gnu::always_inline]] int64_t n_blocks() const { return ceil_div(n, kBlockRows); }
  [[gnu::always_inline]] int64_t k_blocks() const { return ceil_div(k, kBlockColumns); }
  [[gnu::always_inline]] int64_t groups() const { return ceil_div(k, group); }
  [[gnu::always_inline]] const uint8_t* block(int64_t nb, int64_t kb) const {
    return packed + (nb * row_blocks + kb) * kBlockBytes;
  }
};

}  // namespace sterna

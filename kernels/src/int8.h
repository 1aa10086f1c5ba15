// Products of float32 rows with an int8 matrix, W = scales[:, None] * codes: the output head.
//
// The other side is quantised to two limbs (15 bits) always: the head's logits are what a model is judged by,
// one row of it is bound by memory whatever the arithmetic, and codes in int8 instructions are still several
// times as fast as float32. The sum of a row is exact, and rounded to float32 once.
//
// Where bytes are multiplied, codes meet the limbs as unsigned bytes, code + 128 (an exclusive or with 0x80),
// which 128 times the sum of a limb row takes back. With k <= kMaxInt8Width = 2^16:
//   |sum of limb * (code + 128)|           <= 128 * 255 * 2^16 < 2^31    fits int32
//   |128 * sum of limb|                    <= 128 * 128 * 2^16 = 2^30    fits int32
//   |sum of (256 * high + low) * code|     <= 32512 * 128 * 2^16 < 2^38  exact in float64
// Backward, rows of W are taken in groups of kInt8Group, each with a step of its own for a row of g, so that
// a large probability does not round the many small ones away.
#pragma once

#include "variant.h"

namespace sterna {

inline constexpr int64_t kMaxInt8Width = int64_t{1} << 16;
inline constexpr int64_t kInt8Group = 1024;

struct Int8Weights {
  const int8_t* codes;  // [n][k], row-major
  const float* scales;  // [n]
  int64_t n, k;
};

// A panel of columns of the result: bytes code + 128 as [depth/4][panel_columns][4] or, where limbs are
// joined, int16 codes as [depth/2][panel_columns][2]. `rows` x `columns` codes at `from` are given; the rest
// of the panel may hold anything that meets zeros or is dropped.
struct Int8PanelTask {
  const int8_t* from;
  int64_t stride;         // from one row of W to the next
  int64_t rows, columns;  // of W; forward at most panel_columns rows, backward at most so many columns
  void* codes;            // 64-byte aligned
};

struct Int8MultiplyTask {
  const void* codes;  // as above
  const void*
      activations;      // limb rows as in variant.h, two for each row, or int16 [rows][depth] of joined limbs
  const int32_t* sums;  // [rows * 2] of the limb rows
  const float* steps;   // [rows]
  const float* scales;  // [panel_columns] of the columns, or null
  int64_t rows;
  int64_t depth;  // a multiple of 64
  float* out;     // [rows][panel_columns]
  int64_t out_stride;
  bool adds;  // to what is in `out`
};

// Rows of W straight from where they lie, with one row of x.
struct Int8GemvTask {
  const int8_t* rows;  // [count][k]
  int64_t count, k;
  const void* activations;  // two limb rows or one joined, [k rounded up to 64], zero beyond k
  const int32_t* sums;      // [2]
  float step;
  const float* scales;  // [count]
  float* out;           // [count]
};

struct Int8Kernels {
  int64_t tile_rows;
  int64_t panel_columns;
  bool joins_limbs;   // activations are int16, 256 * high + low: for 16-bit multiplications
  int64_t gemv_rows;  // up to so many rows of x, gemv for each of them is faster than a panel
  void (*panel_forward)(const Int8PanelTask&);
  void (*panel_backward)(const Int8PanelTask&);
  void (*multiply)(const Int8MultiplyTask&);
  void (*gemv)(const Int8GemvTask&);
};

extern const Int8Kernels kInt8Scalar;
#ifdef STERNA_X86
extern const Int8Kernels kInt8Avx2;
extern const Int8Kernels kInt8AvxVnni;
extern const Int8Kernels kInt8AvxVnniEvex;
extern const Int8Kernels kInt8Avx512Vnni;
extern const Int8Kernels kInt8Amx;
extern const Int8Kernels kInt8AmxEmulated;
#endif

// y [rows, n] = x [rows, k] W^T
void int8_forward(const Variant&, const Int8Weights&, const float* x, int64_t rows, float* y);

// dx [rows, k] = g [rows, n] W
void int8_backward(const Variant&, const Int8Weights&, const float* g, int64_t rows, float* dx);

}  // namespace sterna

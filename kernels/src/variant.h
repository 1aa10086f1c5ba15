// What an instruction set has to provide: one table of plain functions, filled in by one .cc file each.
//
// A product runs in two steps, the same for every variant (product.cc):
//   1. quantise_row   each row of activations or gradients becomes int8 and a step
//   2. multiply       a panel of columns of the result: its codes unpacked to bytes, then for each row int32
//                     sums, correction, one float32 multiplication, store
// A few rows unpack nothing: gemv reads the packed bytes, one row at a time, row-major whatever tile_rows is.
//
// The files of the instruction sets are compiled with flags that the rest of the program must not see. They
// include nothing with external inline functions (no standard containers, no algorithms), because the linker
// would keep one copy of such a function for everybody, perhaps theirs.
#pragma once

#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "layout.h"

namespace sterna {

// Quantised rows. A "limb row" is row m itself or, with two limbs, 2m its high and 2m+1 its low limb.
//
// Limb row r, column d (d < depth, depth a multiple of 64, zero beyond the data) lies at
//   (r / T) * T * depth  +  (d / 64) * T * 64  +  (r % T) * 64  +  d % 64        T = tile_rows of the variant
// that is row-major for T = 1, and tiles of 16 rows x 64 bytes for T = 16.
struct QuantiseTask {
  const float* x;
  int64_t length;        // elements of x
  int64_t depth;         // elements to write: length rounded up to 64
  float floor;           // a smaller largest value counts as this
  int limbs;             // 1 or 2
  int8_t* high;          // where the row starts
  int8_t* low;           // the second limb, when there are two
  int64_t chunk_stride;  // from one 64 bytes of the row to the next
  int32_t* sums;         // [limbs] sum of the codes of each limb
  float* step;           // what one unit stands for
  bool is_stochastic;    // round by chance, as `dither` below draws it; with one limb only
  int64_t row;           // number of the row, for that
  const Bfloat16* narrow_x = nullptr;  // instead of x, for a variant that takes it
};

// The columns from `column` on of y = x W^T (columns count n) or of dx = g W (they count k). Columns beyond
// the matrix and, backward, rows of W from n_blocks * 16 on meet zeros.
struct PanelTask {
  const Weights& weights;
  bool is_forward;
  int64_t column;             // a multiple of panel_columns
  uint8_t* codes;             // memory for the unpacked panel, depth * panel_columns bytes, 64-byte aligned:
                              // [depth/4][panel_columns][4] unless the variant's file says otherwise
  const int8_t* activations;  // limb rows as above, 64-byte aligned
  const int32_t* sums;        // [rows * limbs]
  const float* factors;       // [rows] step * scale
  int64_t rows;
  int64_t depth;
  int limbs;
  float* out;  // [rows][panel_columns]
  int64_t out_stride;
  bool streams;  // the whole result is larger than the caches and lies on cache lines: write past them
  Bfloat16* narrow_out = nullptr;  // instead of out, for a variant that gives it; rounded as `store` rounds
  // With those of the panel before this one, [rows][panel_columns], which go with these: a store past the caches
  // costs the same for one cache line of a page as for two.
  const Bfloat16* beside = nullptr;
};

// How far ahead of their use, in bytes, gemv asks for packed weights: a core alone does not keep enough reads
// under way to get all that the memory can give.
inline constexpr int64_t kPackedAhead = 4096;

// Rows of blocks that gemv reads side by side: with pages of 4 KiB, four stretches of memory come a quarter faster
// than one.
inline constexpr int64_t kStretches = 4;

struct GemvTask {
  const uint8_t* packed;  // the first block of the first row of blocks
  int64_t n_blocks;       // rows of blocks to do
  int64_t k_blocks;
  const int8_t* activations;  // [k_blocks * 64]
  int32_t sum;
  float factor;
  float* out;                     // [n_blocks * 16]
  int64_t row_blocks = k_blocks;  // from one row of blocks to the next; more than k_blocks in a slice of columns
  int64_t first_block = 0;        // where the slice starts in its row
};

// From what is read of block kb to what gemv asks for meanwhile, in each of `rows` rows read side by side: a piece
// further on or, where the row ends before, as far into the row that its stretch goes on with.
[[gnu::always_inline]] inline int64_t packed_ahead(const GemvTask& t, int64_t kb, int64_t rows) {
  const bool ends = (t.row_blocks - t.first_block - kb) * kBlockBytes <= kPackedAhead;
  return kPackedAhead + (ends ? (rows - 1) * t.row_blocks * kBlockBytes : 0);
}

struct Variant {
  const char* name;
  bool (*runs_here)();
  int64_t tile_rows;
  int64_t panel_columns;  // 16, 32 or 64
  int64_t gemv_rows;      // up to so many rows of x, gemv for each of them is faster than unpacking
  void (*quantise_row)(const QuantiseTask&);
  void (*multiply)(const PanelTask&);
  void (*gemv)(const GemvTask&);
  bool has_bfloat16 = false;  // quantise_row takes it and multiply gives it
};

extern const Variant kScalar;
#ifdef STERNA_X86
extern const Variant kAvx2;
extern const Variant kAvxVnni;
extern const Variant kAvx512Vnni;
extern const Variant kAmx;
// For tests: the sources of two of the above on processors without their instructions.
extern const Variant kAvxVnniEvex;
extern const Variant kAmxEmulated;
#endif
#ifdef STERNA_ARM
extern const Variant kNeonDotprod;
extern const Variant kNeonI8mm;
#endif

// --- the definition of the quantisation, shared by all files; internal linkage on purpose, see above ---

struct RowScale {
  float scale;  // code = x * scale, rounded half to even or, by chance, floor(x * scale + dither)
  float step;   // x is about code * step
  bool finite;
};

// `largest` is the largest bit pattern of |x| in the row: as integers they are ordered like the floats, with
// infinity and then the NaNs above all others. A row with one of those gets zeros and the step NaN.
static inline RowScale row_scale(int32_t largest, float floor, int limbs) {
  const float limit = limbs == 1 ? 127.0f : 127.0f * 256.0f;
  constexpr int32_t kInfinity = 0x7f800000, kNan = 0x7fc00000;
  RowScale result = {0.0f, 0.0f, largest < kInfinity};
  if (!result.finite) {
    memcpy(&result.step, &kNan, sizeof kNan);
    return result;
  }
  float m;
  memcpy(&m, &largest, sizeof m);
  m = m < floor ? floor : m;
  result.scale = limit / m;
  result.step = m / limit;
  return result;
}

// Where chance decides, the code is floor(x * scale + u) within +-127, and u in [0, 1) comes from counters: the
// largest bit pattern of the row, the number of the row, the column. The same row gives the same codes on every
// machine, in any order and over again, and no seed has to be kept; yet from one step of training to the next all
// of it is drawn anew, because a largest value does not come back.
constexpr uint32_t kColumnStep = 0x9e3779b9, kDitherFactor = 0x2c1b3c6d;

static inline uint32_t mixed(uint32_t h) {
  h = (h ^ h >> 16) * 0x7feb352d;
  h = (h ^ h >> 15) * 0x846ca68b;
  return h ^ h >> 16;
}

static inline uint32_t dither_key(int32_t largest, int64_t row) {
  return mixed(static_cast<uint32_t>(largest) ^ mixed(static_cast<uint32_t>(row)));
}

// u has 16 bits, so that it is a float exactly.
static inline float dither(uint32_t key, int64_t column) {
  uint32_t h = key + static_cast<uint32_t>(column) * kColumnStep;
  h = (h ^ h >> 15) * kDitherFactor;
  return static_cast<float>(h >> 16) * 0x1p-16f;
}

}  // namespace sterna

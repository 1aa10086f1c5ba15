// AMX int8: tdpbsud multiplies a tile of 16 limb rows x 64 activations with one of 64 x 16 codes.
//
// int8_amx_emulated.cc compiles this same file with the tiles in memory, for tests on processors without AMX.
#include <immintrin.h>

#ifdef STERNA_AMX_EMULATED
#include "amx_emulated.h"
#define STERNA_INT8_KERNELS kInt8AmxEmulated
#else
#define STERNA_INT8_KERNELS kInt8Amx
#endif

#include "amx_tiles.h"
#include "int8_avx512.h"

namespace sterna {
namespace {

// 2 x 2 tiles of sums and 2 + 2 of operands fill the eight tiles: four products for four loads.
constexpr int kGroups = 2;
constexpr int64_t kColumns = 16 * kGroups;
constexpr int64_t kGemvRows = 4;
constexpr int64_t kStepStride = kColumns * 4;

struct alignas(64) Sums {
  int32_t tile[2][kGroups][kTileRows][16];
};

// One or two tiles of limb rows with the whole panel.
template <bool kTwo>
void multiply_tiles(const int8_t* a, const uint8_t* codes, int64_t depth, Sums& sums) {
  const int8_t* b = a + kTileRows * depth;
  _tile_zero(0);
  _tile_zero(1);
  if (kTwo) _tile_zero(2);
  if (kTwo) _tile_zero(3);
  for (int64_t d = 0; d < depth; d += 64, a += kTileBytes, b += kTileBytes, codes += 16 * kStepStride) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, codes, kStepStride);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, codes + 64, kStepStride);
    _tile_dpbsud(1, 4, 7);
    if (kTwo) _tile_loadd(5, b, 64);
    if (kTwo) _tile_dpbsud(2, 5, 6);
    if (kTwo) _tile_dpbsud(3, 5, 7);
  }
  _tile_stored(0, sums.tile[0][0], 64);
  _tile_stored(1, sums.tile[0][1], 64);
  if (kTwo) _tile_stored(2, sums.tile[1][0], 64);
  if (kTwo) _tile_stored(3, sums.tile[1][1], 64);
}

void multiply(const Int8MultiplyTask& t) {
  Sums sums;
  const uint8_t* codes = static_cast<const uint8_t*>(t.codes);
  const int64_t limb_rows = 2 * t.rows;
  configure_tiles();
  for (int64_t first = 0; first < limb_rows; first += 2 * kTileRows) {
    const int8_t* a = static_cast<const int8_t*>(t.activations) + first * t.depth;
    if (first + kTileRows < limb_rows) {
      multiply_tiles<true>(a, codes, t.depth, sums);
    } else {
      multiply_tiles<false>(a, codes, t.depth, sums);
    }
    const int64_t count = limb_rows - first < 2 * kTileRows ? limb_rows - first : 2 * kTileRows;
    for (int64_t r = 0; r < count; r += 2)
      for (int g = 0; g < kGroups; ++g) {
        // A tile holds an even number of limb rows: both limbs of a row are in the same tile.
        const int32_t (*tile)[16] = sums.tile[r / kTileRows][g];
        const int64_t in_tile = r % kTileRows;
        int8_store16(t, (first + r) / 2, g, _mm512_load_si512(tile[in_tile]),
                     _mm512_load_si512(tile[in_tile + 1]));
      }
  }
  _tile_release();
}

}  // namespace

const Int8Kernels STERNA_INT8_KERNELS = {
    kTileRows, kColumns,    false, kGemvRows, int8_panel_forward512<kGroups>, int8_panel_backward512<kGroups>,
    multiply,  int8_gemv512};

}  // namespace sterna

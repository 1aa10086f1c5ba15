// AMX int8: tdpbsud multiplies a tile of 16 rows x 64 activations with one of 64 x 16 codes.
//
// amx_emulated.cc compiles this same file with the tiles in memory, for tests on processors without AMX.
#include <immintrin.h>

#ifdef STERNA_AMX_EMULATED
#include "amx_emulated.h"
#endif

#include "avx512.h"
#include "cpu.h"
#include "variant.h"

namespace sterna {
namespace {

// 2 x 2 tiles of sums and 2 + 2 of operands fill the eight tiles: four products for four loads.
constexpr int kGroups = 2;
constexpr int64_t kColumns = 16 * kGroups;
constexpr int64_t kTileRows = 16;
constexpr int64_t kGemvRows = 2;  // a tile takes 16 rows for the price of one; not tuned
constexpr int64_t kTileBytes = 16 * 64;
constexpr int64_t kStepStride = kColumns * 4;

// The operand of ldtilecfg: all eight tiles have 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

// The configuration belongs to the thread, and other libraries set and release theirs on the same thread. It
// is therefore set for each panel and released after it.
void configure() {
  const TileConfig config;
  // GCC 12 believes that ldtilecfg reads 8 bytes only and would drop the stores to the others.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Two tiles of limb rows with the whole panel; the sums stay in tiles 0 .. 3 over the whole depth.
void multiply_two(const int8_t* a, const uint8_t* codes, int64_t depth, int32_t* sums) {
  const int8_t* b = a + kTileRows * depth;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t d = 0; d < depth; d += 64, a += kTileBytes, b += kTileBytes, codes += 16 * kStepStride) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, codes, kStepStride);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, codes + 64, kStepStride);
    _tile_dpbsud(1, 4, 7);
    _tile_loadd(5, b, 64);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

void multiply_one(const int8_t* a, const uint8_t* codes, int64_t depth, int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t d = 0; d < depth; d += 64, a += kTileBytes, codes += 16 * kStepStride) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, codes, kStepStride);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, codes + 64, kStepStride);
    _tile_dpbsud(1, 4, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
}

void multiply(const MultiplyTask& t) {
  alignas(64) int32_t sums[2][kGroups][kTileRows][16];
  const int64_t rows = t.rows * t.limbs;
  configure();
  for (int64_t first = 0; first < rows; first += 2 * kTileRows) {
    const int8_t* a = t.activations + first * t.depth;
    if (first + kTileRows < rows) {
      multiply_two(a, t.codes, t.depth, sums[0][0][0]);
    } else {
      multiply_one(a, t.codes, t.depth, sums[0][0][0]);
    }
    const int64_t count = rows - first < 2 * kTileRows ? rows - first : 2 * kTileRows;
    for (int64_t r = 0; r < count; r += t.limbs)
      for (int g = 0; g < kGroups; ++g) {
        // A tile holds an even number of limb rows: the second limb is in the same tile.
        const int32_t (*tile)[16] = sums[r / kTileRows][g];
        const int64_t in_tile = r % kTileRows;
        store16(t, first + r, g, _mm512_load_si512(tile[in_tile]), _mm512_load_si512(tile[in_tile | 1]));
      }
  }
  _tile_release();
}

void unpack_forward(const Weights& w, int64_t c0, uint8_t* codes) {
  unpack_forward_groups<kGroups>(w, c0, codes);
}

void unpack_backward(const Weights& w, int64_t c0, uint8_t* codes) {
  unpack_backward_groups<kGroups>(w, c0, codes);
}

#ifdef STERNA_AMX_EMULATED
#define STERNA_AMX_VARIANT kAmxEmulated
constexpr char kName[] = "amx-emulated";
bool runs_here() { return has_avx512vnni(); }
#else
#define STERNA_AMX_VARIANT kAmx
constexpr char kName[] = "amx";
bool runs_here() { return has_amx(); }
#endif

}  // namespace

const Variant STERNA_AMX_VARIANT = {kName,           runs_here,      kTileRows,       kColumns, kGemvRows,
                                    quantise_row512, unpack_forward, unpack_backward, multiply, gemv512};

}  // namespace sterna

// How the tiles of AMX are laid out: all eight have 16 rows of 64 bytes.
//
// A file that multiplies includes amx_emulated.h, where it is wanted, before this.
#pragma once

#include <cstdint>

namespace sterna {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileBytes = kTileRows * 64;

// The operand of ldtilecfg.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

#if defined(__AMX_TILE__) || defined(STERNA_AMX_EMULATED)
// The configuration belongs to the thread, and other libraries set and release theirs on the same thread. It is
// therefore set for each panel and released after it.
inline void configure_tiles() {
  const TileConfig config;
  // GCC 12 believes that ldtilecfg reads 8 bytes only and would drop the stores to the others.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}
#endif

}  // namespace
}  // namespace sterna

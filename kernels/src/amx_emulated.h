// The tile instructions in plain C++, by Intel's description of them, with a configuration that is checked.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace sterna {
namespace {

struct Tiles {
  struct Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config;
  uint8_t data[8][16][64];
};

thread_local Tiles tiles;

// A processor raises #UD where this stops the program.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "emulated AMX: %s\n", what);
  std::abort();
}

inline void check(int tile) {
  require(tiles.config.palette == 1, "no tile configuration");
  require(tiles.config.rows[tile] > 0 && tiles.config.row_bytes[tile] > 0, "tile without a size");
}

inline void emulated_loadconfig(const void* config) {
  memcpy(&tiles.config, config, sizeof tiles.config);
  for (int t = 0; t < 8; ++t)
    require(tiles.config.rows[t] <= 16 && tiles.config.row_bytes[t] <= 64,
            "tile larger than the palette allows");
  memset(tiles.data, 0, sizeof tiles.data);
}

inline void emulated_release() { memset(&tiles, 0, sizeof tiles); }

inline void emulated_zero(int tile) {
  check(tile);
  memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
}

inline void emulated_load(int tile, const void* base, int64_t stride) {
  emulated_zero(tile);
  for (int row = 0; row < tiles.config.rows[tile]; ++row)
    memcpy(tiles.data[tile][row], static_cast<const char*>(base) + row * stride,
           tiles.config.row_bytes[tile]);
}

inline void emulated_store(int tile, void* base, int64_t stride) {
  check(tile);
  for (int row = 0; row < tiles.config.rows[tile]; ++row)
    memcpy(static_cast<char*>(base) + row * stride, tiles.data[tile][row], tiles.config.row_bytes[tile]);
}

// sum[m][n] += a[m][4k + i] (signed) * b[k][4n + i] (unsigned) over k and i
inline void emulated_dpbsud(int sum, int a, int b) {
  check(sum), check(a), check(b);
  const auto& c = tiles.config;
  require(c.rows[sum] == c.rows[a] && c.row_bytes[a] == 4 * c.rows[b] && c.row_bytes[sum] == c.row_bytes[b],
          "shapes of tiles do not match");
  for (int m = 0; m < c.rows[sum]; ++m)
    for (int n = 0; n < c.row_bytes[sum] / 4; ++n) {
      int32_t total;
      memcpy(&total, &tiles.data[sum][m][4 * n], 4);
      for (int k = 0; k < c.rows[b]; ++k)
        for (int i = 0; i < 4; ++i)
          total += static_cast<int8_t>(tiles.data[a][m][4 * k + i]) * tiles.data[b][k][4 * n + i];
      memcpy(&tiles.data[sum][m][4 * n], &total, 4);
    }
}

// sum[m][n] += a[m][2k + i] * b[k][2n + i] over k and i, in bfloat16
inline void emulated_dpbf16ps(int sum, int a, int b) {
  check(sum), check(a), check(b);
  const auto& c = tiles.config;
  require(c.rows[sum] == c.rows[a] && c.row_bytes[a] == 4 * c.rows[b] && c.row_bytes[sum] == c.row_bytes[b],
          "shapes of tiles do not match");
  const auto number = [](const uint8_t* at) {
    const uint32_t bits = static_cast<uint32_t>(at[0] | at[1] << 8) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
  };
  for (int m = 0; m < c.rows[sum]; ++m)
    for (int n = 0; n < c.row_bytes[sum] / 4; ++n) {
      float total;
      memcpy(&total, &tiles.data[sum][m][4 * n], 4);
      for (int k = 0; k < c.rows[b]; ++k)
        for (int i = 0; i < 2; ++i)
          total += number(&tiles.data[a][m][4 * k + 2 * i]) * number(&tiles.data[b][k][4 * n + 2 * i]);
      memcpy(&tiles.data[sum][m][4 * n], &total, 4);
    }
}

}  // namespace
}  // namespace sterna

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) emulated_loadconfig(config)
#define _tile_release() emulated_release()
#define _tile_zero(tile) emulated_zero(tile)
#define _tile_loadd(tile, base, stride) emulated_load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated_store(tile, base, stride)
#define _tile_dpbsud(sum, a, b) emulated_dpbsud(sum, a, b)
#define _tile_dpbf16ps(sum, a, b) emulated_dpbf16ps(sum, a, b)

// AMX int8: tdpbsud multiplies a tile of 16 rows x 64 activations with one of 64 x 16 codes.
//
// amx_emulated.cc compiles this same file with the tiles in memory, for tests on processors without AMX.
#include <immintrin.h>

#ifdef STERNA_AMX_EMULATED
#include "amx_emulated.h"
#endif

#include "amx_tiles.h"
#include "avx512.h"
#include "cpu.h"
#include "variant.h"

namespace sterna {
namespace {

// 2 x 2 tiles of sums and 2 + 2 of operands fill the eight tiles: four products for four loads.
constexpr int kGroups = 2;
constexpr int64_t kColumns = 16 * kGroups;
constexpr int64_t kGemvRows = 2;  // a tile takes 16 rows for the price of one; not tuned

constexpr int64_t kPairRows = 2 * kTileRows;

// A panel is unpacked in slices of this many steps of 64 and multiplied with a few pairs of tiles of limb
// rows before the next slice: 16 KiB of codes and 32 KiB of sums stay in the first-level cache. A whole panel
// would come from the second level, which cannot deliver it in time beside the activations. And slices keep
// the stores of sums close to each other: after 740 ns without one, a tile store takes 300 ns longer on
// Sapphire Rapids.
constexpr int64_t kSliceSteps = 8;
constexpr int64_t kPairs = 8;

using Step = uint8_t[kGroups][kTileBytes];

struct alignas(64) PairSums {
  int32_t tile[2][kGroups][kTileRows][16];
};

// The packed bytes of a slice.
struct Packed {
  const uint8_t* first;
  int64_t pieces;
  int64_t lines;   // cache lines of a piece
  int64_t stride;  // bytes from one piece to the next
};

// Where the packed bytes of a panel of y lie. The panel after the last one has none.
class ForwardPanel {
 public:
  ForwardPanel(const Weights& w, int64_t column) : stride_(w.row_blocks * kBlockBytes) {
    for (int g = 0; g < kGroups; ++g) {
      const int64_t nb = column / kBlockRows + g;
      blocks_[g] = nb < w.n_blocks() ? w.block(nb, 0) : nullptr;
    }
  }

  void unpack(int64_t step, Step& codes) const {
    for (int g = 0; g < kGroups; ++g) {
      if (blocks_[g] == nullptr) {
        memset(codes[g], 0, kTileBytes);
        continue;
      }
      const uint8_t* block = blocks_[g] + step * kBlockBytes;
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) unpack_quarter(block + 64 * q, codes[g] + 256 * q, 64);
    }
  }

  Packed packed(int64_t step, int64_t steps) const {
    int64_t groups = 0;
    while (groups < kGroups && blocks_[groups] != nullptr) ++groups;
    return {blocks_[0] + step * kBlockBytes, groups, steps * kBlockBytes / 64, stride_};
  }

 private:
  const uint8_t* blocks_[kGroups];
  int64_t stride_;
};

// The same for a panel of dx. Its blocks lie a row of blocks apart.
class BackwardPanel {
 public:
  BackwardPanel(const Weights& w, int64_t column)
      : quarters_(w.block(0, column / kBlockColumns) + column % kBlockColumns * 4),
        stride_(w.row_blocks * kBlockBytes),
        n_blocks_(column < w.k ? w.n_blocks() : 0) {}

  void unpack(int64_t step, Step& codes) const {
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t nb = 4 * step + i;
      if (nb >= n_blocks_) {
        for (int g = 0; g < kGroups; ++g) memset(codes[g] + 256 * i, 0, 256);
        continue;
      }
      for (int g = 0; g < kGroups; ++g) {
        const uint8_t* quarter = quarters_ + nb * stride_ + 64 * g;
#pragma GCC unroll 4
        for (int n = 0; n < 64; n += 16) unpack_transposed(quarter + n, codes[g] + 256 * i + 4 * n);
      }
    }
  }

  Packed packed(int64_t step, int64_t steps) const {
    const int64_t nb = 4 * step, end = nb + 4 * steps < n_blocks_ ? nb + 4 * steps : n_blocks_;
    return {quarters_ + nb * stride_, end - nb, kGroups, stride_};
  }

 private:
  const uint8_t* quarters_;
  int64_t stride_, n_blocks_;
};

// Asks for the packed bytes of the slice that comes next, a few lines with each of so many calls: the memory works
// while the tiles do, and never so much at once that the activations would have to wait.
class Ahead {
 public:
  Ahead(const Packed& packed, int64_t calls)
      : line_(packed.first), packed_(packed), at_once_(ceil_div(packed.pieces * packed.lines, calls)) {}

  [[gnu::always_inline]] void ask() {
    for (int64_t i = 0; i < at_once_ && packed_.pieces > 0; ++i) {
      _mm_prefetch(line_, _MM_HINT_T0);
      line_ += 64;
      if (++in_piece_ < packed_.lines) continue;
      in_piece_ = 0;
      --packed_.pieces;
      line_ = packed_.first += packed_.stride;
    }
  }

 private:
  const uint8_t* line_;
  Packed packed_;
  int64_t at_once_, in_piece_ = 0;
};

// Adds a slice's part to the sums of two tiles of limb rows, or of one. The first slice starts them.
template <bool kTwo>
void multiply_slice(const int8_t* a, int64_t depth, const Step* codes, int64_t steps, bool is_first,
                    Ahead& ahead, PairSums& sums) {
  const int8_t* b = a + kTileRows * depth;
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    if (kTwo) _tile_zero(2);
    if (kTwo) _tile_zero(3);
  } else {
    _tile_loadd(0, sums.tile[0][0], 64);
    _tile_loadd(1, sums.tile[0][1], 64);
    if (kTwo) _tile_loadd(2, sums.tile[1][0], 64);
    if (kTwo) _tile_loadd(3, sums.tile[1][1], 64);
  }
  for (const Step* end = codes + steps; codes < end; ++codes, a += kTileBytes, b += kTileBytes) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, (*codes)[0], 64);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, (*codes)[1], 64);
    _tile_dpbsud(1, 4, 7);
    if (kTwo) _tile_loadd(5, b, 64);
    if (kTwo) _tile_dpbsud(2, 5, 6);
    if (kTwo) _tile_dpbsud(3, 5, 7);
    ahead.ask();
  }
  _tile_stored(0, sums.tile[0][0], 64);
  _tile_stored(1, sums.tile[0][1], 64);
  if (kTwo) _tile_stored(2, sums.tile[1][0], 64);
  if (kTwo) _tile_stored(3, sums.tile[1][1], 64);
}

template <int kLimbs, bool kStream>
void store_pair(const PanelTask& t, int64_t first, int64_t count, const PairSums& sums) {
  for (int64_t r = 0; r < count; r += kLimbs) {
    __m512 results[kGroups];
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      // A tile holds an even number of limb rows: the second limb is in the same tile.
      const int32_t (*tile)[16] = sums.tile[r / kTileRows][g];
      const int64_t in_tile = r % kTileRows;
      results[g] = result16<kLimbs>(t, first + r, _mm512_load_si512(tile[in_tile]),
                                    _mm512_load_si512(tile[in_tile | 1]));
    }
    store32<kStream>(t, (first + r) / kLimbs, 0, results[0], results[1]);
  }
}

template <class Panel>
void multiply_panel(const PanelTask& t) {
  const Panel panel(t.weights, t.column), next_panel(t.weights, t.column + kColumns);
  const auto store = t.limbs == 1 ? t.streams ? store_pair<1, true> : store_pair<1, false>
                     : t.streams  ? store_pair<2, true>
                                  : store_pair<2, false>;
  alignas(64) Step codes[kSliceSteps];
  PairSums sums[kPairs];
  const int64_t rows = t.rows * t.limbs, depth_steps = t.depth / 64;
  for (int64_t first = 0; first < rows; first += kPairs * kPairRows) {
    const int64_t end = rows - first < kPairs * kPairRows ? rows : first + kPairs * kPairRows;
    for (int64_t step = 0; step < depth_steps; step += kSliceSteps) {
      const auto steps_from = [&](int64_t s) {
        return depth_steps - s < kSliceSteps ? depth_steps - s : kSliceSteps;
      };
      const int64_t steps = steps_from(step);
      const bool is_last = step + steps == depth_steps;
      const int64_t next = is_last ? 0 : step + steps;
      Ahead ahead((is_last ? next_panel : panel).packed(next, steps_from(next)),
                  ceil_div(end - first, kPairRows) * steps);
      for (int64_t s = 0; s < steps; ++s) panel.unpack(step + s, codes[s]);
      for (int64_t r = first; r < end; r += kPairRows) {
        const auto multiply_rows = end - r > kTileRows ? multiply_slice<true> : multiply_slice<false>;
        const int8_t* a = t.activations + r * t.depth + step * kTileBytes;
        PairSums& pair = sums[(r - first) / kPairRows];
        multiply_rows(a, t.depth, codes, steps, step == 0, ahead, pair);
        if (is_last) store(t, r, end - r < kPairRows ? end - r : kPairRows, pair);
      }
    }
  }
}

void multiply(const PanelTask& t) {
  configure_tiles();
  (t.is_forward ? multiply_panel<ForwardPanel> : multiply_panel<BackwardPanel>)(t);
  _tile_release();
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

const Variant STERNA_AMX_VARIANT = {kName,      runs_here,       kTileRows, kColumns,
                                    kGemvRows, quantise_row512, multiply,  gemv512, true};

}  // namespace sterna

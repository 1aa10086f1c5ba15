// Attention of many tokens in bfloat16 tiles: y = softmax(q k^T / sqrt(size) + causal) v, the last query sees the
// last key. Weights of the softmax are rounded to bfloat16 before they meet the values, sums are float32.
//
// 32 queries of a head are an item: their scores with all keys they may see lie in the cache, then the weights
// in their place, then the tiles of v are added up. Keys and values are brought into the order of tiles once for
// all heads that share them.
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "variant.h"

namespace sterna {

inline constexpr int64_t kQueryRows = 32;  // of an item
inline constexpr int64_t kKeyStep = 32;    // keys come in multiples of this, zeros at the end
inline constexpr int64_t kSpread = 32;     // what rows of scores are longer by, so that they do not meet in the cache
inline constexpr int64_t kMostHeadSize = 256;

// One sequence, dense: q and y [queries][heads][size], k and v [keys][kv_heads][size]. y may be q.
struct Sequence {
  const Bfloat16* q;
  const Bfloat16* k;
  const Bfloat16* v;
  Bfloat16* y;
  int64_t queries, keys, heads, kv_heads, size;

  [[gnu::always_inline]] int64_t padded_keys() const { return round_up(keys, kKeyStep); }
};

// kKeyStep rows from `first` on of rows [count][size], `stride` apart, to where the tiles of all of them are, 1 KiB each;
// zeros behind the last. Either may be null.
struct PackTask {
  const Bfloat16* rows;
  int64_t stride, count, size, first;
  uint8_t* across;  // [count / 16][size / 32], rows are columns of tiles
  uint8_t* along;   // [size / 32][count / 32][2], rows are their depth
};

struct AttendTask {
  const Sequence& sequence;
  int64_t head, first;  // query
  const uint8_t* key_tiles;
  const uint8_t* value_tiles;
  float* scores;      // [kQueryRows][padded_keys + kSpread]
  Bfloat16* weights;  // the same
};

struct AttentionGradientKernels;

struct AttentionKernels {
  bool (*runs_here)();
  void (*pack)(const PackTask&);
  void (*attend)(const AttendTask&);
  const AttentionGradientKernels& gradient;
};

#ifdef STERNA_X86
extern const AttentionKernels kAttentionAmx;
extern const AttentionKernels kAttentionAmxEmulated;
#endif

// What this variant has of its own, for heads of this size; null for nothing.
const AttentionKernels* attention_of(const Variant&, int64_t size);

void attend_many(const AttentionKernels&, const Sequence&);

}  // namespace sterna

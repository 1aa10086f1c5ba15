#include "attention_gradient.h"

#include "scratch.h"
#include "threads.h"

namespace sterna {
namespace {

constexpr int64_t kPackWork = 64;  // an element costs about as much as this many multiplications

thread_local Scratch tiles_scratch, terms_scratch;  // of the calling thread
thread_local Scratch scores_scratch, slopes_scratch, weights_scratch, gradients_scratch;  // of each thread that works

Products room_for(int64_t columns) {
  const int64_t count = kQueryRows * (columns + kSpread);
  return {scores_scratch.get<float>(count), slopes_scratch.get<float>(count), weights_scratch.get<Bfloat16>(count),
          gradients_scratch.get<Bfloat16>(count)};
}

// The tiles of one kv head and of the heads that share it.
struct Tiles {
  int64_t keys_bytes, queries_bytes, heads;
  uint8_t* first;

  int64_t bytes() const { return 3 * keys_bytes + 4 * heads * queries_bytes; }
  uint8_t* keys(int64_t which) const { return first + which * keys_bytes; }
  // Of one kind, those of all heads lie one after the other.
  uint8_t* queries(int64_t which, int64_t head) const { return keys(3) + (which * heads + head) * queries_bytes; }
};
enum KeyTiles { kKeysAcross, kKeysAlong, kValuesAcross };
enum QueryTiles { kQueriesAcross, kQueriesAlong, kSlopesAcross, kSlopesAlong };

}  // namespace

void attend_backward(const AttentionKernels& attention, const AttentionGradient& of) {
  const Sequence& s = of.sequence;
  const AttentionGradientKernels& kernels = attention.gradient;
  const int64_t heads = s.heads / s.kv_heads, queries = round_up(s.queries, kQueryRows), keys = s.padded_keys();
  const int64_t element = sizeof(Bfloat16);
  Tiles tiles = {keys * s.size * element, queries * s.size * element, heads, nullptr};
  tiles.first = tiles_scratch.get<uint8_t>(tiles.bytes());
  float* terms = terms_scratch.get<float>(2 * heads * s.queries);
  const RowTerms all = {terms, terms + heads * s.queries};
  const int64_t key_steps = keys / kKeyStep, query_steps = queries / kQueryRows;
  const int64_t work = heads * s.queries * keys * s.size;
  // One kv head after the other, so that the tiles of all that share it stay in the cache.
  for (int64_t kv_head = 0; kv_head < s.kv_heads; ++kv_head) {
    for_each_item(key_steps + heads * query_steps, (keys + heads * queries) * s.size * kPackWork, [&](int64_t item) {
      if (item < key_steps) {
        const int64_t place = kv_head * s.size, stride = s.kv_heads * s.size, first = item * kKeyStep;
        attention.pack({s.k + place, stride, s.keys, s.size, first, tiles.keys(kKeysAcross), tiles.keys(kKeysAlong)});
        attention.pack({s.v + place, stride, s.keys, s.size, first, tiles.keys(kValuesAcross), nullptr});
        return;
      }
      const int64_t head = (item - key_steps) / query_steps, first = (item - key_steps) % query_steps * kQueryRows;
      const int64_t place = (kv_head * heads + head) * s.size, stride = s.heads * s.size;
      attention.pack({s.q + place, stride, s.queries, s.size, first, tiles.queries(kQueriesAcross, head),
                      tiles.queries(kQueriesAlong, head)});
      attention.pack({of.g + place, stride, s.queries, s.size, first, tiles.queries(kSlopesAcross, head),
                      tiles.queries(kSlopesAlong, head)});
    });
    for_each_item(heads * query_steps, 3 * work, [&](int64_t item) {
      const int64_t head = item / query_steps;
      kernels.queries({of, kv_head * heads + head, item % query_steps * kQueryRows, tiles.keys(kKeysAcross),
                       tiles.keys(kKeysAlong), tiles.keys(kValuesAcross), room_for(keys),
                       {all.offsets + head * s.queries, all.means + head * s.queries}});
    });
    for_each_item(key_steps, 4 * work, [&](int64_t item) {
      kernels.keys({of, kv_head, item * kKeyStep, tiles.queries(kQueriesAcross, 0), tiles.queries(kQueriesAlong, 0),
                    tiles.queries(kSlopesAcross, 0), tiles.queries(kSlopesAlong, 0), tiles.queries_bytes, all,
                    room_for(queries)});
    });
  }
}

}  // namespace sterna

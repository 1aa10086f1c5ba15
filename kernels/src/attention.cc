#include "attention.h"

#include "scratch.h"
#include "threads.h"

namespace sterna {
namespace {

constexpr int64_t kPackWork = 32;  // an element costs about as much as this many multiplications

thread_local Scratch tiles_scratch;                    // of the calling thread
thread_local Scratch scores_scratch, weights_scratch;  // of each thread that works

const AttentionKernels* kernels_of([[maybe_unused]] const Variant& v) {
#ifdef STERNA_X86
  if (&v == &kAmxEmulated) return &kAttentionAmxEmulated;
#endif
#ifdef STERNA_AMX
  if (&v == &kAmx) return &kAttentionAmx;
#endif
  return nullptr;
}

}  // namespace

const AttentionKernels* attention_of(const Variant& v, int64_t size) {
  const AttentionKernels* kernels = kernels_of(v);
  const bool fits = kernels != nullptr && kernels->runs_here() && size % 32 == 0 && size <= kMostHeadSize;
  return fits ? kernels : nullptr;
}

void attend_many(const AttentionKernels& kernels, const Sequence& s) {
  const int64_t keys = s.padded_keys(), head_bytes = keys * s.size * static_cast<int64_t>(sizeof(Bfloat16));
  uint8_t* tiles = tiles_scratch.get<uint8_t>(2 * s.kv_heads * head_bytes);
  const auto key_tiles = [&](int64_t kv_head) { return tiles + 2 * kv_head * head_bytes; };
  const int64_t steps = keys / kKeyStep;
  for_each_item(s.kv_heads * steps, s.kv_heads * keys * s.size * kPackWork, [&](int64_t item) {
    const int64_t kv_head = item / steps, place = kv_head * s.size, stride = s.kv_heads * s.size;
    const int64_t first = item % steps * kKeyStep;
    uint8_t* to = key_tiles(kv_head);
    kernels.pack({s.k + place, stride, s.keys, s.size, first, to, nullptr});
    kernels.pack({s.v + place, stride, s.keys, s.size, first, nullptr, to + head_bytes});
  });
  const int64_t blocks = ceil_div(s.queries, kQueryRows), shared_by = s.heads / s.kv_heads;
  const int64_t room = kQueryRows * (keys + kSpread);
  for_each_item(s.heads * blocks, s.heads * s.queries * keys * s.size, [&](int64_t item) {
    const int64_t head = item / blocks;
    const uint8_t* from = key_tiles(head / shared_by);
    kernels.attend({s, head, item % blocks * kQueryRows, from, from + head_bytes, scores_scratch.get<float>(room),
                    weights_scratch.get<Bfloat16>(room)});
  });
}

}  // namespace sterna

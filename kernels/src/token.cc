#include "token.h"

#include <algorithm>

#include "scratch.h"

namespace sterna {
namespace {

thread_local Scratch q_scratch, k_scratch, v_scratch, attention_scratch;  // of the calling thread

// The newest row of each head.
void put(const float* heads, const Layer& layer, const TokenCache& cache, float* room) {
  for (int64_t head = 0; head < layer.kv_heads; ++head)
    std::copy_n(heads + head * layer.head_size, layer.head_size,
                room + (head * cache.capacity + cache.length) * layer.head_size);
}

}  // namespace

void pass_token(const Variant& v, const Layer& layer, const LowRank* adapter, const float* cos, const float* sin,
                const TokenCache& cache, float* h) {
  float* query = q_scratch.get<float>(layer.columns(Layer::kQ));
  float* key = k_scratch.get<float>(layer.columns(Layer::kK));
  float* value = v_scratch.get<float>(layer.columns(Layer::kV));
  float* attention = attention_scratch.get<float>(layer.columns(Layer::kQ));
  project(v, layer, adapter, h, 1, {cos, sin, 1}, {query, key, value, false});
  put(key, layer, cache, cache.keys);
  put(value, layer, cache, cache.values);
  attend(query, cache.keys, cache.values, layer.heads, layer.kv_heads, layer.head_size, cache.capacity,
         cache.length + 1, attention);
  complete(v, layer, adapter, {attention, false}, 1, false, h);
}

}  // namespace sterna

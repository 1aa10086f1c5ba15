#include "token.h"

#include "scratch.h"

namespace sterna {
namespace {

thread_local Scratch q_scratch, k_scratch, v_scratch, attention_scratch;  // of the calling thread

}  // namespace

void pass_token(const Variant& v, const Layer& layer, const LowRank* adapter, const float* cos, const float* sin,
                const TokenCache& cache, float* h) {
  float* query = q_scratch.get<float>(layer.columns(Layer::kQ));
  float* key = k_scratch.get<float>(layer.columns(Layer::kK));
  float* value = v_scratch.get<float>(layer.columns(Layer::kV));
  float* attention = attention_scratch.get<float>(layer.columns(Layer::kQ));
  project(v, layer, adapter, h, 1, {cos, sin, 1}, {query, key, value, false});
  put_heads({key, false}, 1, layer.kv_heads, layer.head_size, cache.capacity, cache.length, cache.keys);
  put_heads({value, false}, 1, layer.kv_heads, layer.head_size, cache.capacity, cache.length, cache.values);
  attend(query, cache.keys, cache.values, layer.heads, layer.kv_heads, layer.head_size, cache.capacity,
         cache.length + 1, attention);
  complete(v, layer, adapter, {attention, false}, 1, false, h);
}

}  // namespace sterna

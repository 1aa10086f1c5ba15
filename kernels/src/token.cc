#include "token.h"

#include <algorithm>

#include "clones.h"
#include "scratch.h"

namespace sterna {
namespace {

// Of the calling thread: what goes into a linear, what comes out, and the smaller things.
thread_local Scratch input_scratch, output_scratch, second_scratch, plane_scratch, inner_scratch;

STERNA_CLONES void add(const float* x, int64_t length, float* y) {
  for (int64_t i = 0; i < length; ++i) y[i] += x[i];
}

class Pass {
 public:
  Pass(const Variant& v, const TokenLayer& layer, const LowRank* adapter) : v_(v), layer_(layer), adapter_(adapter) {}

  int64_t columns(TokenLayer::Linear which) const { return layer_.linears[which].front().n; }

  void linear(TokenLayer::Linear which, const float* x, float* y) const {
    const std::vector<Weights>& planes = layer_.linears[which];
    const LowRank& low = adapter_[which];
    float* inner = inner_scratch.get<float>(std::max<int64_t>(1, low.rank));
    for (int64_t r = 0; r < low.rank; ++r) inner[r] = dot(x, low.a + r * planes.front().k, planes.front().k);
    forward(v_, planes.front(), x, 1, {inner, low.right, low.rank}, {y});
    for (size_t p = 1; p < planes.size(); ++p) {
      float* part = plane_scratch.get<float>(planes[p].n);
      forward(v_, planes[p], x, 1, {}, {part});
      add(part, planes[p].n, y);
    }
  }

  void norm(TokenLayer::Norm which, const float* x, int64_t length, float* y) const {
    float inverse;
    rms_norm({x, false}, layer_.norms[which], layer_.eps, 1, length, y, &inverse);
  }

  // Rotated, to its place in the cache or anywhere else.
  void turn(const float* x, const float* cos, const float* sin, int64_t heads, float* y) const {
    rotate({x, false}, cos, sin, 1.0f, 1, 1, heads, layer_.head_size, false, y);
  }

 private:
  const Variant& v_;
  const TokenLayer& layer_;
  const LowRank* adapter_;
};

// The newest row of each head.
void put(const float* heads, const TokenLayer& layer, const TokenCache& cache, float* room) {
  for (int64_t head = 0; head < layer.kv_heads; ++head)
    std::copy_n(heads + head * layer.head_size, layer.head_size,
                room + (head * cache.capacity + cache.length) * layer.head_size);
}

}  // namespace

void pass_token(const Variant& v, const TokenLayer& layer, const LowRank* adapter, const float* cos,
                const float* sin, const TokenCache& cache, float* h) {
  using L = TokenLayer;
  const Pass pass(v, layer, adapter);
  const int64_t hidden = pass.columns(L::kDown), attention = pass.columns(L::kQ), wide = pass.columns(L::kGate);
  const int64_t longest = std::max({hidden, attention, wide, pass.columns(L::kK)});
  float* x = input_scratch.get<float>(longest);
  float* y = output_scratch.get<float>(longest);
  float* z = second_scratch.get<float>(longest);

  pass.norm(L::kAttention, h, hidden, x);
  pass.linear(L::kK, x, y);
  pass.turn(y, cos, sin, layer.kv_heads, z);
  put(z, layer, cache, cache.keys);
  pass.linear(L::kV, x, y);
  put(y, layer, cache, cache.values);
  pass.linear(L::kQ, x, y);
  pass.turn(y, cos, sin, layer.heads, z);
  attend(z, cache.keys, cache.values, layer.heads, layer.kv_heads, layer.head_size, cache.capacity,
         cache.length + 1, y);
  if (layer.norms[L::kAttentionSub] != nullptr) pass.norm(L::kAttentionSub, y, attention, y);
  pass.linear(L::kO, y, x);
  add(x, hidden, h);

  pass.norm(L::kFeedForward, h, hidden, x);
  pass.linear(L::kGate, x, y);
  pass.linear(L::kUp, x, z);
  float inverse;
  gated(layer.act, {y, false}, {z, false}, layer.norms[L::kFeedForwardSub], layer.eps, 1, wide, y, &inverse);
  pass.linear(L::kDown, y, x);
  add(x, hidden, h);
}

}  // namespace sterna

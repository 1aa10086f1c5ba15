// One token through one layer of a decoder in one call. The products of a single row are so short that as many
// calls from Python take half as long again.
#pragma once

#include <cstdint>
#include <vector>

#include "product.h"
#include "rows.h"

namespace sterna {

// A linear of an adapter: scale * (x A^T) B^T, as a [rank][in] and right = scale * B^T [rank][out]; rank 0 for none.
struct LowRank {
  const float* a = nullptr;
  const float* right = nullptr;
  int64_t rank = 0;
};

// What the layer has of its base. Planes of a linear are added up.
struct TokenLayer {
  enum Linear { kQ, kK, kV, kO, kGate, kUp, kDown, kLinears };
  enum Norm { kAttention, kAttentionSub, kFeedForward, kFeedForwardSub, kNorms };

  int64_t heads, kv_heads, head_size;
  Activation act;
  float eps;
  std::vector<Weights> linears[kLinears];
  const float* norms[kNorms];  // null for a sub-norm that there is not
};

// The keys or values of a layer, [kv_heads][capacity][head_size]; `length` tokens are there.
struct TokenCache {
  float* keys;
  float* values;
  int64_t capacity, length;
};

// Takes the hidden state h [hidden] of the token through the layer, in place, and adds its key and value to the
// cache. cos and sin [head_size / 2] are those of its position; adapter [TokenLayer::kLinears].
void pass_token(const Variant&, const TokenLayer&, const LowRank* adapter, const float* cos, const float* sin,
                const TokenCache&, float* h);

}  // namespace sterna

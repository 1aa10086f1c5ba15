// One token through one layer of a decoder in one call. The products of a single row are so short that as many
// calls from Python take half as long again.
#pragma once

#include "layer.h"

namespace sterna {

// The keys or values of a layer, [kv_heads][capacity][head_size]; `length` tokens are there.
struct TokenCache {
  float* keys;
  float* values;
  int64_t capacity, length;
};

// Takes the hidden state h [hidden] of the token through the layer, in place, and adds its key and value to the
// cache. cos and sin [head_size / 2] are those of its position; adapter [Layer::kLinears].
void pass_token(const Variant&, const Layer&, const LowRank* adapter, const float* cos, const float* sin,
                const TokenCache&, float* h);

}  // namespace sterna

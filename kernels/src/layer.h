// A layer of a decoder around its attention, without gradients: what goes in is normed and quantised row by row on its
// way into the products, and what comes out of a product is rotated, gated or added to the hidden state where it ends.
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
struct Layer {
  enum Linear { kQ, kK, kV, kO, kGate, kUp, kDown, kLinears };
  enum Norm { kAttention, kAttentionSub, kFeedForward, kFeedForwardSub, kNorms };

  int64_t heads, kv_heads, head_size;
  Activation act;
  float eps;
  std::vector<Weights> linears[kLinears];
  const float* norms[kNorms];  // null for a sub-norm that there is not

  int64_t columns(Linear which) const { return linears[which].front().n; }
};

// What attention works on, [rows][heads or kv_heads][head_size], all in float32 or all in bfloat16.
struct Projections {
  void* q;
  void* k;
  void* v;
  bool are_bfloat16;
};

// Rows of the hidden state, h [rows][hidden], become queries, keys and values; queries and keys are rotated. `adapter`
// has kLinears parts, here and below.
void project(const Variant&, const Layer&, const LowRank* adapter, const float* h, int64_t rows, const Angles&,
             const Projections&);

// Adds to h what the layer makes of its attention, [rows][heads * head_size], and of its feed-forward part.
// `in_bfloat16`: gated activations are rounded on their way from one product to the next.
void complete(const Variant&, const Layer&, const LowRank* adapter, Rows attention, int64_t rows, bool in_bfloat16,
              float* h);

}  // namespace sterna

// The gradients of attention (attention.h), in bfloat16 tiles too. Nothing but q, k and v is kept for them: weights are
// computed again.
//
//   P = softmax(q k^T / sqrt(size) + causal)    dv = P^T g
//   S = P * (g v^T - sum of P * g v^T) / sqrt(size), the sum over a row
//   dq = S k, dk = S^T q                        P and S are rounded to bfloat16 on their way
//
// Twice a block of 32 rows meets everything: 32 queries all keys, which also finds what turns a score into its weight,
// and then 32 keys all queries of all heads that share them. So nobody waits for anybody's sums. This is the backward
// pass of FlashAttention-2 (arXiv:2307.08691), with whole rows of scores in place of running maxima.
#pragma once

#include "attention.h"

namespace sterna {

// Dense, dq [queries][heads][size], dk and dv [keys][kv_heads][size]; the sequence's y is not looked at.
struct AttentionGradient {
  const Sequence& sequence;
  const Bfloat16* g;  // of y
  Bfloat16* dq;
  Bfloat16* dk;
  Bfloat16* dv;
};

// Two products of a block of rows with everything, [32][columns + kSpread] each, and what becomes of them.
struct Products {
  float* scores;
  float* slopes;
  Bfloat16* weights;
  Bfloat16* gradients;
};

// A score becomes 2^(score * log2(e) / sqrt(size) + offset); `mean` is what its slope is compared with. [queries]
struct RowTerms {
  float* offsets;
  float* means;
};

// As PackTask packs them.
struct QueryGradientTask {
  const AttentionGradient& of;
  int64_t head, first;  // query
  const uint8_t *keys_across, *keys_along, *values_across;
  Products room;
  RowTerms terms;  // of this head
};

struct KeyGradientTask {
  const AttentionGradient& of;
  int64_t kv_head, first;  // key
  // Of the first of the heads that share it; those of the next follow `head_bytes` later.
  const uint8_t *queries_across, *queries_along, *g_across, *g_along;
  int64_t head_bytes;
  RowTerms terms;  // the next head's follow `queries` later
  Products room;
};

struct AttentionGradientKernels {
  void (*queries)(const QueryGradientTask&);
  void (*keys)(const KeyGradientTask&);
};

#ifdef STERNA_X86
extern const AttentionGradientKernels kAttentionGradientAmx;
extern const AttentionGradientKernels kAttentionGradientAmxEmulated;
#endif

void attend_backward(const AttentionKernels&, const AttentionGradient&);

}  // namespace sterna

// Attention in AMX tiles of bfloat16: tdpbf16ps multiplies 16 rows x 32 numbers with 32 x 16.
//
// attention_amx_emulated.cc compiles this same file with the tiles in memory, for tests on processors without AMX.
#include "attention.h"
#include "attention_gradient.h"
#include "attention_tiles.h"
#include "cpu.h"

namespace sterna {
namespace {

void pack(const PackTask& t) {
  const Bfloat16* from = t.rows + t.first * t.stride;
  const int64_t left = t.count - t.first;
  if (t.across != nullptr) {
    uint8_t* to = t.across + t.first * t.size * kElement;
    for (int64_t half = 0; half < kKeyStep; half += 16)
      for (int64_t e = 0; e < t.size; e += kDepth, to += kTileBytes)
        pack_across(from + half * t.stride + e, t.stride, left - half, to);
  }
  if (t.along != nullptr)
    for (int64_t e = 0; e < t.size; e += 16)
      pack_along(from + e, t.stride, left,
                 along_tiles(t.along, round_up(t.count, kKeyStep), e) + t.first * kAlongBytes);
}

// The first `count` scores of a row become weights, and zeros up to `end`; returns 1 / their sum. `scale` turns a score
// into a power of two.
float soften(float* scores, int64_t count, int64_t end, float scale, Bfloat16* weights) {
  const __m512 offset = _mm512_set1_ps(-scale * keep_seen(scores, count));
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 sum = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k < count; k += 16) {
    const __m512 weight = power_of_two(_mm512_fmadd_ps(_mm512_load_ps(scores + k), factor, offset));
    sum = _mm512_add_ps(sum, weight);
    store16(weight, weights + k);
  }
  for (; k < end; k += 16) _mm256_store_si256(reinterpret_cast<__m256i*>(weights + k), _mm256_setzero_si256());
  return 1.0f / _mm512_reduce_add_ps(sum);
}

void attend(const AttendTask& t) {
  const Sequence& s = t.sequence;
  const int64_t rows = s.queries - t.first < kQueryRows ? s.queries - t.first : kQueryRows;
  const int64_t seen = s.keys - s.queries + t.first;  // by the first of these queries, beside the key of its own
  const int64_t keys = round_up(seen + rows, kKeyStep), line = keys + kSpread;
  const int64_t row = s.heads * s.size, place = t.first * row + t.head * s.size;

  alignas(64) Bfloat16 queries[kQueryRows * kMostHeadSize];
  take_rows(s.q + place, row, rows, s.size, queries);
  configure_tiles();
  for (int64_t k = 0; k < keys; k += kKeyStep)
    multiply_across(queries, t.key_tiles + k * s.size * kElement, s.size, t.scores + k, line);
  const float scale = kLog2E * score_scale(s.size);
  float factors[kQueryRows];
  for (int64_t r = 0; r < rows; ++r)
    factors[r] = soften(t.scores + r * line, seen + r + 1, keys, scale, t.weights + r * line);
  for (int64_t r = rows; r < kQueryRows; ++r)
    memset(static_cast<void*>(t.weights + r * line), 0, static_cast<size_t>(keys * kElement));
  alignas(64) float sums[kQueryRows][2 * 16];
  for (int64_t e = 0; e < s.size; e += 2 * 16) {
    multiply_along(t.weights, line, along_tiles(t.value_tiles, s.padded_keys(), e), keys, sums);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < 2 * 16; c += 16) {
        const __m512 y = _mm512_mul_ps(_mm512_load_ps(sums[r] + c), _mm512_set1_ps(factors[r]));
        store16(y, s.y + place + r * row + e + c);
      }
  }
  _tile_release();
}

#ifdef STERNA_AMX_EMULATED
#define STERNA_ATTENTION_KERNELS kAttentionAmxEmulated
#define STERNA_ATTENTION_GRADIENT_KERNELS kAttentionGradientAmxEmulated
bool runs_here() { return has_avx512vnni(); }
#else
#define STERNA_ATTENTION_KERNELS kAttentionAmx
#define STERNA_ATTENTION_GRADIENT_KERNELS kAttentionGradientAmx
bool runs_here() { return has_amx_bf16() && has_avx512bf16(); }
#endif

}  // namespace

const AttentionKernels STERNA_ATTENTION_KERNELS = {runs_here, pack, attend, STERNA_ATTENTION_GRADIENT_KERNELS};

}  // namespace sterna

// The gradients of attention in AMX tiles of bfloat16.
//
// attention_gradient_amx_emulated.cc compiles this same file with the tiles in memory, for tests on processors without
// AMX.
#include "attention_gradient.h"
#include "attention_tiles.h"

namespace sterna {
namespace {

constexpr int64_t kBlock = 2 * kTileRows;
static_assert(kBlock == kQueryRows && kBlock == kKeyStep);

int64_t rows_from(int64_t first, int64_t all) { return all - first < kBlock ? all - first : kBlock; }

// The first `count` scores of a query and the slopes beside them become gradients of the scores, and zeros up to `end`.
void differentiate_row(const float* slopes, int64_t count, int64_t end, float root, float* scores, float& offset,
                       float& mean, Bfloat16* gradients) {
  const float top = kLog2E * root * keep_seen(scores, count);
  const __m512 scale = _mm512_set1_ps(kLog2E * root), down = _mm512_set1_ps(-top);
  __m512 sum = _mm512_setzero_ps(), along = sum;
  for (int64_t k = 0; k < count; k += 16) {
    const __m512 weight = power_of_two(_mm512_fmadd_ps(_mm512_load_ps(scores + k), scale, down));
    _mm512_store_ps(scores + k, weight);
    sum = _mm512_add_ps(sum, weight);
    along = _mm512_fmadd_ps(weight, _mm512_load_ps(slopes + k), along);
  }
  const float total = _mm512_reduce_add_ps(sum);
  offset = -top - __builtin_log2f(total);
  mean = _mm512_reduce_add_ps(along) / total;
  const __m512 factor = _mm512_set1_ps(root / total), middle = _mm512_set1_ps(mean);
  int64_t k = 0;
  for (; k < count; k += 16) {
    const __m512 weight = _mm512_mul_ps(_mm512_load_ps(scores + k), factor);
    store16(_mm512_mul_ps(weight, _mm512_sub_ps(_mm512_load_ps(slopes + k), middle)), gradients + k);
  }
  for (; k < end; k += 16) store16(_mm512_setzero_ps(), gradients + k);
}

void queries(const QueryGradientTask& t) {
  const Sequence& s = t.of.sequence;
  const int64_t rows = rows_from(t.first, s.queries), seen = s.keys - s.queries + t.first;
  const int64_t keys = round_up(seen + rows, kBlock), line = keys + kSpread;
  const int64_t row = s.heads * s.size, place = t.first * row + t.head * s.size;
  const float root = score_scale(s.size);

  alignas(64) Bfloat16 q[kBlock * kMostHeadSize], g[kBlock * kMostHeadSize];
  take_rows(s.q + place, row, rows, s.size, q);
  take_rows(t.of.g + place, row, rows, s.size, g);
  configure_tiles();
  for (int64_t k = 0; k < keys; k += kBlock) {
    multiply_across(q, t.keys_across + k * s.size * kElement, s.size, t.room.scores + k, line);
    multiply_across(g, t.values_across + k * s.size * kElement, s.size, t.room.slopes + k, line);
  }
  for (int64_t r = 0; r < rows; ++r)
    differentiate_row(t.room.slopes + r * line, seen + r + 1, keys, root, t.room.scores + r * line,
                      t.terms.offsets[t.first + r], t.terms.means[t.first + r], t.room.gradients + r * line);
  for (int64_t r = rows; r < kBlock; ++r)
    memset(static_cast<void*>(t.room.gradients + r * line), 0, static_cast<size_t>(keys * kElement));
  alignas(64) float sums[kBlock][kBlock];
  for (int64_t e = 0; e < s.size; e += kBlock) {
    multiply_along(t.room.gradients, line, along_tiles(t.keys_along, s.padded_keys(), e), keys, sums);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < kBlock; c += 16)
        store16(_mm512_load_ps(sums[r] + c), t.of.dq + place + r * row + e + c);
  }
  _tile_release();
}

// What a key's row of scores with the queries from `begin` on, and of slopes, become; it is seen by those from `from` on.
void weigh_row(const KeyGradientTask& t, const RowTerms& terms, int64_t begin, int64_t from, int64_t end, int64_t at) {
  const int64_t queries = t.of.sequence.queries;
  const float root = score_scale(t.of.sequence.size);
  const __m512 scale = _mm512_set1_ps(kLog2E * root), factor = _mm512_set1_ps(root);
  for (int64_t q = begin; q < end; q += 16, at += 16) {
    const int64_t first = from > q ? from - q : 0, last = queries - q;
    const uint32_t below = last >= 16 ? 0xffff : last <= 0 ? 0 : (1u << last) - 1;
    const auto seen = static_cast<__mmask16>(first >= 16 ? 0 : below & ~((1u << first) - 1));
    const __m512 offset = _mm512_maskz_loadu_ps(seen, terms.offsets + q);
    const __m512 mean = _mm512_maskz_loadu_ps(seen, terms.means + q);
    const __m512 power = _mm512_fmadd_ps(_mm512_load_ps(t.room.scores + at), scale, offset);
    const __m512 weight = _mm512_maskz_mov_ps(seen, power_of_two(power));
    const __m512 slope = _mm512_sub_ps(_mm512_load_ps(t.room.slopes + at), mean);
    store16(weight, t.room.weights + at);
    store16(_mm512_maskz_mul_ps(seen, _mm512_mul_ps(weight, factor), slope), t.room.gradients + at);
  }
}

using Sums = float[kBlock][kMostHeadSize];

void add_along(const Bfloat16* left, int64_t line, const uint8_t* along, int64_t padded, int64_t begin, int64_t count,
               int64_t size, Sums& sums) {
  alignas(64) float part[kBlock][kBlock];
  for (int64_t e = 0; e < size; e += kBlock) {
    multiply_along(left, line, along_tiles(along, padded, e) + begin * kAlongBytes, count, part);
    for (int64_t r = 0; r < kBlock; ++r)
      for (int64_t c = 0; c < kBlock; c += 16)
        _mm512_store_ps(sums[r] + e + c, _mm512_add_ps(_mm512_load_ps(sums[r] + e + c), _mm512_load_ps(part[r] + c)));
  }
}

void store_rows(const Sums& sums, int64_t rows, int64_t size, int64_t stride, Bfloat16* to) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t e = 0; e < size; e += 16) store16(_mm512_load_ps(sums[r] + e), to + r * stride + e);
}

void keys(const KeyGradientTask& t) {
  const Sequence& s = t.of.sequence;
  const int64_t rows = rows_from(t.first, s.keys), padded = round_up(s.queries, kBlock);
  // The first query that sees the first of these keys, and the block that it is in.
  const int64_t behind = s.keys - s.queries, sees = t.first > behind ? t.first - behind : 0;
  const int64_t begin = sees / kBlock * kBlock, columns = padded - begin, line = columns + kSpread;
  const int64_t row = s.kv_heads * s.size, place = t.first * row + t.kv_head * s.size;

  alignas(64) Bfloat16 k[kBlock * kMostHeadSize], v[kBlock * kMostHeadSize];
  take_rows(s.k + place, row, rows, s.size, k);
  take_rows(s.v + place, row, rows, s.size, v);
  alignas(64) Sums dk = {}, dv = {};
  configure_tiles();
  for (int64_t head = 0; head < s.heads / s.kv_heads; ++head) {
    const int64_t skipped = head * t.head_bytes;
    const RowTerms terms = {t.terms.offsets + head * s.queries, t.terms.means + head * s.queries};
    for (int64_t q = 0; q < columns; q += kBlock) {
      const int64_t from = skipped + (begin + q) * s.size * kElement;
      multiply_across(k, t.queries_across + from, s.size, t.room.scores + q, line);
      multiply_across(v, t.g_across + from, s.size, t.room.slopes + q, line);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t from = t.first + r > behind ? t.first + r - behind : 0;
      weigh_row(t, terms, begin, from, padded, r * line);
    }
    for (int64_t r = rows; r < kBlock; ++r) {
      memset(static_cast<void*>(t.room.weights + r * line), 0, static_cast<size_t>(columns * kElement));
      memset(static_cast<void*>(t.room.gradients + r * line), 0, static_cast<size_t>(columns * kElement));
    }
    add_along(t.room.weights, line, t.g_along + skipped, padded, begin, columns, s.size, dv);
    add_along(t.room.gradients, line, t.queries_along + skipped, padded, begin, columns, s.size, dk);
  }
  store_rows(dk, rows, s.size, row, t.of.dk + place);
  store_rows(dv, rows, s.size, row, t.of.dv + place);
  _tile_release();
}

#ifdef STERNA_AMX_EMULATED
#define STERNA_ATTENTION_GRADIENT_KERNELS kAttentionGradientAmxEmulated
#else
#define STERNA_ATTENTION_GRADIENT_KERNELS kAttentionGradientAmx
#endif

}  // namespace

const AttentionGradientKernels STERNA_ATTENTION_GRADIENT_KERNELS = {queries, keys};

}  // namespace sterna

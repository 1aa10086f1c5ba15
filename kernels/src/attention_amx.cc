// Attention in AMX tiles of bfloat16: tdpbf16ps multiplies 16 rows x 32 numbers with 32 x 16.
//
// attention_amx_emulated.cc compiles this same file with the tiles in memory, for tests on processors without AMX.
#include <immintrin.h>

#include <cstring>

#ifdef STERNA_AMX_EMULATED
#include "amx_emulated.h"
#endif

#include "amx_tiles.h"
#include "attention.h"
#include "cpu.h"

namespace sterna {
namespace {

constexpr int64_t kDepth = 32;  // numbers of a tile's row
constexpr int64_t kElement = sizeof(Bfloat16);

// A step of transposing 16 rows of 16 lanes: blocks of kLanes x kLanes beside the diagonal change places.
template <int kLanes>
[[gnu::always_inline]] inline void swap_halves(__m512i rows[16]) {
  // Lanes of two rows `kLanes` apart that change places.
  alignas(64) static constexpr auto indices = [] {
    struct {
      int32_t low[16], high[16];
    } found{};
    for (int i = 0; i < 16; ++i) {
      const bool moves = i & kLanes;
      found.low[i] = moves ? 16 + i - kLanes : i;
      found.high[i] = moves ? 16 + i : i + kLanes;
    }
    return found;
  }();
  const __m512i low = _mm512_load_si512(indices.low), high = _mm512_load_si512(indices.high);
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) {
    if (r & kLanes) continue;
    const __m512i first = rows[r], second = rows[r + kLanes];
    rows[r] = _mm512_permutex2var_epi32(first, low, second);
    rows[r + kLanes] = _mm512_permutex2var_epi32(first, high, second);
  }
}

// A tile of 16 keys x 32 numbers as the right side wants it: row p has the numbers 2p and 2p+1 of each key.
void pack_keys(const Bfloat16* from, int64_t stride, int64_t count, uint8_t* tile) {
  __m512i rows[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) rows[r] = r < count ? _mm512_loadu_si512(from + r * stride) : _mm512_setzero_si512();
  swap_halves<8>(rows);
  swap_halves<4>(rows);
  swap_halves<2>(rows);
  swap_halves<1>(rows);
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) _mm512_store_si512(tile + 64 * r, rows[r]);
}

// A tile of 32 values x 16 numbers: row p has those of the values 2p and 2p+1 in turns.
void pack_values(const Bfloat16* from, int64_t stride, int64_t count, uint8_t* tile) {
  const auto row = [&](int64_t r) {
    const auto* at = reinterpret_cast<const __m256i*>(from + r * stride);
    return r < count ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(at)) : _mm512_setzero_si512();
  };
  for (int64_t p = 0; p < 16; ++p)
    _mm512_store_si512(tile + 64 * p, _mm512_or_si512(row(2 * p), _mm512_slli_epi32(row(2 * p + 1), 16)));
}

// The two tiles of values with the numbers from e on, of keys 0 .. 31, lie beside each other; those of the next keys
// follow.
constexpr int64_t kValueBytes = 2 * kTileBytes / kKeyStep;
template <class Byte>
Byte* value_tiles(const Sequence& s, Byte* tiles, int64_t e) {
  return tiles + e / kDepth * s.padded_keys() * kValueBytes + e % kDepth / 16 * kTileBytes;
}

void pack(const PackTask& t) {
  const Sequence& s = t.sequence;
  const int64_t stride = s.kv_heads * s.size, place = t.first * stride + t.kv_head * s.size;
  uint8_t* keys = t.key_tiles + t.first * s.size * kElement;
  for (int64_t half = 0; half < kKeyStep; half += 16)
    for (int64_t e = 0; e < s.size; e += kDepth, keys += kTileBytes)
      pack_keys(s.k + place + half * stride + e, stride, s.keys - t.first - half, keys);
  for (int64_t e = 0; e < s.size; e += 16)
    pack_values(s.v + place + e, stride, s.keys - t.first, value_tiles(s, t.value_tiles, e) + t.first * kValueBytes);
}

// Two tiles of rows, and two of columns, both of them as far from one step in depth to the next.
struct Operands {
  const void *top, *bottom;
  int64_t row_stride, row_step;  // bytes: from a row to the next, from a tile to the next in depth
  const uint8_t *left, *right;
  int64_t column_step;
};

// Their four products, at to and 16 further down or right.
[[gnu::always_inline]] inline void multiply_tiles(const Operands& o, int64_t steps, float* to, int64_t stride) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const auto *top = static_cast<const uint8_t*>(o.top), *bottom = static_cast<const uint8_t*>(o.bottom);
  for (int64_t s = 0; s < steps; ++s) {
    _tile_loadd(4, top + s * o.row_step, o.row_stride);
    _tile_loadd(6, o.left + s * o.column_step, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, o.right + s * o.column_step, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, bottom + s * o.row_step, o.row_stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, to, row_bytes);
  _tile_stored(1, to + 16, row_bytes);
  _tile_stored(2, to + 16 * stride, row_bytes);
  _tile_stored(3, to + 16 * stride + 16, row_bytes);
}

// 2^x for x <= 0, within 2^-14 of it: less than bfloat16 tells apart.
[[gnu::always_inline]] inline __m512 power_of_two(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(0.0096181f);
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.0555041f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.2402265f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.6931472f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}

// To nearest, halves to even.
[[gnu::always_inline]] inline __m256i rounded(__m512 x) {
#ifdef __AVX512BF16__
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
#endif
}

// The first `count` scores of a row become weights, and zeros up to `end`; returns 1 / their sum. `scale` turns a score
// into a power of two.
float soften(float* scores, int64_t count, int64_t end, float scale, Bfloat16* weights) {
  // What the row does not see counts for nothing; an infinity would become a NaN.
  const __m512 nothing = _mm512_set1_ps(-1e30f);
  const int64_t last = (count - 1) / 16 * 16;
  const auto seen = static_cast<__mmask16>((2u << (count - 1 - last)) - 1);
  _mm512_store_ps(scores + last, _mm512_mask_mov_ps(nothing, seen, _mm512_load_ps(scores + last)));
  __m512 largest = nothing;
  for (int64_t k = 0; k <= last; k += 16) largest = _mm512_max_ps(largest, _mm512_load_ps(scores + k));
  const __m512 offset = _mm512_set1_ps(-scale * _mm512_reduce_max_ps(largest));
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 sum = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k <= last; k += 16) {
    const __m512 weight = power_of_two(_mm512_fmadd_ps(_mm512_load_ps(scores + k), factor, offset));
    sum = _mm512_add_ps(sum, weight);
    _mm256_store_si256(reinterpret_cast<__m256i*>(weights + k), rounded(weight));
  }
  for (; k < end; k += 16) _mm256_store_si256(reinterpret_cast<__m256i*>(weights + k), _mm256_setzero_si256());
  return 1.0f / _mm512_reduce_add_ps(sum);
}

void attend(const AttendTask& t) {
  const Sequence& s = t.sequence;
  const int64_t rows = s.queries - t.first < kQueryRows ? s.queries - t.first : kQueryRows;
  const int64_t seen = s.keys - s.queries + t.first;  // by the first of these queries, beside the key of its own
  const int64_t keys = round_up(seen + rows, kKeyStep), line = keys + kSpread;
  const int64_t depth = s.size / kDepth, row = s.heads * s.size, place = t.first * row + t.head * s.size;

  // Queries in tiles, [size / 32][32 rows]; those that are not there count as the first.
  alignas(64) Bfloat16 queries[kQueryRows * kMostHeadSize];
  for (int64_t r = 0; r < kQueryRows; ++r)
    for (int64_t e = 0; e < s.size; e += kDepth)
      memcpy(queries + e * kQueryRows + r * kDepth, s.q + place + (r < rows ? r * row : 0) + e, kDepth * kElement);
  configure_tiles();
  for (int64_t k = 0; k < keys; k += kKeyStep) {
    const uint8_t* tiles = t.key_tiles + k * s.size * kElement;
    multiply_tiles({queries, queries + 16 * kDepth, kDepth * kElement, kQueryRows * kDepth * kElement,
                    tiles, tiles + depth * kTileBytes, kTileBytes},
                   depth, t.scores + k, line);
  }
  const float scale = 1.44269504f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(static_cast<float>(s.size))));
  float factors[kQueryRows];
  for (int64_t r = 0; r < rows; ++r)
    factors[r] = soften(t.scores + r * line, seen + r + 1, keys, scale, t.weights + r * line);
  for (int64_t r = rows; r < kQueryRows; ++r)
    memset(static_cast<void*>(t.weights + r * line), 0, static_cast<size_t>(keys * kElement));
  alignas(64) float sums[kQueryRows][2 * 16];
  for (int64_t e = 0; e < s.size; e += 2 * 16) {
    const uint8_t* tiles = value_tiles(s, t.value_tiles, e);
    multiply_tiles({t.weights, t.weights + 16 * line, line * kElement, kDepth * kElement,
                    tiles, tiles + kTileBytes, 2 * kTileBytes},
                   keys / kDepth, sums[0], 2 * 16);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < 2 * 16; c += 16) {
        const __m512 y = _mm512_mul_ps(_mm512_load_ps(sums[r] + c), _mm512_set1_ps(factors[r]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(s.y + place + r * row + e + c), rounded(y));
      }
  }
  _tile_release();
}

#ifdef STERNA_AMX_EMULATED
#define STERNA_ATTENTION_KERNELS kAttentionAmxEmulated
bool runs_here() { return has_avx512vnni(); }
#else
#define STERNA_ATTENTION_KERNELS kAttentionAmx
bool runs_here() { return has_amx_bf16() && has_avx512bf16(); }
#endif

}  // namespace

const AttentionKernels STERNA_ATTENTION_KERNELS = {runs_here, pack, attend};

}  // namespace sterna

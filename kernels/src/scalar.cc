// The products in plain C++: what runs on any processor, and the pattern the other files follow.
#include <cmath>

#include "variant.h"

namespace sterna {
namespace {

constexpr int64_t kColumns = 16;
constexpr int64_t kGemvRows = 4;

bool runs_here() { return true; }

void quantise_row(const QuantiseTask& t) {
  int32_t largest = 0;
  for (int64_t i = 0; i < t.length; ++i) {
    int32_t bits;
    memcpy(&bits, t.x + i, sizeof bits);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  const RowScale row = row_scale(largest, t.floor, t.limbs);
  *t.step = row.step;
  const uint32_t key = dither_key(largest, t.row);
  int32_t sums[2] = {0, 0};
  for (int64_t i = 0; i < t.depth; ++i) {
    const bool given = i < t.length && row.finite;
    int32_t code = 0;
    if (given && t.is_stochastic) {
      code = static_cast<int32_t>(floorf(t.x[i] * row.scale + dither(key, i)));
      code = code > 127 ? 127 : code < -127 ? -127 : code;
    } else if (given) {
      code = static_cast<int32_t>(lrintf(t.x[i] * row.scale));
    }
    const int64_t at = i / 64 * t.chunk_stride + i % 64;
    // The high limb rounds to nearest, so that the low one is within -128 .. 127.
    const int32_t high = t.limbs == 1 ? code : (code + 128) >> 8;
    t.high[at] = static_cast<int8_t>(high);
    sums[0] += high;
    if (t.limbs == 2) {
      t.low[at] = static_cast<int8_t>(code - 256 * high);
      sums[1] += code - 256 * high;
    }
  }
  for (int limb = 0; limb < t.limbs; ++limb) t.sums[limb] = sums[limb];
}

void unpack_forward(const Weights& w, int64_t c0, uint8_t* codes) {
  for (int64_t kb = 0; kb < w.k_blocks(); ++kb) {
    const uint8_t* block = w.block(c0 / kBlockRows, kb);
    for (int q = 0; q < 4; ++q)
      for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 64; ++i) *codes++ = block[64 * q + i] >> (2 * j) & 3;
  }
}

void unpack_backward(const Weights& w, int64_t c0, uint8_t* codes) {
  const int64_t kb = c0 / kBlockColumns, q = c0 % kBlockColumns / kColumns;
  for (int64_t nb = 0; nb < w.n_blocks(); ++nb) {
    const uint8_t* quarter = w.block(nb, kb) + 64 * q;
    for (int n4 = 0; n4 < 4; ++n4)
      for (int k = 0; k < 16; ++k)
        for (int nn = 0; nn < 4; ++nn) *codes++ = quarter[4 * (4 * n4 + nn) + k % 4] >> (2 * (k / 4)) & 3;
  }
  memset(codes, 0, static_cast<size_t>((round_up(w.n, 64) - w.n_blocks() * kBlockRows) * kColumns));
}

void multiply(const PanelTask& t) {
  (t.is_forward ? unpack_forward : unpack_backward)(t.weights, t.column, t.codes);
  for (int64_t m = 0; m < t.rows; ++m) {
    int32_t total[2][kColumns] = {};
    for (int limb = 0; limb < t.limbs; ++limb) {
      const int8_t* a = t.activations + (m * t.limbs + limb) * t.depth;
      for (int64_t d = 0; d < t.depth; d += 4)
        for (int c = 0; c < kColumns; ++c)
          for (int i = 0; i < 4; ++i) total[limb][c] += t.codes[d * kColumns + c * 4 + i] * a[d + i];
      for (int c = 0; c < kColumns; ++c) total[limb][c] -= t.sums[m * t.limbs + limb];
    }
    for (int c = 0; c < kColumns; ++c) {
      const float first = static_cast<float>(total[0][c]);
      const float sum = t.limbs == 1 ? first : first * 256.0f + static_cast<float>(total[1][c]);
      t.out[m * t.out_stride + c] = sum * t.factors[m];
    }
  }
}

void gemv(const GemvTask& t) {
  for (int64_t nb = 0; nb < t.n_blocks; ++nb) {
    int32_t total[16] = {};
    for (int64_t kb = 0; kb < t.k_blocks; ++kb) {
      const uint8_t* block = t.packed + (nb * t.row_blocks + kb) * kBlockBytes;
      const int8_t* a = t.activations + kb * kBlockColumns;
      for (int q = 0; q < 4; ++q)
        for (int n = 0; n < 16; ++n)
          for (int j = 0; j < 4; ++j)
            for (int kk = 0; kk < 4; ++kk)
              total[n] += (block[64 * q + 4 * n + kk] >> (2 * j) & 3) * a[16 * q + 4 * j + kk];
    }
    for (int n = 0; n < 16; ++n) t.out[nb * 16 + n] = static_cast<float>(total[n] - t.sum) * t.factor;
  }
}

}  // namespace

const Variant kScalar = {"scalar", runs_here, 1, kColumns, kGemvRows, quantise_row, multiply, gemv};

}  // namespace sterna

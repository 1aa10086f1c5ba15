// The products with an int8 matrix in plain C++: what they mean, on any processor.
#include "int8.h"

namespace sterna {
namespace {

constexpr int64_t kColumns = 16;
constexpr int64_t kGemvRows = 4;

void panel_forward(const Int8PanelTask& t) {
  int16_t* codes = static_cast<int16_t*>(t.codes);
  for (int64_t row = 0; row < t.rows; ++row)
    for (int64_t d = 0; d < round_up(t.columns, 64); ++d)
      codes[d / 2 * 2 * kColumns + row * 2 + d % 2] = d < t.columns ? t.from[row * t.stride + d] : 0;
}

void panel_backward(const Int8PanelTask& t) {
  int16_t* codes = static_cast<int16_t*>(t.codes);
  for (int64_t d = 0; d < round_up(t.rows, 64); ++d)
    for (int64_t c = 0; c < t.columns; ++c)
      codes[d / 2 * 2 * kColumns + c * 2 + d % 2] = d < t.rows ? t.from[d * t.stride + c] : 0;
}

void multiply(const Int8MultiplyTask& t) {
  const int16_t* codes = static_cast<const int16_t*>(t.codes);
  for (int64_t m = 0; m < t.rows; ++m) {
    const int16_t* x = static_cast<const int16_t*>(t.activations) + m * t.depth;
    int64_t total[kColumns] = {};
    for (int64_t d = 0; d < t.depth; d += 2)
      for (int c = 0; c < kColumns; ++c)
        for (int i = 0; i < 2; ++i) total[c] += codes[d * kColumns + c * 2 + i] * x[d + i];
    for (int c = 0; c < kColumns; ++c) {
      float y = static_cast<float>(total[c]) * t.steps[m];
      if (t.scales != nullptr) y *= t.scales[c];
      float& out = t.out[m * t.out_stride + c];
      out = t.adds ? out + y : y;
    }
  }
}

void gemv(const Int8GemvTask& t) {
  const int16_t* x = static_cast<const int16_t*>(t.activations);
  for (int64_t row = 0; row < t.count; ++row) {
    int64_t total = 0;
    for (int64_t d = 0; d < t.k; ++d) total += t.rows[row * t.k + d] * x[d];
    t.out[row] = static_cast<float>(total) * t.step * t.scales[row];
  }
}

}  // namespace

const Int8Kernels kInt8Scalar = {1, kColumns, true, kGemvRows, panel_forward, panel_backward, multiply, gemv};

}  // namespace sterna

#include "rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "bfloat16.h"
#include "clones.h"
#include "threads.h"

namespace sterna {
namespace {

constexpr int64_t kItemElements = 1 << 14;  // what a thread takes at once

// exp(x) within 2 units in the last place for |x| <= 87; beyond, that of the nearer end.
[[gnu::always_inline]] inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
  // Adding and taking away 1.5 * 2^23 rounds to an integer.
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

struct Relu2 {
  [[gnu::always_inline]] static float value(float x) {
    const float positive = x > 0 ? x : 0;
    return positive * positive;
  }
  [[gnu::always_inline]] static float slope(float x) { return x > 0 ? 2 * x : 0; }
};

struct Silu {
  [[gnu::always_inline]] static float value(float x) { return x / (1 + exponential(-x)); }
  [[gnu::always_inline]] static float slope(float x) {
    const float s = 1 / (1 + exponential(-x));
    return s * (1 + x * (1 - s));
  }
};

// Sums run in kLanes interleaved parts, which the compiler turns into vectors without reordering anything.
constexpr int kLanes = 64;

struct Sum {
  float parts[kLanes] = {};

  [[gnu::always_inline]] float total() {
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    return parts[0];
  }
};

template <class Term>
[[gnu::always_inline]] inline float sum_of(int64_t length, Term term) {
  Sum sum;
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) sum.parts[lane] += term(i + lane);
  for (int lane = 0; i + lane < length; ++lane) sum.parts[lane] += term(i + lane);
  return sum.total();
}

template <class T>
STERNA_CLONES void norm_row(const T* x, const float* w, float eps, int64_t length, float* y, float* inverse) {
  const float squares = sum_of(length, [=](int64_t i) { return load(x + i) * load(x + i); });
  const float scale = 1 / std::sqrt(squares / static_cast<float>(length) + eps);
  for (int64_t i = 0; i < length; ++i) y[i] = load(x + i) * scale * w[i];
  *inverse = scale;
}

// With u = g w: dx = inverse u - x inverse^3 mean(u x).
template <class T>
STERNA_CLONES void norm_backward_row(const float* g, const T* x, const float* w, float inverse,
                                     const float* residual, int64_t length, float* dx) {
  const float along = sum_of(length, [=](int64_t i) { return g[i] * w[i] * load(x + i); });
  const float back = along / static_cast<float>(length) * inverse * inverse * inverse;
  if (residual == nullptr) {
    for (int64_t i = 0; i < length; ++i) dx[i] = g[i] * w[i] * inverse - load(x + i) * back;
  } else {
    for (int64_t i = 0; i < length; ++i)
      dx[i] = residual[i] + (g[i] * w[i] * inverse - load(x + i) * back);
  }
}

template <class Act, class T>
STERNA_CLONES void gated_row(const T* gate, const T* up, const float* w, float eps, int64_t length, float* y,
                             float* inverse) {
  for (int64_t i = 0; i < length; ++i) y[i] = Act::value(load(gate + i)) * load(up + i);
  if (w != nullptr) norm_row(static_cast<const float*>(y), w, eps, length, y, inverse);
}

template <class Act, class T>
STERNA_CLONES void gate_rows(const float* gate, const float* up, int64_t stride, int64_t rows, int64_t columns, T* y,
                             int64_t y_stride) {
  for (int64_t row = 0; row < rows; ++row, gate += stride, up += stride, y += y_stride)
    for (int64_t i = 0; i < columns; ++i) store(Act::value(gate[i]) * up[i], y + i);
}

// `product` is room for a row.
template <class Act, class T>
STERNA_CLONES void gated_backward_row(const float* g, const T* gate, const T* up, const float* w, float inverse,
                                      int64_t length, float* product, T* dgate, T* dup) {
  const float* dy = g;
  if (w != nullptr) {
    for (int64_t i = 0; i < length; ++i) product[i] = Act::value(load(gate + i)) * load(up + i);
    norm_backward_row(g, static_cast<const float*>(product), w, inverse, nullptr, length, product);
    dy = product;
  }
  for (int64_t i = 0; i < length; ++i) {
    const float x = load(gate + i);
    store(dy[i] * Act::value(x), dup + i);
    store(dy[i] * load(up + i) * Act::slope(x), dgate + i);
  }
}

// `columns` of both halves; y's second half is `half` further on.
template <class T, class U>
[[gnu::always_inline]] inline void rotate_columns(const T* first, const T* second, const float* cos, const float* sin,
                                                  float sign, int64_t columns, int64_t half, U* y) {
  for (int64_t i = 0; i < columns; ++i) {
    const float left = load(first + i), right = load(second + i), turn = sign * sin[i];
    store(left * cos[i] - right * turn, y + i);
    store(right * cos[i] + left * turn, y + half + i);
  }
}

template <class U>
STERNA_CLONES void rotate_halves(const float* first, const float* second, const float* cos, const float* sin, float sign,
                                 int64_t columns, int64_t half, U* y) {
  rotate_columns(first, second, cos, sin, sign, columns, half, y);
}

template <class T, class U>
STERNA_CLONES void rotate_token(const T* x, const float* cos, const float* sin, float sign, int64_t heads,
                                int64_t half, U* y) {
  for (int64_t head = 0; head < heads; ++head, x += 2 * half, y += 2 * half)
    rotate_columns(x, x + half, cos, sin, sign, half, half, y);
}

template <class T>
STERNA_CLONES void copy_row(const T* x, int64_t length, float* y) {
  for (int64_t i = 0; i < length; ++i) y[i] = load(x + i);
}

// The scores of one head become weights that add up to 1 / the number returned.
STERNA_CLONES float softened(float* scores, int64_t count) {
  float largest = scores[0];
  for (int64_t t = 1; t < count; ++t) largest = scores[t] > largest ? scores[t] : largest;
  for (int64_t t = 0; t < count; ++t) scores[t] = exponential(scores[t] - largest);
  return 1 / sum_of(count, [=](int64_t t) { return scores[t]; });
}

STERNA_CLONES void score(const float* q, const float* keys, float scale, int64_t size, int64_t count, float* scores) {
  for (int64_t t = 0; t < count; ++t)
    scores[t] = scale * sum_of(size, [=](int64_t i) { return q[i] * keys[t * size + i]; });
}

STERNA_CLONES void mix(const float* weights, const float* values, float factor, int64_t size, int64_t count, float* y) {
  for (int64_t i = 0; i < size; ++i) y[i] = 0;
  for (int64_t t = 0; t < count; ++t)
    for (int64_t i = 0; i < size; ++i) y[i] += weights[t] * values[t * size + i];
  for (int64_t i = 0; i < size; ++i) y[i] *= factor;
}

template <class Body>
void for_each_row(int64_t rows, int64_t length, Body body) {
  const int64_t at_once = std::max<int64_t>(1, kItemElements / length);
  for_each_item((rows + at_once - 1) / at_once, rows * length * kElementWork, [&](int64_t item) {
    const int64_t end = std::min(rows, (item + 1) * at_once);
    for (int64_t row = item * at_once; row < end; ++row) body(row);
  });
}

// Calls body with the data as what they are.
template <class Body>
void typed(Rows rows, Body body) {
  if (rows.is_bfloat16) {
    body(static_cast<const Bfloat16*>(rows.data));
  } else {
    body(static_cast<const float*>(rows.data));
  }
}

template <class Body>
void typed(Activation act, Body body) {
  if (act == Activation::kRelu2) {
    body(Relu2());
  } else {
    body(Silu());
  }
}

}  // namespace

void rms_norm(Rows x, const float* w, float eps, int64_t rows, int64_t length, float* y, float* inverse) {
  typed(x, [&](auto from) {
    for_each_row(rows, length, [&](int64_t row) {
      norm_row(from + row * length, w, eps, length, y + row * length, inverse + row);
    });
  });
}

void rms_norm_backward(const float* g, Rows x, const float* w, const float* inverse, const float* residual,
                       int64_t rows, int64_t length, float* dx) {
  typed(x, [&](auto from) {
    for_each_row(rows, length, [&](int64_t row) {
      const int64_t start = row * length;
      norm_backward_row(g + start, from + start, w, inverse[row],
                        residual == nullptr ? nullptr : residual + start, length, dx + start);
    });
  });
}

void gated(Activation act, Rows gate, Rows up, const float* w, float eps, int64_t rows, int64_t length, float* y,
           float* inverse) {
  typed(act, [&](auto kind) {
    typed(gate, [&](auto from) {
      const auto other = static_cast<decltype(from)>(up.data);
      for_each_row(rows, length, [&](int64_t row) {
        const int64_t start = row * length;
        gated_row<decltype(kind)>(from + start, other + start, w, eps, length, y + start, inverse + row);
      });
    });
  });
}

void gate_block(Activation act, const float* gate, const float* up, int64_t stride, int64_t rows, int64_t columns,
                void* y, bool to_bfloat16, int64_t y_stride) {
  typed(act, [&](auto kind) {
    if (to_bfloat16) {
      gate_rows<decltype(kind)>(gate, up, stride, rows, columns, static_cast<Bfloat16*>(y), y_stride);
    } else {
      gate_rows<decltype(kind)>(gate, up, stride, rows, columns, static_cast<float*>(y), y_stride);
    }
  });
}

void gated_backward(Activation act, const float* g, Rows gate, Rows up, const float* w, const float* inverse,
                    int64_t rows, int64_t length, void* dgate, void* dup) {
  typed(act, [&](auto kind) {
    typed(gate, [&](auto from) {
      const auto other = static_cast<decltype(from)>(up.data);
      using Number = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
      auto *to_gate = static_cast<Number*>(dgate), *to_up = static_cast<Number*>(dup);
      for_each_row(rows, length, [&](int64_t row) {
        const int64_t start = row * length;
        thread_local std::vector<float> product;
        product.resize(std::max<size_t>(product.size(), length));
        gated_backward_row<decltype(kind)>(g + start, from + start, other + start, w,
                                           w == nullptr ? 0.0f : inverse[row], length, product.data(),
                                           to_gate + start, to_up + start);
      });
    });
  });
}

void rotate(Rows x, const Angles& angles, float sign, int64_t tokens, int64_t heads, int64_t size, bool to_bfloat16,
            void* y) {
  const int64_t half = size / 2;
  typed(x, [&](auto from) {
    for_each_row(tokens, heads * size, [&](int64_t token) {
      const int64_t start = token * heads * size, at = token % angles.period * half;
      const float *cos = angles.cos + at, *sin = angles.sin + at;
      if (to_bfloat16) {
        rotate_token(from + start, cos, sin, sign, heads, half, static_cast<Bfloat16*>(y) + start);
      } else {
        rotate_token(from + start, cos, sin, sign, heads, half, static_cast<float*>(y) + start);
      }
    });
  });
}

void rotate_block(const float* first, const float* second, int64_t stride, int64_t rows, int64_t columns,
                  const Angles& angles, int64_t t0, int64_t i0, int64_t half, void* y, bool to_bfloat16,
                  int64_t y_stride) {
  for (int64_t row = 0; row < rows; ++row, first += stride, second += stride) {
    const int64_t at = (t0 + row) % angles.period * half + i0;
    const float *cos = angles.cos + at, *sin = angles.sin + at;
    if (to_bfloat16) {
      rotate_halves(first, second, cos, sin, 1.0f, columns, half, static_cast<Bfloat16*>(y) + row * y_stride);
    } else {
      rotate_halves(first, second, cos, sin, 1.0f, columns, half, static_cast<float*>(y) + row * y_stride);
    }
  }
}

Rows widened(Rows x, int64_t count, float* room) {
  if (!x.is_bfloat16) return x;
  copy_row(x.halves(), count, room);
  return {room, false};
}

void put_heads(Rows x, int64_t tokens, int64_t heads, int64_t size, int64_t capacity, int64_t first, float* room) {
  typed(x, [&](auto from) {
    for_each_row(tokens, heads * size, [&](int64_t token) {
      for (int64_t head = 0; head < heads; ++head)
        copy_row(from + (token * heads + head) * size, size, room + (head * capacity + first + token) * size);
    });
  });
}

void attend(const float* q, const float* keys, const float* values, int64_t heads, int64_t kv_heads, int64_t size,
            int64_t capacity, int64_t count, float* y) {
  const float scale = 1 / std::sqrt(static_cast<float>(size));
  const int64_t shared_by = heads / kv_heads;
  // Four passes over as many elements as there are keys for each head: scores, softmax, values, sums.
  for_each_item(heads, heads * count * size * kElementWork, [&](int64_t head) {
    thread_local std::vector<float> scores;
    scores.resize(std::max<size_t>(scores.size(), count));
    const int64_t from = head / shared_by * capacity * size;
    score(q + head * size, keys + from, scale, size, count, scores.data());
    const float factor = softened(scores.data(), count);
    mix(scores.data(), values + from, factor, size, count, y + head * size);
  });
}

}  // namespace sterna

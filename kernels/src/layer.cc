#include "layer.h"

#include <initializer_list>

#include "bfloat16.h"
#include "clones.h"
#include "lower.h"
#include "scratch.h"
#include "threads.h"

namespace sterna {
namespace {

// Of the calling thread: the left factors of adapted linears, and results on their way.
thread_local Scratch left_scratch, wide_scratch, second_scratch, gated_scratch;

STERNA_CLONES void narrow(const float* x, int64_t length, Bfloat16* y) {
  for (int64_t i = 0; i < length; ++i) store(x[i], y + i);
}

// One input and the linears that take it.
class Fan {
 public:
  Fan(const Variant& v, const Layer& layer, const LowRank* adapter, std::initializer_list<Layer::Linear> linears,
      int64_t rows, const ReadRows& read)
      : layer_(layer), adapter_(adapter), first_(*linears.begin()), rows_(rows), left_(room(linears)),
        input_(v, rows, length(), lowered_for(linears, read)) {}

  const Input& input() const { return input_; }

  void multiply(Layer::Linear which, Result y) const {
    const std::vector<Weights>& planes = layer_.linears[which];
    if (y.is_bfloat16 && planes.size() > 1) {
      // Rounded once, as their sum.
      const int64_t columns = layer_.columns(which);
      float* sums = second_scratch.get<float>(rows_ * columns);
      multiply(which, {sums});
      for_each_item(rows_, rows_ * columns * kElementWork, [&](int64_t m) {
        narrow(sums + m * columns, columns, static_cast<Bfloat16*>(y.data) + m * columns);
      });
      return;
    }
    forward(planes.front(), input_, thin(which), y);
    for (size_t p = 1; p < planes.size(); ++p) forward(planes[p], input_, {}, {y.data, false, true});
  }

  Thin thin(Layer::Linear which) const {
    const LowRank& low = adapter_[which];
    return low.rank == 0 ? Thin{} : Thin{left(which), low.right, low.rank};
  }

 private:
  int64_t length() const { return layer_.linears[first_].front().k; }

  ReadRows lowered_for(std::initializer_list<Layer::Linear> linears, ReadRows read) const {
    for (const Layer::Linear which : linears) {
      const LowRank& low = adapter_[which];
      if (low.rank > 0) read = lowered(read, length(), low.a, low.rank, left(which));
    }
    return read;
  }

  float* room(std::initializer_list<Layer::Linear> linears) const {
    int64_t ranks = 0;
    for (const Layer::Linear which : linears) ranks += adapter_[which].rank;
    return left_scratch.get<float>(ranks * rows_);
  }

  // Where x A^T of a linear lies, [rows][rank], behind those of the linears before it.
  float* left(Layer::Linear which) const {
    int64_t ranks = 0;
    for (int before = first_; before < which; ++before) ranks += adapter_[before].rank;
    return left_ + ranks * rows_;
  }

  const Layer& layer_;
  const LowRank* const adapter_;
  const Layer::Linear first_;
  const int64_t rows_;
  float* const left_;
  const Input input_;
};

// Rows as they are or, with the weight `w`, normed.
ReadRows reading(Rows x, int64_t length, const float* w, float eps) {
  return [=](int64_t m, int64_t count, float* room) {
    if (w == nullptr) return x.from(m * length);
    float inverse;
    for (int64_t r = 0; r < count; ++r)
      rms_norm(x.from((m + r) * length), w, eps, 1, length, room + r * length, &inverse);
    return Rows{room, false};
  };
}

bool is_one_plane(const std::vector<Weights>& planes) { return planes.size() == 1 && planes.front().groups() == 1; }

}  // namespace

void project(const Variant& v, const Layer& layer, const LowRank* adapter, const float* h, int64_t rows,
             const Angles& angles, const Projections& to) {
  const int64_t hidden = layer.columns(Layer::kDown);
  const Fan fan(v, layer, adapter, {Layer::kQ, Layer::kK, Layer::kV}, rows,
                reading({h, false}, hidden, layer.norms[Layer::kAttention], layer.eps));
  const auto turned = [&](Layer::Linear which, int64_t heads, void* y) {
    const std::vector<Weights>& planes = layer.linears[which];
    if (planes.size() == 1 && turns(planes.front(), fan.input(), layer.head_size)) {
      forward_turned(planes.front(), fan.input(), fan.thin(which), angles, layer.head_size, {y, to.are_bfloat16});
      return;
    }
    float* straight = wide_scratch.get<float>(rows * layer.columns(which));
    fan.multiply(which, {straight});
    rotate({straight, false}, angles, 1.0f, rows, heads, layer.head_size, to.are_bfloat16, y);
  };
  turned(Layer::kQ, layer.heads, to.q);
  turned(Layer::kK, layer.kv_heads, to.k);
  fan.multiply(Layer::kV, {to.v, to.are_bfloat16});
}

void complete(const Variant& v, const Layer& layer, const LowRank* adapter, Rows attention, int64_t rows,
              bool in_bfloat16, float* h) {
  const int64_t hidden = layer.columns(Layer::kDown), wide = layer.columns(Layer::kGate);
  Fan(v, layer, adapter, {Layer::kO}, rows,
      reading(attention, layer.columns(Layer::kQ), layer.norms[Layer::kAttentionSub], layer.eps))
      .multiply(Layer::kO, {h, false, true});

  const Result z = {gated_scratch.get<float>(rows * wide), in_bfloat16};
  {
    const Fan fan(v, layer, adapter, {Layer::kGate, Layer::kUp}, rows,
                  reading({h, false}, hidden, layer.norms[Layer::kFeedForward], layer.eps));
    const std::vector<Weights>&gate = layer.linears[Layer::kGate], &up = layer.linears[Layer::kUp];
    if (is_one_plane(gate) && is_one_plane(up) && !fan.input().is_few()) {
      forward_gated(gate.front(), up.front(), layer.act, fan.input(), fan.thin(Layer::kGate), fan.thin(Layer::kUp), z);
    } else {
      float *gates = wide_scratch.get<float>(rows * wide), *ups = second_scratch.get<float>(rows * wide);
      fan.multiply(Layer::kGate, {gates});
      fan.multiply(Layer::kUp, {ups});
      const int64_t row_bytes = wide * (in_bfloat16 ? sizeof(Bfloat16) : sizeof(float));
      for_each_item(rows, rows * wide * kElementWork, [&](int64_t m) {
        gate_block(layer.act, gates + m * wide, ups + m * wide, wide, 1, wide, static_cast<char*>(z.data) + m * row_bytes,
                   in_bfloat16, wide);
      });
    }
  }
  const Rows gated = {z.data, in_bfloat16};
  Fan(v, layer, adapter, {Layer::kDown}, rows, reading(gated, wide, layer.norms[Layer::kFeedForwardSub], layer.eps))
      .multiply(Layer::kDown, {h, false, true});
}

}  // namespace sterna

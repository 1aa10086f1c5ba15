// The Python module sterna_kernels._native. Arrays come as addresses: their dtype, shape and contiguity are
// checked in Python, once for NumPy and torch alike, and an address costs a torch operator 0.5 us where an
// ndarray costs 6.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "attention.h"
#include "attention_gradient.h"
#include "ceilings.h"
#include "dispatch.h"
#include "int8.h"
#include "lower.h"
#include "product.h"
#include "rows.h"
#include "token.h"

namespace nb = nanobind;

namespace {

using sterna::Weights;

template <class T>
T* at(uintptr_t address) {
  if (address == 0) throw std::invalid_argument("address 0");
  return reinterpret_cast<T*>(address);
}

// `scales` may be 0: there are none. `group` is a multiple of 64, or 0: a row has one scale.
Weights weights(uintptr_t packed, int64_t n, int64_t k, float scale, uintptr_t scales, int64_t group) {
  for (const int64_t side : {n, k})
    if (side < 1 || side > sterna::kMaxSide)
      throw std::invalid_argument("side " + std::to_string(side) + " is not between 1 and " +
                                  std::to_string(sterna::kMaxSide));
  if (group < 0 || group % sterna::kBlockColumns != 0)
    throw std::invalid_argument("groups of " + std::to_string(group) + " columns: a multiple of 64 is needed");
  return {at<const uint8_t>(packed), n, k, scale, reinterpret_cast<const float*>(scales), group == 0 ? k : group};
}

sterna::Thin thin(uintptr_t left, uintptr_t right, int64_t rank) {
  if (rank < 0) throw std::invalid_argument("rank " + std::to_string(rank));
  return rank == 0 ? sterna::Thin{} : sterna::Thin{at<const float>(left), at<const float>(right), rank};
}

sterna::Rows rows_at(uintptr_t address, bool is_bfloat16) { return {at<const void>(address), is_bfloat16}; }

// Rows whose products with `low` [rank][length] go to `left` on their way, unless it is 0.
sterna::ReadRows reading(sterna::Rows x, int64_t length, uintptr_t left, int64_t rank, uintptr_t low) {
  const sterna::ReadRows read = sterna::rows_at(x, length);
  return low == 0 ? read : sterna::lowered(read, length, at<const float>(low), rank, at<float>(left));
}

void forward(uintptr_t packed, int64_t n, int64_t k, float scale, uintptr_t scales, int64_t group,
             uintptr_t x, int64_t rows, uintptr_t y, uintptr_t left, uintptr_t right, int64_t rank,
             bool to_bfloat16, bool is_bfloat16, uintptr_t low) {
  if (rows == 0) return;
  sterna::forward(sterna::variant_in_use(), weights(packed, n, k, scale, scales, group),
                  reading(rows_at(x, is_bfloat16), k, left, rank, low), rows, thin(left, right, rank),
                  {at<void>(y), to_bfloat16});
}

void backward(uintptr_t packed, int64_t n, int64_t k, float scale, uintptr_t scales, int64_t group,
              uintptr_t g, int64_t rows, int limbs, uintptr_t dx, uintptr_t left, uintptr_t right, int64_t rank,
              bool to_bfloat16, bool is_bfloat16, uintptr_t low) {
  if (rows == 0) return;
  if (limbs != 1 && limbs != 2)
    throw std::invalid_argument("limbs=" + std::to_string(limbs) + ": 1 and 2 exist");
  sterna::backward(sterna::variant_in_use(), weights(packed, n, k, scale, scales, group),
                   reading(rows_at(g, is_bfloat16), n, left, rank, low), rows, limbs, thin(left, right, rank),
                   {at<void>(dx), to_bfloat16});
}

void outer(uintptr_t g, bool is_bfloat16, int64_t rows, int64_t columns, uintptr_t left, int64_t rank, float scale,
           uintptr_t to) {
  sterna::outer(rows_at(g, is_bfloat16), rows, columns, at<const float>(left), rank, scale, at<float>(to));
}

void unpack(uintptr_t packed, int64_t n, int64_t k, int64_t first, int64_t rows, uintptr_t codes) {
  const Weights w = weights(packed, n, k, 1.0f, 0, 0);
  if (first < 0 || rows < 0 || first + rows > n)
    throw std::invalid_argument("rows " + std::to_string(first) + " + " + std::to_string(rows) + " of " +
                                std::to_string(n));
  sterna::unpack(w, first, rows, at<int8_t>(codes));
}

const float* optional(uintptr_t address) { return reinterpret_cast<const float*>(address); }

sterna::Activation activation(std::string_view name) {
  if (name == "relu2") return sterna::Activation::kRelu2;
  if (name == "silu") return sterna::Activation::kSilu;
  throw std::invalid_argument("activation " + std::string(name) + ": relu2 and silu exist");
}

void rms_norm(uintptr_t x, bool is_bfloat16, uintptr_t w, float eps, int64_t rows, int64_t length, uintptr_t y,
              uintptr_t inverse) {
  if (rows == 0) return;
  sterna::rms_norm(rows_at(x, is_bfloat16), at<const float>(w), eps, rows, length, at<float>(y),
                   at<float>(inverse));
}

void rms_norm_backward(uintptr_t g, uintptr_t x, bool is_bfloat16, uintptr_t w, uintptr_t inverse,
                       uintptr_t residual, int64_t rows, int64_t length, uintptr_t dx) {
  if (rows == 0) return;
  sterna::rms_norm_backward(at<const float>(g), rows_at(x, is_bfloat16), at<const float>(w),
                            at<const float>(inverse), optional(residual), rows, length, at<float>(dx));
}

void gated(std::string_view act, uintptr_t gate, uintptr_t up, bool are_bfloat16, uintptr_t w, float eps,
           int64_t rows, int64_t length, uintptr_t y, uintptr_t inverse) {
  if (rows == 0) return;
  sterna::gated(activation(act), rows_at(gate, are_bfloat16), rows_at(up, are_bfloat16), optional(w), eps, rows,
                length, at<float>(y), at<float>(inverse));
}

void gated_backward(std::string_view act, uintptr_t g, uintptr_t gate, uintptr_t up, bool are_bfloat16,
                    uintptr_t w, uintptr_t inverse, int64_t rows, int64_t length, uintptr_t dgate, uintptr_t dup) {
  if (rows == 0) return;
  sterna::gated_backward(activation(act), at<const float>(g), rows_at(gate, are_bfloat16),
                         rows_at(up, are_bfloat16), optional(w), optional(inverse), rows, length,
                         at<void>(dgate), at<void>(dup));
}

void rotate(uintptr_t x, bool is_bfloat16, uintptr_t cos, uintptr_t sin, float sign, int64_t tokens,
            int64_t period, int64_t heads, int64_t size, bool to_bfloat16, uintptr_t y) {
  if (tokens == 0) return;
  if (period < 1 || size % 2 != 0) throw std::invalid_argument("a rotation needs a period and an even size");
  sterna::rotate(rows_at(x, is_bfloat16), {at<const float>(cos), at<const float>(sin), period}, sign, tokens, heads,
                 size, to_bfloat16, at<void>(y));
}

void put_heads(uintptr_t x, bool is_bfloat16, int64_t sequences, int64_t tokens, int64_t heads, int64_t size,
               int64_t capacity, int64_t first, uintptr_t room) {
  if (first < 0 || first + tokens > capacity)
    throw std::invalid_argument(std::to_string(tokens) + " tokens from " + std::to_string(first) +
                                " on, there is room for " + std::to_string(capacity));
  const int64_t length = tokens * heads * size * (is_bfloat16 ? 2 : 4);
  for (int64_t s = 0; s < sequences; ++s)
    sterna::put_heads(rows_at(x + s * length, is_bfloat16), tokens, heads, size, capacity, first,
                      at<float>(room) + s * heads * capacity * size);
}

using sterna::Bfloat16;

bool attends(int64_t size) { return sterna::attention_of(sterna::variant_in_use(), size) != nullptr; }

// Calls body(sequence, what lies before its queries, before its keys) for bfloat16 sequences one after the other. False,
// and nothing is done, where there is no attention for them.
template <class Body>
bool for_each_sequence(uintptr_t q, uintptr_t k, uintptr_t v, int64_t sequences, int64_t queries, int64_t keys,
                       int64_t heads, int64_t kv_heads, int64_t size, Body body) {
  const sterna::AttentionKernels* attention = sterna::attention_of(sterna::variant_in_use(), size);
  if (attention == nullptr) return false;
  if (kv_heads < 1 || heads % kv_heads != 0 || queries > keys)
    throw std::invalid_argument("heads must be a multiple of kv_heads, and keys as many as queries at least");
  const int64_t one = queries * heads * size, other = keys * kv_heads * size;
  for (int64_t s = 0; s < sequences; ++s)
    body(*attention,
         sterna::Sequence{at<const Bfloat16>(q) + s * one, at<const Bfloat16>(k) + s * other,
                          at<const Bfloat16>(v) + s * other, nullptr, queries, keys, heads, kv_heads, size},
         s * one, s * other);
  return true;
}

bool attend(uintptr_t q, uintptr_t k, uintptr_t v, int64_t sequences, int64_t queries, int64_t keys, int64_t heads,
            int64_t kv_heads, int64_t size, uintptr_t y) {
  return for_each_sequence(q, k, v, sequences, queries, keys, heads, kv_heads, size,
                           [&](const auto& attention, sterna::Sequence s, int64_t before, int64_t) {
                             s.y = at<Bfloat16>(y) + before;
                             sterna::attend_many(attention, s);
                           });
}

bool attend_backward(uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t g, int64_t sequences, int64_t queries, int64_t keys,
                     int64_t heads, int64_t kv_heads, int64_t size, uintptr_t dq, uintptr_t dk, uintptr_t dv) {
  return for_each_sequence(q, k, v, sequences, queries, keys, heads, kv_heads, size,
                           [&](const auto& attention, const sterna::Sequence& s, int64_t before, int64_t other) {
                             sterna::attend_backward(attention, {s, at<const Bfloat16>(g) + before,
                                                                 at<Bfloat16>(dq) + before, at<Bfloat16>(dk) + other,
                                                                 at<Bfloat16>(dv) + other});
                           });
}

// Of a matrix: packed, n, k, scale, scales, group. Of an adapter's linear: a, right, rank.
using Plane = std::tuple<uintptr_t, int64_t, int64_t, float, uintptr_t, int64_t>;
using LowRankAt = std::tuple<uintptr_t, uintptr_t, int64_t>;

// Each linear's planes are of one shape, and what goes out of one goes into the next: products do not look again.
void require_fitting(const sterna::Layer& layer) {
  using sterna::Layer;
  const auto& linears = layer.linears;
  const int64_t hidden = linears[Layer::kDown].front().n, wide = linears[Layer::kGate].front().n;
  const int64_t attention = layer.heads * layer.head_size, kv = layer.kv_heads * layer.head_size;
  const int64_t shapes[Layer::kLinears][2] = {{attention, hidden}, {kv, hidden}, {kv, hidden}, {hidden, attention},
                                              {wide, hidden}, {wide, hidden}, {hidden, wide}};
  for (int i = 0; i < Layer::kLinears; ++i)
    for (const Weights& plane : linears[i])
      if (plane.n != shapes[i][0] || plane.k != shapes[i][1])
        throw std::invalid_argument("linear " + std::to_string(i) + " is " + std::to_string(plane.n) + " x " +
                                    std::to_string(plane.k) + ", the layer needs " + std::to_string(shapes[i][0]) +
                                    " x " + std::to_string(shapes[i][1]));
}

sterna::Layer layer_of(int64_t heads, int64_t kv_heads, int64_t head_size, std::string_view act, float eps,
                       const std::vector<std::vector<Plane>>& linears, const std::vector<uintptr_t>& norms) {
  using sterna::Layer;
  if (linears.size() != Layer::kLinears || norms.size() != Layer::kNorms)
    throw std::invalid_argument("a layer has 7 linears and 4 norms");
  if (kv_heads < 1 || heads < 1 || heads % kv_heads != 0 || head_size < 2 || head_size % 2 != 0)
    throw std::invalid_argument("heads must be a multiple of kv_heads, and head_size even");
  Layer layer{heads, kv_heads, head_size, activation(act), eps, {}, {}};
  for (int i = 0; i < Layer::kLinears; ++i) {
    if (linears[i].empty()) throw std::invalid_argument("a linear has a plane at least");
    for (const Plane& plane : linears[i]) layer.linears[i].push_back(std::apply(weights, plane));
  }
  for (int i = 0; i < Layer::kNorms; ++i) layer.norms[i] = optional(norms[i]);
  require_fitting(layer);
  return layer;
}

// The parts of an adapter in one layer.
struct LowRanks {
  explicit LowRanks(const std::vector<LowRankAt>& adapter) {
    if (adapter.size() != sterna::Layer::kLinears) throw std::invalid_argument("an adapter has 7 linears");
    for (int i = 0; i < sterna::Layer::kLinears; ++i) {
      const auto [a, right, rank] = adapter[i];
      const sterna::Thin checked = thin(a, right, rank);
      parts[i] = {checked.left, checked.right, checked.rank};
    }
  }
  sterna::LowRank parts[sterna::Layer::kLinears];
};

void pass_token(const sterna::Layer& layer, const std::vector<LowRankAt>& adapter, uintptr_t cos, uintptr_t sin,
                uintptr_t keys, uintptr_t values, int64_t capacity, int64_t length, uintptr_t h) {
  const LowRanks low(adapter);
  if (length < 0 || length >= capacity)
    throw std::invalid_argument(std::to_string(length) + " tokens in a cache for " + std::to_string(capacity));
  const nb::gil_scoped_release released;
  sterna::pass_token(sterna::variant_in_use(), layer, low.parts, at<const float>(cos), at<const float>(sin),
                     {at<float>(keys), at<float>(values), capacity, length}, at<float>(h));
}

void project(const sterna::Layer& layer, const std::vector<LowRankAt>& adapter, uintptr_t h, int64_t rows,
             uintptr_t cos, uintptr_t sin, int64_t period, bool to_bfloat16, uintptr_t q, uintptr_t k, uintptr_t v) {
  const LowRanks low(adapter);
  if (rows == 0) return;
  const nb::gil_scoped_release released;
  sterna::project(sterna::variant_in_use(), layer, low.parts, at<const float>(h), rows,
                  {at<const float>(cos), at<const float>(sin), period},
                  {at<void>(q), at<void>(k), at<void>(v), to_bfloat16});
}

void complete(const sterna::Layer& layer, const std::vector<LowRankAt>& adapter, uintptr_t attention, int64_t rows,
              bool in_bfloat16, uintptr_t h) {
  const LowRanks low(adapter);
  if (rows == 0) return;
  const nb::gil_scoped_release released;
  sterna::complete(sterna::variant_in_use(), layer, low.parts, rows_at(attention, in_bfloat16), rows, in_bfloat16,
                   at<float>(h));
}

sterna::Int8Weights int8_weights(uintptr_t codes, uintptr_t scales, int64_t n, int64_t k) {
  if (n < 1 || k < 1 || k > sterna::kMaxInt8Width)
    throw std::invalid_argument("shape " + std::to_string(n) + " x " + std::to_string(k) +
                                " is out of range");
  return {at<const int8_t>(codes), at<const float>(scales), n, k};
}

void int8_forward(uintptr_t codes, uintptr_t scales, int64_t n, int64_t k, uintptr_t x, int64_t rows,
                  uintptr_t y) {
  if (rows == 0) return;
  sterna::int8_forward(sterna::variant_in_use(), int8_weights(codes, scales, n, k), at<const float>(x), rows,
                       at<float>(y));
}

void int8_backward(uintptr_t codes, uintptr_t scales, int64_t n, int64_t k, uintptr_t g, int64_t rows,
                   uintptr_t dx) {
  if (rows == 0) return;
  sterna::int8_backward(sterna::variant_in_use(), int8_weights(codes, scales, n, k), at<const float>(g), rows,
                        at<float>(dx));
}

// Where the elements of a contiguous array lie. NumPy's own `.ctypes.data` takes 1 us, a tenth of a small
// product.
uintptr_t address(nb::handle array) {
  Py_buffer view;
  if (PyObject_GetBuffer(array.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
  const auto start = reinterpret_cast<uintptr_t>(view.buf);
  PyBuffer_Release(&view);
  return start;
}

std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (const sterna::Variant* v : sterna::variants()) names.emplace_back(v->name);
  return names;
}

std::vector<std::string> ceilings() {
  std::vector<std::string> names;
  for (const sterna::Ceiling* c : sterna::ceilings()) names.emplace_back(c->name);
  return names;
}

// Runs the loop and returns how many operations that were.
int64_t run_ceiling(std::string_view name, int64_t rounds) {
  if (rounds < 1) throw std::invalid_argument("rounds=" + std::to_string(rounds) + " is below 1");
  for (const sterna::Ceiling* c : sterna::ceilings())
    if (name == c->name) {
      c->run(rounds);
      return rounds * c->operations;
    }
  throw std::invalid_argument("no ceiling " + std::string(name) + " here");
}

uint64_t read_memory(uintptr_t from, int64_t bytes, int streams) {
  if (bytes < 0 || streams < 1 || streams > 16)
    throw std::invalid_argument(std::to_string(bytes) + " bytes on " + std::to_string(streams) + " streams");
  return sterna::read_memory(at<const uint8_t>(from), bytes, streams);
}

}  // namespace

NB_MODULE(_native, m) {
  using namespace nb::literals;
  m.doc() = "Ternary products in C++; private to sterna_kernels.";
  m.def("forward", &forward, "packed"_a, "n"_a, "k"_a, "scale"_a, "scales"_a, "group"_a, "x"_a,
        "rows"_a, "y"_a, "left"_a = 0, "right"_a = 0, "rank"_a = 0, "to_bfloat16"_a = false, "is_bfloat16"_a = false,
        "low"_a = 0, nb::call_guard<nb::gil_scoped_release>());
  m.def("backward", &backward, "packed"_a, "n"_a, "k"_a, "scale"_a, "scales"_a, "group"_a, "g"_a,
        "rows"_a, "limbs"_a, "dx"_a, "left"_a = 0, "right"_a = 0, "rank"_a = 0, "to_bfloat16"_a = false,
        "is_bfloat16"_a = false, "low"_a = 0, nb::call_guard<nb::gil_scoped_release>());
  m.def("outer", &outer, "g"_a, "is_bfloat16"_a, "rows"_a, "columns"_a, "left"_a, "rank"_a, "scale"_a, "to"_a,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("unpack", &unpack, "packed"_a, "n"_a, "k"_a, "first"_a, "rows"_a, "codes"_a,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("rms_norm", &rms_norm, "x"_a, "is_bfloat16"_a, "w"_a, "eps"_a, "rows"_a, "length"_a, "y"_a, "inverse"_a,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("rms_norm_backward", &rms_norm_backward, "g"_a, "x"_a, "is_bfloat16"_a, "w"_a, "inverse"_a, "residual"_a,
        "rows"_a, "length"_a, "dx"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("gated", &gated, "act"_a, "gate"_a, "up"_a, "are_bfloat16"_a, "w"_a, "eps"_a, "rows"_a, "length"_a, "y"_a,
        "inverse"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("gated_backward", &gated_backward, "act"_a, "g"_a, "gate"_a, "up"_a, "are_bfloat16"_a, "w"_a, "inverse"_a,
        "rows"_a, "length"_a, "dgate"_a, "dup"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("rotate", &rotate, "x"_a, "is_bfloat16"_a, "cos"_a, "sin"_a, "sign"_a, "tokens"_a, "period"_a, "heads"_a,
        "size"_a, "to_bfloat16"_a, "y"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("put_heads", &put_heads, "x"_a, "is_bfloat16"_a, "sequences"_a, "tokens"_a, "heads"_a, "size"_a, "capacity"_a,
        "first"_a, "room"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("attend", &attend, "q"_a, "k"_a, "v"_a, "sequences"_a, "queries"_a, "keys"_a, "heads"_a, "kv_heads"_a,
        "size"_a, "y"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("attends", &attends, "size"_a);
  m.def("attend_backward", &attend_backward, "q"_a, "k"_a, "v"_a, "g"_a, "sequences"_a, "queries"_a, "keys"_a, "heads"_a,
        "kv_heads"_a, "size"_a, "dq"_a, "dk"_a, "dv"_a, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<sterna::Layer>(m, "Layer");
  m.def("layer", &layer_of, "heads"_a, "kv_heads"_a, "head_size"_a, "act"_a, "eps"_a, "linears"_a,
        "norms"_a);
  m.def("pass_token", &pass_token, "layer"_a, "adapter"_a, "cos"_a, "sin"_a, "keys"_a, "values"_a, "capacity"_a,
        "length"_a, "h"_a);
  m.def("project", &project, "layer"_a, "adapter"_a, "h"_a, "rows"_a, "cos"_a, "sin"_a, "period"_a, "to_bfloat16"_a,
        "q"_a, "k"_a, "v"_a);
  m.def("complete", &complete, "layer"_a, "adapter"_a, "attention"_a, "rows"_a, "in_bfloat16"_a, "h"_a);
  m.def("int8_forward", &int8_forward, "codes"_a, "scales"_a, "n"_a, "k"_a, "x"_a, "rows"_a, "y"_a,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("int8_backward", &int8_backward, "codes"_a, "scales"_a, "n"_a, "k"_a, "g"_a, "rows"_a, "dx"_a,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("address", &address, "array"_a);
  m.def("ceilings", &ceilings);
  m.def("run_ceiling", &run_ceiling, "name"_a, "rounds"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("read_memory", &read_memory, "bytes_at"_a, "size"_a, "streams"_a,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("variants", &variants);
  m.def("variant", [] { return std::string(sterna::variant_in_use().name); });
  m.def("use_variant", [](std::string_view name) { return sterna::use_variant(name); }, "name"_a);
}

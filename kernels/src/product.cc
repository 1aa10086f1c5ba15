#include "product.h"

#include <algorithm>
#include <functional>

#include "scratch.h"
#include "threads.h"

namespace sterna {
namespace {

constexpr int64_t kActivationBytes = 1 << 20;    // quantised rows that a second-level cache holds
constexpr int64_t kStreamedBytes = 1 << 20;      // so many of results leave the cache before they are read
constexpr int64_t kGemvBlocks = 4;               // rows of blocks a thread takes at once
constexpr int64_t kMostPanelColumns = 64;        // of any variant

// Of the calling thread.
thread_local Scratch factors_scratch, up_factors_scratch, column_scratch;
thread_local Scratch panel_scratch, part_scratch, total_scratch;  // of each thread that works

// A group of columns of W: those columns alone, without scales of their own.
Weights slice(const Weights& w, int64_t group) {
  const int64_t first = group * w.group;
  Weights part = {w.block(0, first / kBlockColumns), w.n, std::min(w.group, w.k - first), w.scale, nullptr};
  part.row_blocks = w.row_blocks;
  return part;
}

// Adds one group's part of `count` results, times the group's scales of their rows of W, to those of the groups
// before it.
void add_group(const float* from, int64_t count, const float* scales, bool is_first, float* to) {
  if (is_first) {
    std::transform(from, from + count, scales, to, std::multiplies<>());
  } else {
    for (int64_t c = 0; c < count; ++c) to[c] += from[c] * scales[c];
  }
}

// A group's scales of `count` rows of W from `first` on, one after the other.
void gather_scales(const Weights& w, int64_t group, int64_t first, int64_t count, float* scales) {
  const float* from = w.scales + first * w.groups() + group;
  for (int64_t i = 0; i < count; ++i) scales[i] = from[i * w.groups()];
}

// Where a product's results go, and what is added to them on the way.
struct Target {
  Thin thin;
  Result out;
  int64_t columns;  // from one row of the result, and of thin.right, to the next

  int64_t element_bytes() const { return out.is_bfloat16 ? 2 : 4; }
  // From what gives float32 alone or, `in_bfloat16`, both.
  bool takes_results_as_they_are(bool in_bfloat16) const {
    return thin.rank == 0 && !out.is_added && (in_bfloat16 || !out.is_bfloat16);
  }
  bool is_on_lines() const {
    return reinterpret_cast<uintptr_t>(out.data) % 64 == 0 && columns * element_bytes() % 64 == 0;
  }
  float* floats() const { return out.is_bfloat16 ? nullptr : static_cast<float*>(out.data); }
  Bfloat16* halves() const { return out.is_bfloat16 ? static_cast<Bfloat16*>(out.data) : nullptr; }

  // What begins at this row and column.
  Target from(int64_t row, int64_t column) const {
    const Thin rest = {thin.left + row * thin.rank, thin.right + column, thin.rank};
    char* to = static_cast<char*>(out.data) + (row * columns + column) * element_bytes();
    return {thin.rank == 0 ? thin : rest, {to, out.is_bfloat16, out.is_added}, columns};
  }

  // Takes `part` in; `scales` of its columns may be null.
  void take(const float* part, int64_t part_stride, int64_t rows, int64_t count, const float* scales,
            bool streams = false) const {
    finish({part, part_stride, rows, count, scales, thin, columns, out, columns, streams && count % 16 == 0});
  }
};

// Asks for where a panel's results will go, while it is multiplied: rows that far apart are not foreseen.
void expect(const Target& to, int64_t rows, int64_t columns) {
  const char* row = static_cast<const char*>(to.out.data);
  for (int64_t r = 0; r < rows; ++r, row += to.columns * to.element_bytes())
    for (int64_t b = 0; b < columns * to.element_bytes(); b += 64) __builtin_prefetch(row + b, 1, 2);
}

// How many rows fit the cache.
int64_t chunk_of(int64_t rows, int64_t depth, int limbs) {
  const int64_t fitting = std::max<int64_t>(16, kActivationBytes / (depth * limbs));
  return round_up(ceil_div(rows, ceil_div(rows, fitting)), 16);
}

// Every panel of columns of the result, for chunks of rows that fit the cache. A panel that is not finished as the
// variant leaves it waits in the cache until it is.
void multiply_panels(const Variant& v, const Weights& w, bool is_forward, const Activations& a, int64_t rows,
                     int limbs, const Target& to) {
  const int64_t columns = is_forward ? w.n : w.k, width = v.panel_columns;
  const int64_t panels = ceil_div(columns, width);
  const int64_t chunk = chunk_of(rows, a.depth, limbs);
  const int64_t chunks = ceil_div(rows, chunk);
  const bool scales_follow = is_forward && w.scales != nullptr;
  const bool is_plain = !scales_follow && to.takes_results_as_they_are(v.has_bfloat16);
  const bool streams =
      to.is_on_lines() && !to.out.is_added && rows * to.columns * to.element_bytes() >= kStreamedBytes;
  const auto multiply = [&](int64_t m0, int64_t c0, float* out, Bfloat16* narrow_out, int64_t stride, bool is_past,
                            const Bfloat16* beside) {
    uint8_t* codes = panel_scratch.get<uint8_t>(a.depth * width);
    // m0 is a multiple of 16, so it starts a tile.
    v.multiply({w, is_forward, c0, codes, a.codes + m0 * limbs * a.depth, a.sums + m0 * limbs, a.factors + m0,
                std::min(chunk, rows - m0), a.depth, limbs, out, stride, is_past, narrow_out, beside});
  };
  const auto multiply_panel = [&](int64_t m0, int64_t c0, const Bfloat16* beside) {
    const int64_t m = std::min(chunk, rows - m0), c = std::min(width, columns - c0);
    const Target here = to.from(m0, c0);
    if (to.out.is_added || (to.out.is_bfloat16 && !is_plain)) expect(here, m, c);
    if (is_plain && c == width) {
      multiply(m0, c0, here.floats(), here.halves(), to.columns, streams, beside);
    } else {
      float* part = part_scratch.get<float>(m * width);
      multiply(m0, c0, part, nullptr, width, false, nullptr);
      here.take(part, width, m, c, scales_follow ? w.scales + c0 : nullptr, streams);
    }
  };
  // Past the caches go two cache lines of a row at a time: panels that have one wait for each other.
  const bool in_pairs = is_plain && streams && to.out.is_bfloat16 && width == 32;
  const int64_t items = in_pairs ? ceil_div(panels, 2) : panels;
  for_each_item(chunks * items, rows * limbs * w.n * w.k, [&](int64_t item) {
    const int64_t m0 = item / items * chunk, c0 = item % items * width * (in_pairs ? 2 : 1);
    if (!in_pairs || c0 + 2 * width > columns) {
      multiply_panel(m0, c0, nullptr);
      return;
    }
    Bfloat16* waiting = part_scratch.get<Bfloat16>(std::min(chunk, rows - m0) * width);
    multiply(m0, c0, nullptr, waiting, width, false, nullptr);
    multiply_panel(m0, c0 + width, waiting);
  });
}

// The same for y with scales of groups: a panel is done group after group while its results stay in the cache.
void multiply_grouped_panels(const Variant& v, const Weights& w, const GroupedActivations& a, int64_t rows,
                             const Target& to) {
  const int64_t width = v.panel_columns, panels = ceil_div(w.n, width), chunk = chunk_of(rows, w.k, 1);
  for_each_item(ceil_div(rows, chunk) * panels, rows * w.n * w.k, [&](int64_t item) {
    const int64_t m0 = item / panels * chunk, c0 = item % panels * width;
    const int64_t m = std::min(chunk, rows - m0), c = std::min(width, w.n - c0);
    float* part = part_scratch.get<float>(m * width);
    float* total = total_scratch.get<float>(m * width);
    float scales[kMostPanelColumns];
    for (int64_t group = 0; group < w.groups(); ++group) {
      const Weights columns = slice(w, group);
      const Activations of = a.of(group);
      uint8_t* codes = panel_scratch.get<uint8_t>(of.depth * width);
      v.multiply({columns, true, c0, codes, of.codes + m0 * of.depth, of.sums + m0, of.factors + m0, m, of.depth,
                  1, part, width, false});
      gather_scales(w, group, c0, c, scales);
      for (int64_t r = 0; r < m; ++r) add_group(part + r * width, c, scales, group == 0, total + r * width);
    }
    to.from(m0, c0).take(total, width, m, c, nullptr);
  });
}

// A few rows, one after the other, on a few rows of blocks that stay in the cache: memory is read once.
void multiply_few(const Variant& v, const Weights& w, const Activations& a, int64_t rows, const Target& to) {
  const int64_t blocks = w.n_blocks();
  for_each_item(ceil_div(blocks, kGemvBlocks), rows * w.n * w.k, [&](int64_t item) {
    const int64_t nb = item * kGemvBlocks, count = std::min(kGemvBlocks, blocks - nb);
    const int64_t first = nb * kBlockRows, columns = std::min(w.n - first, count * kBlockRows);
    const float* scales = w.scales != nullptr ? w.scales + first : nullptr;
    const bool is_done = scales == nullptr && columns == count * kBlockRows && to.takes_results_as_they_are(false);
    float part[kGemvBlocks * kBlockRows];
    for (int64_t m = 0; m < rows; ++m) {
      v.gemv({w.block(nb, 0), count, w.k_blocks(), a.codes + m * a.depth, a.sums[m], a.factors[m],
              is_done ? to.from(m, first).floats() : part});
      if (!is_done) to.from(m, first).take(part, columns, 1, columns, scales);
    }
  });
}

// The same with scales of groups: a few rows of blocks, group after group.
void multiply_few_grouped(const Variant& v, const Weights& w, const GroupedActivations& a, int64_t rows,
                          const Target& to) {
  const int64_t blocks = w.n_blocks();
  for_each_item(ceil_div(blocks, kGemvBlocks), rows * w.n * w.k, [&](int64_t item) {
    const int64_t nb = item * kGemvBlocks, count = std::min(kGemvBlocks, blocks - nb);
    const int64_t first = nb * kBlockRows, columns = std::min(w.n - first, count * kBlockRows);
    float part[kGemvBlocks * kBlockRows], total[kGemvBlocks * kBlockRows], scales[kGemvBlocks * kBlockRows];
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t group = 0; group < w.groups(); ++group) {
        const Activations of = a.of(group);
        const int64_t kb = group * w.group / kBlockColumns;
        v.gemv({w.block(nb, kb), count, of.depth / kBlockColumns, of.codes + m * of.depth, of.sums[m],
                of.factors[m], part, w.row_blocks, kb});
        gather_scales(w, group, first, columns, scales);
        add_group(part, columns, scales, group == 0, total);
      }
      to.from(m, first).take(total, columns, 1, columns, nullptr);
    }
  });
}

Activations with_scale_of(const Weights& w, const Input& x, Scratch& scratch) {
  return scaled({x.codes, x.sums, x.steps, x.depth}, x.rows, w.scale, scratch);
}

// One of two panels whose results meet before they leave the cache.
struct Half {
  const Weights& w;
  Activations a;
  Thin thin;

  // m rows from m0 on of its columns from c0 on, c of them, to part [m][panel_columns].
  void multiply(const Variant& v, int64_t m0, int64_t m, int64_t c0, int64_t c, float* part) const {
    const int64_t width = v.panel_columns;
    uint8_t* codes = panel_scratch.get<uint8_t>(a.depth * width);
    v.multiply({w, true, c0, codes, a.codes + m0 * a.depth, a.sums + m0, a.factors + m0, m, a.depth, 1, part, width,
                false});
    if (w.scales == nullptr && thin.rank == 0) return;
    const Thin rest = thin.rank == 0 ? thin : Thin{thin.left + m0 * thin.rank, thin.right + c0, thin.rank};
    const float* scales = w.scales == nullptr ? nullptr : w.scales + c0;
    finish({part, width, m, c, scales, rest, w.n, {part}, width, false});
  }
};

// Calls body(panel, m0, m) for every pair of panels and chunk of rows.
template <class Body>
void for_each_pair(const Input& x, int64_t panels, int64_t work, Body body) {
  const int64_t chunk = chunk_of(x.rows, x.depth, 1);
  for_each_item(ceil_div(x.rows, chunk) * panels, work, [&](int64_t item) {
    const int64_t m0 = item / panels * chunk;
    body(item % panels, m0, std::min(chunk, x.rows - m0));
  });
}

}  // namespace

Input::Input(const Variant& v, int64_t row_count, int64_t k, const ReadRows& read)
    : variant(v), rows(row_count), depth(round_up(k, kBlockColumns)) {
  const auto a = quantise(v, is_few() ? 1 : v.tile_rows, rows, k, kActivationRows, read);
  codes = a.codes;
  sums = a.sums;
  steps = a.factors;
}

void forward(const Weights& w, const Input& x, const Thin& thin, Result y) {
  const Variant& v = x.variant;
  const auto a = with_scale_of(w, x, factors_scratch);
  const Target to = {thin, y, w.n};
  if (w.scales != nullptr && w.groups() > 1) {
    const GroupedActivations by_group(a, x.is_few() ? 1 : v.tile_rows, x.rows, w.group);
    (x.is_few() ? multiply_few_grouped : multiply_grouped_panels)(v, w, by_group, x.rows, to);
  } else if (x.is_few()) {
    multiply_few(v, w, a, x.rows, to);
  } else {
    multiply_panels(v, w, true, a, x.rows, 1, to);
  }
}

void forward(const Variant& v, const Weights& w, const ReadRows& x, int64_t rows, const Thin& thin, Result y) {
  if (rows == 0) return;
  forward(w, Input(v, rows, w.k, x), thin, y);
}

void forward_gated(const Weights& gate, const Weights& up, Activation act, const Input& x, const Thin& gate_thin,
                   const Thin& up_thin, Result z) {
  const int64_t width = x.variant.panel_columns;
  const Half first = {gate, with_scale_of(gate, x, factors_scratch), gate_thin};
  const Half second = {up, with_scale_of(up, x, up_factors_scratch), up_thin};
  for_each_pair(x, ceil_div(gate.n, width), 2 * x.rows * gate.n * gate.k, [&](int64_t panel, int64_t m0, int64_t m) {
    const int64_t c0 = panel * width, c = std::min(width, gate.n - c0);
    const Target to = Target{{}, z, gate.n}.from(m0, c0);
    expect(to, m, c);
    float* parts = part_scratch.get<float>(2 * m * width);
    first.multiply(x.variant, m0, m, c0, c, parts);
    second.multiply(x.variant, m0, m, c0, c, parts + m * width);
    gate_block(act, parts, parts + m * width, width, m, c, to.out.data, z.is_bfloat16, gate.n);
  });
}

bool turns(const Weights& w, const Input& x, int64_t size) {
  return !x.is_few() && w.groups() == 1 && size / 2 % x.variant.panel_columns == 0;
}

void forward_turned(const Weights& w, const Input& x, const Thin& thin, const Angles& angles, int64_t size, Result y) {
  const int64_t width = x.variant.panel_columns, half = size / 2, of_a_head = half / width;
  const Half part = {w, with_scale_of(w, x, factors_scratch), thin};
  for_each_pair(x, w.n / size * of_a_head, x.rows * w.n * w.k, [&](int64_t panel, int64_t m0, int64_t m) {
    const int64_t i0 = panel % of_a_head * width, c0 = panel / of_a_head * size + i0;
    const Target to = Target{{}, y, w.n}.from(m0, c0);
    float* parts = part_scratch.get<float>(2 * m * width);
    part.multiply(x.variant, m0, m, c0, width, parts);
    part.multiply(x.variant, m0, m, c0 + half, width, parts + m * width);
    rotate_block(parts, parts + m * width, width, m, width, angles, m0, i0, half, to.out.data, y.is_bfloat16, w.n);
  });
}

void backward(const Variant& v, const Weights& w, const ReadRows& g, int64_t rows, int limbs, const Thin& thin,
              Result dx) {
  if (rows == 0) return;
  const auto multiply = [&](const Weights& part, const float* scales, const Target& to) {
    const auto a = quantise(v, v.tile_rows, rows, w.n, gradient_rows(limbs), [=](int64_t m, int64_t count, float* room) {
      const Rows from = g(m, count, room);
      if (scales == nullptr) return from;
      const float* floats = widened(from, count * w.n, room).floats();
      for (int64_t at = 0; at < count * w.n; at += w.n)
        std::transform(floats + at, floats + at + w.n, scales, room + at, std::multiplies<>());
      return Rows{room, false};
    });
    multiply_panels(v, part, false, scaled(a, rows, w.scale, factors_scratch), rows, limbs, to);
  };
  const Target to = {thin, dx, w.k};
  if (w.scales == nullptr || w.groups() == 1) {
    multiply(w, w.scales, to);
    return;
  }
  // Each group has its own scales, so its own gradient to quantise.
  float* scales = column_scratch.get<float>(w.n);
  for (int64_t group = 0; group < w.groups(); ++group) {
    gather_scales(w, group, 0, w.n, scales);
    multiply(slice(w, group), scales, to.from(0, group * w.group));
  }
}

void unpack(const Weights& w, int64_t first, int64_t rows, int8_t* codes) {
  for (int64_t r = first; r < first + rows; ++r)
    for (int64_t c = 0; c < w.k; c += 4) {
      const uint8_t* four =
          w.block(r / kBlockRows, c / kBlockColumns) + c % kBlockColumns / 16 * 64 + r % kBlockRows * 4;
      const int shift = static_cast<int>(c % 16 / 4 * 2);
      for (int64_t kk = 0; kk < std::min<int64_t>(4, w.k - c); ++kk)
        *codes++ = static_cast<int8_t>((four[kk] >> shift & 3) - 1);
    }
}

}  // namespace sterna

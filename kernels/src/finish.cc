#include "finish.h"

#include <cstring>

#ifdef STERNA_X86
#include <immintrin.h>
#endif

#include "bfloat16.h"
#include "clones.h"
#include "line.h"

namespace sterna {
namespace {

// The bits of a line, and the same in bfloat16.
using Bits = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));
constexpr int64_t kRows = 4;  // share each load of `right`

template <class Values, class T>
[[gnu::always_inline]] inline void write(const Values& values, int64_t count, T* to) {
  if (count == kLine) {
    memcpy(to, &values, sizeof values);
  } else {
    memcpy(to, &values, static_cast<size_t>(count) * sizeof(T));
  }
}

template <bool kStream>
[[gnu::always_inline]] inline void store_line(const Line& line, int64_t count, float* to) {
#ifdef STERNA_X86
  if (kStream) {
    __m128 parts[4];
    memcpy(parts, &line, sizeof parts);
    for (int i = 0; i < 4; ++i) _mm_stream_ps(to + 4 * i, parts[i]);
    return;
  }
#endif
  write(line, count, to);
}

// Rounds as `store` in bfloat16.h does. Half a cache line is not worth writing past the caches.
template <bool kStream>
[[gnu::always_inline]] inline void store_line(const Line& line, int64_t count, Bfloat16* to) {
  Bits bits;
  memcpy(&bits, &line, sizeof bits);
  write(__builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Halves), count, to);
}

[[gnu::always_inline]] inline void add_line(const float* from, int64_t count, Line& line) {
  Line there;
  load_line(from, count, there);
  line += there;
}

// Nothing is added to results in bfloat16.
[[gnu::always_inline]] inline void add_line(const Bfloat16*, int64_t, Line&) {}

template <class T, bool kStream, int kCount>
[[gnu::always_inline]] inline void finish_rows(const FinishTask& t, int64_t m, int64_t c, int64_t columns) {
  Line sums[kCount];
  for (int r = 0; r < kCount; ++r) load_line(t.part + (m + r) * t.part_stride + c, columns, sums[r]);
  if (t.scales != nullptr) {
    Line scales;
    load_line(t.scales + c, columns, scales);
    for (int r = 0; r < kCount; ++r) sums[r] *= scales;
  }
  for (int64_t j = 0; j < t.thin.rank; ++j) {
    Line right;
    load_line(t.thin.right + j * t.right_stride + c, columns, right);
    for (int r = 0; r < kCount; ++r) sums[r] += t.thin.left[(m + r) * t.thin.rank + j] * right;
  }
  for (int r = 0; r < kCount; ++r) {
    T* to = static_cast<T*>(t.out.data) + (m + r) * t.out_stride + c;
    if (t.out.is_added) add_line(to, columns, sums[r]);
    store_line<kStream>(sums[r], columns, to);
  }
}

template <class T, bool kStream>
[[gnu::always_inline]] inline void finish_lines(const FinishTask& t) {
  for (int64_t c = 0; c < t.columns; c += kLine) {
    const int64_t columns = t.columns - c < kLine ? t.columns - c : kLine;
    int64_t m = 0;
    if (columns == kLine)
      for (; m + kRows <= t.rows; m += kRows) finish_rows<T, kStream, kRows>(t, m, c, kLine);
    for (; m < t.rows; ++m) finish_rows<T, kStream, 1>(t, m, c, columns);
  }
}

STERNA_CLONES void finish_float(const FinishTask& t) {
  t.streams ? finish_lines<float, true>(t) : finish_lines<float, false>(t);
}

STERNA_CLONES void finish_bfloat16(const FinishTask& t) { finish_lines<Bfloat16, false>(t); }

}  // namespace

void finish(const FinishTask& t) { (t.out.is_bfloat16 ? finish_bfloat16 : finish_float)(t); }

}  // namespace sterna

// What the 256-bit variants of the products with an int8 matrix share.
//
// Everything here has internal linkage: each file that includes it gets its own copy with its own flags.
#pragma once

#include "avx2.h"
#include "int8.h"

namespace sterna {
namespace {

// 16 bytes of a row of W, zeros beyond the given rows and columns.
inline __m128i row16(const Int8PanelTask& t, int64_t row) {
  if (row >= t.rows) return _mm_setzero_si128();
  const int8_t* from = t.from + row * t.stride;
  if (t.columns == kColumns) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  alignas(16) int8_t edge[16] = {};
  memcpy(edge, from, static_cast<size_t>(t.columns));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(edge));
}

}  // namespace
}  // namespace sterna

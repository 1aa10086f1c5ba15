// What both kinds of products with AVX-VNNI share: the instruction.
//
// Everything here has internal linkage: each file that includes it gets its own copy with its own flags.
#pragma once

#include "avx2.h"

// The files *_evex.cc ask for the encoding of AVX-512, for tests on processors that have only that one.
#ifdef STERNA_EVEX
#define STERNA_DOT "%{evex%} vpdpbusd"
#else
#define STERNA_DOT "%{vex%} vpdpbusd"
#endif

namespace sterna {
namespace {

// sum += codes (unsigned) * x (signed), four products an int32. As an instruction, see avx512.h.
[[gnu::always_inline]] inline void dot(__m256i& sum, __m256i codes, __m256i x) {
  __asm__(STERNA_DOT " %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
}

}  // namespace
}  // namespace sterna

// Numbers in memory as float32 or bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

namespace sterna {

struct Bfloat16 {
  uint16_t bits;
};

[[gnu::always_inline]] inline float load(const float* x) { return *x; }

[[gnu::always_inline]] inline float load(const Bfloat16* x) {
  const uint32_t bits = static_cast<uint32_t>(x->bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

[[gnu::always_inline]] inline void store(float value, float* y) { *y = value; }

// To nearest, halves to even. A NaN may come out as an infinity: a training step with one is thrown away.
[[gnu::always_inline]] inline void store(float value, Bfloat16* y) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  y->bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace sterna

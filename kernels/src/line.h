// A cache line of float32 as one value; the compiler takes it apart where registers are shorter.
#pragma once

#include <cstdint>
#include <cstring>

namespace sterna {

using Line = float __attribute__((vector_size(64)));
inline constexpr int64_t kLine = 16;

// The first `count` numbers; zeros behind them.
[[gnu::always_inline]] inline void load_line(const float* from, int64_t count, Line& line) {
  if (count == kLine) {
    memcpy(&line, from, sizeof line);
  } else {
    line = Line{};
    memcpy(&line, from, static_cast<size_t>(count) * sizeof(float));
  }
}

}  // namespace sterna

// What one core can do at most: loops of nothing but one instruction, and of reading memory. For the benchmark,
// which states every speed as a share of these.
#pragma once

#include <cstdint>
#include <vector>

namespace sterna {

struct Ceiling {
  const char* name;
  bool (*runs_here)();
  int64_t operations;  // multiplications and additions of a round
  void (*run)(int64_t rounds);
};

// Those of this processor.
std::vector<const Ceiling*> ceilings();

// Reads every byte once, on `streams` (1 .. 16) stretches side by side; the sum keeps the reading from being dropped.
uint64_t read_memory(const uint8_t* from, int64_t bytes, int streams);

}  // namespace sterna

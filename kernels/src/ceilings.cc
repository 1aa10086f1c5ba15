#include "ceilings.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "amx_tiles.h"
#include "cpu.h"

namespace sterna {
namespace {

#ifdef STERNA_X86

// The instructions are written out, so that no compiler flag is needed and nothing is moved or dropped. Twelve
// independent sums hide every latency. Upper halves of registers are cleared at the end, as callers expect.
#define STERNA_TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define STERNA_CLOBBERS                                                                                   \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
      "xmm13", "xmm14", "xmm15"
#define STERNA_LOOP(name, body)                                                                                 \
  void name(int64_t rounds) {                                                                                   \
    __asm__ volatile("vpxor %%xmm14, %%xmm14, %%xmm14\n\tvpxor %%xmm15, %%xmm15, %%xmm15\n\t" STERNA_TWELVE(STERNA_ZERO) \
                     ".p2align 5\n1:\n\t" body "dec %0\n\tjnz 1b\n\tvzeroupper"                                  \
                     : "+r"(rounds)::STERNA_CLOBBERS);                                                           \
  }
#define STERNA_ZERO(i) "vpxor %%xmm" #i ", %%xmm" #i ", %%xmm" #i "\n\t"

#define STERNA_FMA256(i) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #i "\n\t"
#define STERNA_FMA512(i) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #i "\n\t"
#define STERNA_MADDUBS(i) "vpmaddubsw %%ymm14, %%ymm15, %%ymm13\n\tvpaddw %%ymm13, %%ymm" #i ", %%ymm" #i "\n\t"
#define STERNA_VEX_DOT(i) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #i "\n\t"
#define STERNA_DOT512(i) "vpdpbusd %%zmm14, %%zmm15, %%zmm" #i "\n\t"

STERNA_LOOP(fma256, STERNA_TWELVE(STERNA_FMA256))
STERNA_LOOP(fma512, STERNA_TWELVE(STERNA_FMA512))
STERNA_LOOP(maddubs, STERNA_TWELVE(STERNA_MADDUBS))
STERNA_LOOP(avxvnni, STERNA_TWELVE(STERNA_VEX_DOT))
STERNA_LOOP(avx512vnni, STERNA_TWELVE(STERNA_DOT512))

#ifdef STERNA_AMX

#define STERNA_TILES(name, product)                                                               \
  void name(int64_t rounds) {                                                                     \
    const TileConfig config;                                                                      \
    __asm__ volatile("ldtilecfg %1\n1:\n\t" product " %%tmm6, %%tmm4, %%tmm0\n\t" product         \
                     " %%tmm7, %%tmm4, %%tmm1\n\t" product " %%tmm6, %%tmm5, %%tmm2\n\t" product \
                     " %%tmm7, %%tmm5, %%tmm3\n\tdec %0\n\tjnz 1b\n\ttilerelease"                 \
                     : "+r"(rounds)                                                               \
                     : "m"(config));                                                              \
  }
STERNA_TILES(amx_int8, "tdpbsud")
STERNA_TILES(amx_bf16, "tdpbf16ps")

#endif

const Ceiling kCeilings[] = {
    {"fp32 256-bit", has_avx2, 12 * 8 * 2, fma256},
    {"fp32 512-bit", has_avx512vnni, 12 * 16 * 2, fma512},
    {"avx2", has_avx2, 12 * 32 * 2, maddubs},
    {"avxvnni", has_avxvnni, 12 * 32 * 2, avxvnni},
    {"avx512vnni", has_avx512vnni, 12 * 64 * 2, avx512vnni},
#ifdef STERNA_AMX
    {"amx", has_amx, 4 * 16 * 16 * 64 * 2, amx_int8},
    {"amx bf16", has_amx_bf16, 4 * 16 * 16 * 32 * 2, amx_bf16},
#endif
};

#endif

}  // namespace

std::vector<const Ceiling*> ceilings() {
  std::vector<const Ceiling*> here;
#ifdef STERNA_X86
  for (const Ceiling& c : kCeilings)
    if (c.runs_here()) here.push_back(&c);
#endif
  return here;
}

uint64_t read_memory(const uint8_t* from, int64_t bytes, int streams) {
  constexpr int64_t kLine = 64, kAhead = 2048;
  uint64_t sums[kLine / 8] = {};
  const auto add = [&](const uint8_t* line) {
    uint64_t words[kLine / 8];
    memcpy(words, line, sizeof words);
    for (int i = 0; i < kLine / 8; ++i) sums[i] += words[i];
  };
  const int64_t stretch = bytes / streams / kLine * kLine;
  for (int64_t i = 0; i < stretch; i += kLine)
    for (int s = 0; s < streams; ++s) {
      __builtin_prefetch(from + s * stretch + i + kAhead);
      add(from + s * stretch + i);
    }
  for (int64_t i = stretch * streams; i + kLine <= bytes; i += kLine) add(from + i);
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  for (int64_t i = bytes / kLine * kLine; i < bytes; ++i) sum += from[i];
  return sum;
}

}  // namespace sterna

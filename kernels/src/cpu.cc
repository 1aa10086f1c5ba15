#include "cpu.h"

#ifdef STERNA_X86

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace sterna {
namespace {

// Register sets that the operating system saves (XCR0). Without its bit, an instruction set faults.
constexpr uint64_t kAvxState = 0x6;       // xmm, ymm
constexpr uint64_t kAvx512State = 0xe6;   // and masks, upper zmm halves, zmm16-31
constexpr uint64_t kTileState = 0x60000;  // tile configuration, tiles

constexpr bool bit(unsigned word, int index) { return word >> index & 1; }

struct Features {
  unsigned leaf1_ecx = 0, leaf7_ebx = 0, leaf7_ecx = 0, leaf7_edx = 0, leaf7_1_eax = 0;
  uint64_t state = 0;

  Features() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    leaf1_ecx = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) leaf7_ebx = b, leaf7_ecx = c, leaf7_edx = d;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) leaf7_1_eax = a;
    if (bit(leaf1_ecx, 27)) {  // OSXSAVE: xgetbv exists
      uint32_t low, high;
      __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      state = static_cast<uint64_t>(high) << 32 | low;
    }
  }

  bool saves(uint64_t registers) const { return (state & registers) == registers; }
};

const Features& features() {
  static const Features found;
  return found;
}

// Tiles are 8 KiB of state a thread, which Linux (5.16) gives only to a process that asks.
bool allowed_tiles() {
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

}  // namespace

bool has_avx2() {
  const Features& f = features();
  return f.saves(kAvxState) && bit(f.leaf1_ecx, 28) && bit(f.leaf7_ebx, 5);
}

bool has_avxvnni() { return has_avx2() && bit(features().leaf7_1_eax, 4); }

bool has_avx512vnni() {
  const Features& f = features();
  const bool foundation = bit(f.leaf7_ebx, 16), bytes = bit(f.leaf7_ebx, 30), shorter = bit(f.leaf7_ebx, 31);
  return f.saves(kAvx512State) && foundation && bytes && shorter && bit(f.leaf7_ecx, 11);
}

bool has_amx() {
  const Features& f = features();
  if (!has_avx512vnni() || !f.saves(kTileState) || !bit(f.leaf7_edx, 24) || !bit(f.leaf7_edx, 25))
    return false;
  static const bool allowed = allowed_tiles();
  return allowed;
}

bool has_amx_bf16() { return has_amx() && bit(features().leaf7_edx, 22); }

bool has_avx512bf16() { return has_avx512vnni() && bit(features().leaf7_1_eax, 5); }

}  // namespace sterna

#endif

#ifdef STERNA_ARM

#include <sys/auxv.h>

namespace sterna {

// Linux tells only what it lets a process use. The bits by number, because older headers lack the names.
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }

bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }

}  // namespace sterna

#endif

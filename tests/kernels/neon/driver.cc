// Runs each NEON variant beside the scalar one on the same input, and compares every byte that they write.
//
// Prints one line a variant: what was equal, or that the processor lacks it. Exits with 1 at the first
// difference.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "../../../kernels/src/variant.h"

namespace {

using namespace sterna;

// Around 4, 16 and 64, the steps of everything here.
constexpr int kSides[] = {1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 79, 129, 193};
constexpr int64_t kMost = 32;    // rows, limb rows, blocks: more than any case has
constexpr int64_t kDepth = 256;  // longest row
constexpr int64_t kRoom = kMost * kDepth;

uint32_t state = 20240227;

uint32_t draw() {
  state = state * 1664525 + 1013904223;
  return state >> 8;
}

float drawn_float() { return (static_cast<float>(draw() % 20001) - 10000.0f) / 777.0f; }

alignas(64) uint8_t packed[3 * kRoom], codes[2][kRoom];
alignas(64) int8_t rows[kRoom], quantised[2][2][kRoom];
int32_t sums[kMost];
float given[kDepth], factors[kMost], results[2][kRoom];

const char* checking;

void expect_equal(const char* what, const void* scalar, const void* neon, size_t bytes, const char* sizes) {
  if (memcmp(scalar, neon, bytes) == 0) return;
  printf("%s: %s differs at %s\n", checking, what, sizes);
  exit(1);
}

enum Fill { kDrawn, kLargest, kDamaged, kFills };

// Codes of all four values, and 3 alone; activations of all values, and the extremes alone.
void fill_operands(Fill fill, int64_t limb_rows) {
  for (uint8_t& byte : packed)
    byte = fill == kDrawn ? draw() & 0xaa : fill == kLargest ? 0xff : draw() & 0xff;
  for (int64_t r = 0; r < kMost; ++r) {
    sums[r] = r < limb_rows ? static_cast<int32_t>(draw() % 4001) - 2000 : 0;
    factors[r] = drawn_float();
    for (int64_t d = 0; d < kDepth; ++d)
      rows[r * kDepth + d] = static_cast<int8_t>(fill == kLargest ? (r % 2 == 0 ? -128 : 127)
                                                                  : static_cast<int>(draw() % 256) - 128);
  }
  factors[0] = -0.0f;
}

constexpr int kPatterns = 7;

// Drawn values; halves; limbs of 1 and -128; the smallest and the largest floats; values that are not finite.
void fill_row(int pattern, int length) {
  for (int i = 0; i < length; ++i) {
    const bool is_even = i % 2 == 0;
    given[i] = drawn_float();
    if (pattern == 1) given[i] = i == 0 ? 127 : (i - 100) / 2.0f;
    if (pattern == 2) given[i] = i == 0 ? 1 : 128.0f / 32512;
    if (pattern == 3) given[i] = is_even ? 1e-45f : -0.0f;
    if (pattern == 4) given[i] = is_even ? 3e38f : -3e38f;
  }
  if (pattern == 5) given[length - 1] = -__builtin_inff();
  if (pattern == 6) given[length / 2] = __builtin_nanf("");
}

// One limb rounded to nearest and by chance, two limbs; rows one after the other and in tiles of 16.
int check_quantisation(const Variant& v) {
  int cases = 0;
  for (int length : kSides)
    for (int pattern = 0; pattern < kPatterns; ++pattern)
      for (int mode = 0; mode < 3; ++mode)
        for (int64_t stride : {64, 1024}) {
          fill_row(pattern, length);
          const int limbs = mode == 2 ? 2 : 1;
          const float floor = pattern == 3 ? 0x1p-100f : 1e-5f;
          float steps[2] = {};
          int32_t totals[2][2] = {};
          memset(quantised, 0x55, sizeof quantised);
          const Variant* both[2] = {&kScalar, &v};
          for (int k = 0; k < 2; ++k)
            both[k]->quantise_row({given, length, round_up(length, 64), floor, limbs, quantised[k][0],
                                   quantised[k][1], stride, totals[k], &steps[k], mode == 1, 7 * length});
          char sizes[80];
          snprintf(sizes, sizeof sizes, "length %d, pattern %d, mode %d", length, pattern, mode);
          expect_equal("a code", quantised[0], quantised[1], sizeof quantised[0], sizes);
          expect_equal("a sum of codes", totals[0], totals[1], sizeof totals[0], sizes);
          expect_equal("a step", &steps[0], &steps[1], sizeof steps[0], sizes);
          ++cases;
        }
  return cases;
}

void run_panel(const Variant& v, const Weights& w, bool is_forward, int64_t column, int64_t m, int limbs,
               int k) {
  const int64_t depth = round_up(is_forward ? w.k : w.n, 64);
  v.multiply({w, is_forward, column, codes[k], rows, sums, factors, m, depth, limbs, results[k], 19, false});
}

// Forward, backward with one limb, backward with two.
int check_products(const Variant& v) {
  int cases = 0, pairs = 0;
  for (int shift = 0; shift < 3; ++shift, pairs += 5)
    for (int n : kSides)
      for (int k : kSides) {
        const int64_t m = 1 + pairs++ % 13;
        Weights w = {packed, n, k, 1.0f, nullptr};
        w.row_blocks += shift;  // a slice of a wider matrix, but for the first time around
        for (int fill = 0; fill < kFills; ++fill)
          for (int kind = 0; kind < 3; ++kind) {
            const bool is_forward = kind == 0;
            const int limbs = kind == 2 ? 2 : 1;
            fill_operands(static_cast<Fill>(fill), m * limbs);
            for (int64_t column = 0; column < (is_forward ? n : k); column += 16) {
              memset(results, 0x55, sizeof results);
              run_panel(kScalar, w, is_forward, column, m, limbs, 0);
              run_panel(v, w, is_forward, column, m, limbs, 1);
              char sizes[80];
              snprintf(sizes, sizeof sizes, "%lld rows, n %d, k %d, kind %d, fill %d",
                       static_cast<long long>(m), n, k, kind, fill);
              expect_equal("a product", results[0], results[1], sizeof results[0], sizes);
              ++cases;
            }
          }
      }
  return cases;
}

int check_gemv(const Variant& v) {
  int cases = 0;
  for (int64_t n_blocks = 1; n_blocks <= 5; ++n_blocks)
    for (int64_t k_blocks = 1; k_blocks <= 4; ++k_blocks)
      for (int fill = 0; fill < kFills; ++fill) {
        fill_operands(static_cast<Fill>(fill), 1);
        memset(results, 0x55, sizeof results);
        const int64_t row_blocks = k_blocks + fill;  // a slice of a wider matrix, but for the first fill
        kScalar.gemv({packed, n_blocks, k_blocks, rows, sums[0], factors[1], results[0], row_blocks});
        v.gemv({packed, n_blocks, k_blocks, rows, sums[0], factors[1], results[1], row_blocks});
        char sizes[80];
        snprintf(sizes, sizeof sizes, "%d x %d blocks, fill %d", static_cast<int>(n_blocks),
                 static_cast<int>(k_blocks), fill);
        expect_equal("a product with one row", results[0], results[1], sizeof results[0], sizes);
        ++cases;
      }
  return cases;
}

}  // namespace

int main() {
  for (const Variant* v : {&kNeonDotprod, &kNeonI8mm}) {
    checking = v->name;
    if (!v->runs_here()) {
      printf("%s: does not run here\n", v->name);
      continue;
    }
    const int quantisations = check_quantisation(*v), products = check_products(*v),
              rows_alone = check_gemv(*v);
    printf("%s: %d quantised rows, %d panels, %d gemvs equal\n", v->name, quantisations, products,
           rows_alone);
  }
  return 0;
}

#include "threads.h"

#include <omp.h>

#include <algorithm>
#include <atomic>

namespace sterna {

// About 50 us of work at 200 multiplications per ns. Below it, waking a thread costs more than it brings.
constexpr int64_t kOneThreadWork = 10'000'000;

// Items come from a shared counter, never from a static split: when another process holds one of the cores, a
// static split waits for that core, while here the other threads take over its items.
void for_each_item(int64_t items, int64_t work, void (*body)(void*, int64_t), void* context) {
  const int threads = static_cast<int>(std::min<int64_t>(omp_get_max_threads(), items));
  if (threads <= 1 || work < kOneThreadWork || omp_in_parallel()) {
    for (int64_t item = 0; item < items; ++item) body(context, item);
    return;
  }
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads)
  for (int64_t item = next.fetch_add(1); item < items; item = next.fetch_add(1)) body(context, item);
}

}  // namespace sterna

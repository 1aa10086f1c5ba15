#include "threads.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace sterna {
namespace {

// About 20 us of work at 200 multiplications per ns. Below it, sharing costs more than it brings.
constexpr int64_t kOneThreadWork = 4'000'000;

using Clock = std::chrono::steady_clock;

// Looks for up to `limit` whether `condition` holds, without giving up the core.
template <class Condition>
bool holds_soon(std::chrono::microseconds limit, Condition condition) {
  const Clock::time_point end = Clock::now() + limit;
  do {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return true;
#ifdef STERNA_X86
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      __asm__ volatile("yield");
#endif
    }
  } while (Clock::now() < end);
  return false;
}

// Whoever asks for a loop takes its items from the first one on, helpers take them from `share` on, and who is through
// with its part goes on from the far end of the other's. So a core gets much the same items in one loop after another,
// neighbours in a row, and finds in its cache what the last loop left there.
struct Loop {
  int64_t items;
  void (*body)(void*, int64_t);
  void* context;
  int64_t share = items;
  std::atomic<int64_t> taken{0}, by_helpers{0};

  void work() {
    for (int64_t i = 0; taken.fetch_add(1) < items; ++i) body(context, i < share ? i : items - 1 - (i - share));
  }

  void help() {
    while (taken.fetch_add(1) < items) {
      const int64_t i = share + by_helpers.fetch_add(1);
      body(context, i < items ? i : share - 1 - (i - items));
    }
  }
};

// Threads that sleep until there is a loop. Whoever asks for one starts at once and waits at the end only for
// those that are inside an item: a helper whose core another process holds has simply not come. A team of
// OpenMP waits for all its threads, and on a busy machine that makes two threads much slower than one.
//
// A helper that loses its core inside an item is still waited for. Who had to wait for longer than a moment does
// without helpers for so much longer that the waiting is a small part of the time. Waking takes as long as a small
// product: a helper looks around for a moment before it sleeps again, for products come one after the other.
class Helpers {
 public:
  void run(Loop& loop, int helpers) {
    const Clock::time_point start = Clock::now();
    if (start < resting_until_) {
      loop.work();
      return;
    }
    loop.share = loop.items / (helpers + 1);
    {
      const std::lock_guard lock(mutex_);
      for (; threads_ < helpers; ++threads_) std::thread(&Helpers::help, this).detach();
      loop_ = &loop;
      places_ = helpers;
    }
    wake_.notify_all();
    loop.work();
    const Clock::time_point done = Clock::now();
    std::unique_lock lock(mutex_);
    loop_ = nullptr;
    places_ = 0;
    if (inside_ > 0) {
      lock.unlock();
      holds_soon(kMoment, [this] { return inside_ == 0; });
      lock.lock();
    }
    left_.wait(lock, [this] { return inside_ == 0; });
    const Clock::time_point end = Clock::now();
    if (end - done > kMoment + (done - start) / 8) resting_until_ = end + 32 * (end - done);
  }

  std::mutex in_use;  // by the one loop that may run

 private:
  static constexpr std::chrono::microseconds kMoment{100};  // about as long as an item takes

  void help() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return places_ > 0; });
      --places_;
      ++inside_;
      Loop& loop = *loop_;
      lock.unlock();
      loop.help();
      lock.lock();
      if (--inside_ == 0) left_.notify_one();
      lock.unlock();
      holds_soon(kMoment, [this] { return places_ > 0; });
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, left_;
  Clock::time_point resting_until_{};
  Loop* loop_ = nullptr;
  int threads_ = 0;
  std::atomic<int> places_{0}, inside_{0};  // changed under the mutex, looked at without it too
};

// Threads do not survive a fork: a child starts its own. They sleep until the process ends, and so does this.
Helpers& helpers() {
  static std::mutex mutex;
  static Helpers* current = nullptr;
  static pid_t owner = 0;
  const std::lock_guard lock(mutex);
  if (owner != getpid()) {
    current = new Helpers;
    owner = getpid();
  }
  return *current;
}

}  // namespace

// Items are handed out one by one, never split beforehand: when another process holds one of the cores, the other
// threads take over the items. How many threads there may be is OpenMP's figure, which torch sets.
void for_each_item(int64_t items, int64_t work, void (*body)(void*, int64_t), void* context) {
  Loop loop = {items, body, context};
  const int threads = static_cast<int>(std::min<int64_t>(omp_get_max_threads(), items));
  if (threads <= 1 || work < kOneThreadWork || omp_in_parallel()) {
    loop.work();
    return;
  }
  Helpers& all = helpers();
  const std::unique_lock alone(all.in_use, std::try_to_lock);
  if (alone.owns_lock()) {
    all.run(loop, threads - 1);
  } else {
    loop.work();
  }
}

}  // namespace sterna

// Memory that a thread keeps for its next product; grows, never shrinks before the thread ends.
#pragma once

#include <cstdlib>
#include <new>

#include "layout.h"

namespace sterna {

class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  // 64-byte aligned, with whatever the last product left in it.
  template <class T>
  T* get(int64_t count) {
    const size_t bytes = static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    if (bytes > bytes_) {
      std::free(data_);
      bytes_ = 0;
      data_ = std::aligned_alloc(64, bytes);
      if (data_ == nullptr) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace sterna

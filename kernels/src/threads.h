// A loop whose items are handed out one by one to this thread and to helpers that have nothing else to do.
#pragma once

#include <cstdint>

namespace sterna {

void for_each_item(int64_t items, int64_t work, void (*body)(void* context, int64_t item), void* context);

// Calls body(item) for 0 <= item < items. `work` is in multiplications: small loops stay on this thread.
template <class Body>
void for_each_item(int64_t items, int64_t work, Body body) {
  for_each_item(
      items, work, [](void* context, int64_t item) { (*static_cast<Body*>(context))(item); }, &body);
}

}  // namespace sterna

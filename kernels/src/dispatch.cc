#include "dispatch.h"

#include <atomic>

namespace sterna {
namespace {

const Variant* const kFastestFirst[] = {
#ifdef STERNA_AMX
    &kAmx,
#endif
#ifdef STERNA_X86
    &kAvx512Vnni, &kAvxVnni, &kAvx2,
#endif
#ifdef STERNA_ARM
    &kNeonI8mm, &kNeonDotprod,
#endif
    &kScalar,
};

std::atomic<const Variant*>& current() {
  static std::atomic<const Variant*> chosen{variants().front()};
  return chosen;
}

}  // namespace

const std::vector<const Variant*>& variants() {
  static const std::vector<const Variant*> found = [] {
    std::vector<const Variant*> here;
    for (const Variant* v : kFastestFirst)
      if (v->runs_here()) here.push_back(v);
    return here;
  }();
  return found;
}

const Variant& variant_in_use() { return *current().load(std::memory_order_relaxed); }

bool use_variant(std::string_view name) {
  std::vector<const Variant*> all = variants();
#ifdef STERNA_X86
  for (const Variant* v : {&kAvxVnniEvex, &kAmxEmulated})
    if (v->runs_here()) all.push_back(v);
#endif
  for (const Variant* v : all)
    if (name == v->name) {
      current().store(v, std::memory_order_relaxed);
      return true;
    }
  return false;
}

}  // namespace sterna

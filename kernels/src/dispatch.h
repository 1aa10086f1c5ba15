// Which variant a process uses: the fastest that runs here, chosen once, unless somebody asks for another.
#pragma once

#include <string_view>
#include <vector>

#include "variant.h"

namespace sterna {

// The variants that run here, fastest first; the last is "scalar". The two for tests are not here.
const std::vector<const Variant*>& variants();

const Variant& variant_in_use();

// False, and nothing changes, if there is no variant of that name that runs here.
bool use_variant(std::string_view name);

}  // namespace sterna

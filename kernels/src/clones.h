// For plain C++ without an instruction set of its own: compiled once for each level of x86-64 and chosen when the
// library is loaded.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#define STERNA_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define STERNA_CLONES
#endif

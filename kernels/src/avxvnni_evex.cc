// avxvnni.cc in the encoding of AVX-512: the variant "avxvnni-evex", for tests.
#define STERNA_EVEX
#include "avxvnni.cc"

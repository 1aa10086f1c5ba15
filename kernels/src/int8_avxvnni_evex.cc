// int8_avxvnni.cc for processors that have vpdpbusd in the AVX-512 encoding only; for tests.
#define STERNA_EVEX
#include "int8_avxvnni.cc"

// int8_amx.cc with tiles in memory; for tests on processors without AMX.
#define STERNA_AMX_EMULATED
#include "int8_amx.cc"

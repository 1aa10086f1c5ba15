// amx.cc with its tiles in memory: the variant "amx-emulated", for tests.
#define STERNA_AMX_EMULATED
#include "amx.cc"

// attention_gradient_amx.cc with its tiles in memory: for tests, beside the variant "amx-emulated".
#define STERNA_AMX_EMULATED
#include "attention_gradient_amx.cc"

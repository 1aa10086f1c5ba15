// Which instruction sets the processor has and the operating system lets us use.
#pragma once

namespace sterna {

bool has_avx2();
bool has_avxvnni();     // vpdpbusd on 256-bit registers
bool has_avx512vnni();  // with F, BW and VL
bool has_amx();         // int8 tiles; asks Linux for the permission to use them, for the whole process
bool has_amx_bf16();
bool has_avx512bf16();

bool has_dotprod();  // ARM: sdot
bool has_i8mm();     // ARM: smmla, usdot

}  // namespace sterna

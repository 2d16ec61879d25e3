// The CPU kernels compiled for one instruction set; the flags are set in CMakeLists.txt.
#define LACUNA_ISA generic
#define LACUNA_LANES 4
#include "attention/cpu/prefill_impl.h"
// (prefill_impl.h defines constants that the others use)
#include "attention/cpu/decode_impl.h"
#include "attention/cpu/index_impl.h"
#include "attention/cpu/table_impl.h"

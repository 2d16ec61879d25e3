// The table of one instruction set.
#pragma once

#include "attention/cpu/kernels.h"

namespace lacuna::LACUNA_ISA {

#define LACUNA_TEXT_(x) #x
#define LACUNA_TEXT(x) LACUNA_TEXT_(x)

extern const CpuKernels kTable;
const CpuKernels kTable = {.name = LACUNA_TEXT(LACUNA_ISA),
                           .max_rows = kMaxVectors * kLanes,
                           .prefill_scratch = prefill_scratch,
                           .prefill_rows = prefill_rows,
                           .decode_run = decode_run,
                           .gemm_nt = gemm_nt,
                           .pack_size = pack_size,
                           .exp_sum = exp_sum,
                           .maximum = maximum,
                           .add_scaled = add_scaled,
                           .max_scaled = max_scaled,
                           .page_bounds = page_bounds};

}  // namespace lacuna::LACUNA_ISA

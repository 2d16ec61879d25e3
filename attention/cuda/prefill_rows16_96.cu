#include "attention/cuda/prefill_rows16_portable.cuh"

namespace lacuna {
template bool launch_prefill_rows16<96>(const PrefillArgs&, int, cudaStream_t);
}

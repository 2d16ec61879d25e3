#include "attention/cuda/prefill_portable.cuh"

namespace lacuna {
template void launch_prefill_portable<64>(const PrefillArgs&, cudaStream_t);
}

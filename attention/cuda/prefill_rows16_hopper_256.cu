#include "attention/cuda/prefill_rows16_hopper.cuh"

namespace lacuna {
template void launch_prefill_rows16_hopper<256>(const PrefillArgs&, const HopperMaps&, int, cudaStream_t);
}

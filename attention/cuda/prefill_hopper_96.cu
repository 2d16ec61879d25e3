#include "attention/cuda/prefill_hopper_launch.cuh"

namespace lacuna {
template void launch_prefill_hopper<96>(const PrefillArgs&, const HopperMaps&, int, cudaStream_t);
}

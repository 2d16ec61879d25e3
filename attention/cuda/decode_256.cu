#include "attention/cuda/decode.cuh"

namespace lacuna {
template void launch_decode<256>(const DecodeArgs&, int, int, cudaStream_t);
}

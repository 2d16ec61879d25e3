#include "attention/cuda/decode.cuh"

namespace lacuna {
template void launch_decode<64>(const DecodeArgs&, int, int, cudaStream_t);
}

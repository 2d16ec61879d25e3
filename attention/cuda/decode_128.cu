#include "attention/cuda/decode.cuh"

namespace lacuna {
template void launch_decode<128>(const DecodeArgs&, int, int, cudaStream_t);
}

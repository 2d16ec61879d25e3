#include "attention/cuda/window_scores.cuh"

namespace lacuna {
template void launch_window_pass<128>(const WindowArgs&, int, bool, cudaStream_t);
}

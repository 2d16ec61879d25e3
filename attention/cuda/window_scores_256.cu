#include "attention/cuda/window_scores.cuh"

namespace lacuna {
template void launch_window_pass<256>(const WindowArgs&, int, bool, cudaStream_t);
}

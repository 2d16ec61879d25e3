#include "attention/cuda/window_scores.cuh"

namespace lacuna {
template void launch_window_pass<256>(const WindowArgs&, WindowPass, cudaStream_t);
}

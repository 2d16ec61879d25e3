#include "attention/cuda/window_scores.cuh"

namespace lacuna {
template void launch_window_pass<96>(const WindowArgs&, WindowPass, cudaStream_t);
}

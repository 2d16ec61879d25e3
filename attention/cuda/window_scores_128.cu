#include "attention/cuda/window_scores.cuh"

namespace lacuna {
template void launch_window_pass<128>(const WindowArgs&, WindowPass, cudaStream_t);
}

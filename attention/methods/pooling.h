// Means over blocks of rows.
#pragma once

#include <vector>

#include "attention/types.h"

namespace lacuna {

/// [ceil(tokens / block), head_dim]: means over the rows of each block, the last block over the rows it has.
/// Sums in fp32, ascending.
std::vector<float> mean_pool(const HeadsView& x, int head, int block);

}  // namespace lacuna

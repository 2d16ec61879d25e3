#include "attention/methods/pooling.h"

#include <algorithm>

namespace lacuna {

std::vector<float> mean_pool(const HeadsView& x, int head, int block) {
  const auto dim = static_cast<std::size_t>(x.head_dim);
  const std::int64_t blocks = (x.tokens + block - 1) / block;
  std::vector<float> means(static_cast<std::size_t>(blocks) * dim);
  for (std::int64_t b = 0; b < blocks; ++b) {
    float* sum = means.data() + static_cast<std::size_t>(b) * dim;
    const std::int64_t begin = b * block, end = std::min(begin + block, x.tokens);
    for (std::int64_t t = begin; t < end; ++t) {
      const float* row = x.row(head, t);
      for (std::size_t c = 0; c < dim; ++c) sum[c] += row[c];
    }
    const auto rows = static_cast<float>(end - begin);
    for (std::size_t c = 0; c < dim; ++c) sum[c] /= rows;
  }
  return means;
}

}  // namespace lacuna

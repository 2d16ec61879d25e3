// The inner loops, written once over a vector type V. Included by kernels_<isa>.cpp only, inside an unnamed
// namespace: these files are compiled with flags of their own, so nothing here may have external linkage.
//
// V has: kWidth, type `R`, load, store, load of bf16 and fp16, set, add, sub, mul, div, fma, max, exp, sum,
// any_nan.

template <class T>
inline typename V::R load_weights(const T* p);
template <>
inline typename V::R load_weights<float>(const float* p) {
  return V::load(p);
}
template <>
inline typename V::R load_weights<BFloat16>(const BFloat16* p) {
  return V::load_bf16(&p->bits);
}
template <>
inline typename V::R load_weights<Float16>(const Float16* p) {
  return V::load_f16(&p->bits);
}

/// ROWS x (VECTORS * kWidth) outputs in registers. a: [inputs][ROWS]; vector j of b is at b + offset[j],
/// stride kPanel.
template <int ROWS, int VECTORS, class T>
inline void multiply(const float* a, const T* b, const std::int64_t* offset, std::int64_t inputs,
                     typename V::R (&acc)[ROWS][VECTORS]) {
  for (int r = 0; r < ROWS; ++r) {
    for (int j = 0; j < VECTORS; ++j) acc[r][j] = V::zero();
  }
  for (std::int64_t k = 0; k < inputs; ++k) {
    typename V::R w[VECTORS];
    for (int j = 0; j < VECTORS; ++j) w[j] = load_weights<T>(b + offset[j]);
    for (int r = 0; r < ROWS; ++r) {
      const typename V::R x = V::set(a[r]);
      for (int j = 0; j < VECTORS; ++j) acc[r][j] = V::fma(x, w[j], acc[r][j]);
    }
    a += ROWS;
    b += kPanel;
  }
}

/// Adds bias or the old y and writes the first `columns` of a run of kWidth.
inline void finish(typename V::R value, const float* bias, bool accumulate, float* y, std::int64_t columns) {
  if (columns >= V::kWidth) {
    if (bias != nullptr) value = V::add(value, V::load(bias));
    if (accumulate) value = V::add(V::load(y), value);
    V::store(y, value);
    return;
  }
  alignas(64) float tail[V::kWidth];
  V::store(tail, value);
  for (std::int64_t c = 0; c < columns; ++c) {
    const float sum = bias != nullptr ? tail[c] + bias[c] : tail[c];
    y[c] = accumulate ? y[c] + sum : sum;
  }
}

template <int ROWS, int VECTORS, class T>
void gemm_tile(const float* a, const T* b, const std::int64_t* offset, const std::int64_t* column,
               const GemmBlock& block, float* y) {
  typename V::R acc[ROWS][VECTORS];
  multiply<ROWS, VECTORS, T>(a, b, offset, block.inputs, acc);
  for (int r = 0; r < ROWS; ++r) {
    for (int j = 0; j < VECTORS; ++j) {
      const std::int64_t left = block.columns - column[j];
      if (left <= 0) continue;
      finish(acc[r][j], block.bias != nullptr ? block.bias + column[j] : nullptr, block.accumulate,
             y + r * block.y_stride + column[j], left);
    }
  }
}

template <int VECTORS, class T>
using Tile = void (*)(const float*, const T*, const std::int64_t*, const std::int64_t*, const GemmBlock&,
                      float*);

/// The tile for 1 to kRowGroup rows.
template <int VECTORS, class T, int... ROWS>
inline Tile<VECTORS, T> tile_for(std::int64_t rows, std::integer_sequence<int, ROWS...>) {
  static constexpr Tile<VECTORS, T> kTiles[] = {gemm_tile<ROWS + 1, VECTORS, T>...};
  return kTiles[rows - 1];
}

/// All rows of the block against VECTORS vectors of columns, so that these weights come from memory once.
template <int VECTORS, class T>
inline void gemm_columns(const GemmBlock& block, std::int64_t first_column) {
  const auto* b = static_cast<const T*>(block.b);
  std::int64_t offset[VECTORS], column[VECTORS];
  for (int j = 0; j < VECTORS; ++j) {
    column[j] = first_column + j * V::kWidth;
    offset[j] = column[j] / kPanel * kPanel * block.inputs + column[j] % kPanel;
  }
  for (std::int64_t row = 0; row < block.rows; row += kRowGroup) {
    const std::int64_t rows = block.rows - row < kRowGroup ? block.rows - row : kRowGroup;
    constexpr int kMost = VECTORS == kVectors ? kRowGroup : kFewRows;
    tile_for<VECTORS, T>(rows, std::make_integer_sequence<int, kMost>())(
        block.a + row * block.inputs, b, offset, column, block, block.y + row * block.y_stride);
  }
}

template <class T>
void gemm_typed(const GemmBlock& block) {
  const std::int64_t end = block.panels * kPanel;
  std::int64_t column = 0;
  // Few rows leave registers free: more columns at once hide the latency of the multiply-add chain.
  constexpr std::int64_t kWide = kManyVectors * V::kWidth, kNarrow = kVectors * V::kWidth;
  if (block.rows <= kFewRows) {
    for (; column + kWide <= end; column += kWide) gemm_columns<kManyVectors, T>(block, column);
  }
  for (; column < end; column += kNarrow) gemm_columns<kVectors, T>(block, column);
}

void gemm(const GemmBlock& block) {
  switch (block.dtype) {
    case DType::kBF16:
      return gemm_typed<BFloat16>(block);
    case DType::kF16:
      return gemm_typed<Float16>(block);
    default:
      return gemm_typed<float>(block);
  }
}

void pack_rows(const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t inputs, float* a) {
  for (std::int64_t row = 0; row < rows; row += kRowGroup) {
    const std::int64_t group = rows - row < kRowGroup ? rows - row : kRowGroup;
    const float* from = x + row * x_stride;
    if (group == 1) {
      std::memcpy(a, from, static_cast<std::size_t>(inputs) * sizeof(float));
    } else if (group == kRowGroup) {
      for (std::int64_t k = 0; k < inputs; ++k) {
        for (int r = 0; r < kRowGroup; ++r) a[k * kRowGroup + r] = from[r * x_stride + k];
      }
    } else {
      for (std::int64_t k = 0; k < inputs; ++k) {
        for (std::int64_t r = 0; r < group; ++r) a[k * group + r] = from[r * x_stride + k];
      }
    }
    a += group * inputs;
  }
}

void rms_norm(const float* x, const float* weight, float eps, std::int64_t n, float* out) {
  typename V::R sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  std::int64_t i = 0;
  for (; i + 4 * V::kWidth <= n; i += 4 * V::kWidth) {
    for (int j = 0; j < 4; ++j) {
      const typename V::R v = V::load(x + i + j * V::kWidth);
      sums[j] = V::fma(v, v, sums[j]);
    }
  }
  for (; i + V::kWidth <= n; i += V::kWidth) {
    const typename V::R v = V::load(x + i);
    sums[0] = V::fma(v, v, sums[0]);
  }
  float sum = V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
  for (; i < n; ++i) sum += x[i] * x[i];
  const float inverse = 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
  const typename V::R scale = V::set(inverse);
  for (i = 0; i + V::kWidth <= n; i += V::kWidth) {
    V::store(out + i, V::mul(V::mul(V::load(x + i), scale), V::load(weight + i)));
  }
  for (; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

/// Applies f to whole vectors, the tail through a padded copy.
template <class F>
inline void map2(const float* x, const float* y, std::int64_t n, float* out, F f) {
  std::int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) V::store(out + i, f(V::load(x + i), V::load(y + i)));
  if (i == n) return;
  alignas(64) float a[V::kWidth] = {}, b[V::kWidth] = {};
  std::memcpy(a, x + i, static_cast<std::size_t>(n - i) * sizeof(float));
  std::memcpy(b, y + i, static_cast<std::size_t>(n - i) * sizeof(float));
  V::store(a, f(V::load(a), V::load(b)));
  std::memcpy(out + i, a, static_cast<std::size_t>(n - i) * sizeof(float));
}

/// 1 / (1 + exp(-x))
inline typename V::R sigmoid(typename V::R x) {
  return V::div(V::set(1.0f), V::add(V::set(1.0f), V::exp(V::sub(V::zero(), x))));
}

void silu_mul(const float* gate, const float* up, std::int64_t n, float* out) {
  map2(gate, up, n, out, [](typename V::R g, typename V::R u) { return V::mul(V::mul(g, sigmoid(g)), u); });
}

void gelu_mul(const float* gate, const float* up, std::int64_t n, float* out) {
  // 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
  map2(gate, up, n, out, [](typename V::R g, typename V::R u) {
    const typename V::R cube = V::mul(V::mul(g, g), g);
    const typename V::R inner = V::mul(V::set(2 * 0.7978845608028654f), V::fma(V::set(0.044715f), cube, g));
    return V::mul(V::mul(g, sigmoid(inner)), u);
  });
}

void soft_cap(float* x, float cap, std::int64_t n) {
  // tanh(u) = 1 - 2 / (exp(2u) + 1)
  const typename V::R twice = V::set(2.0f / cap), scale = V::set(cap), one = V::set(1.0f), two = V::set(2.0f);
  map2(x, x, n, x, [&](typename V::R v, typename V::R) {
    const typename V::R e = V::exp(V::mul(v, twice));
    return V::mul(scale, V::sub(one, V::div(two, V::add(e, one))));
  });
}

void rotate(float* x, const float* cos, const float* sin, std::int64_t half) {
  float* y = x + half;
  std::int64_t i = 0;
  for (; i + V::kWidth <= half; i += V::kWidth) {
    const typename V::R a = V::load(x + i), b = V::load(y + i), c = V::load(cos + i), s = V::load(sin + i);
    V::store(x + i, V::sub(V::mul(a, c), V::mul(b, s)));
    V::store(y + i, V::add(V::mul(b, c), V::mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = y[i];
    x[i] = a * cos[i] - b * sin[i];
    y[i] = b * cos[i] + a * sin[i];
  }
}

void add(const float* x, std::int64_t n, float* y) {
  map2(x, y, n, y, [](typename V::R a, typename V::R b) { return V::add(b, a); });
}

float max(const float* x, std::int64_t n) {
  float largest = -INFINITY;
  std::int64_t i = 0;
  if (n >= V::kWidth) {
    typename V::R most = V::load(x), nan = V::zero();
    for (; i + V::kWidth <= n; i += V::kWidth) {
      const typename V::R v = V::load(x + i);
      most = V::max(most, v);
      nan = V::fma(v, V::zero(), nan);  // turns NaN on NaN and on infinity; told apart below
    }
    alignas(64) float lanes[V::kWidth], flags[V::kWidth];
    V::store(lanes, most);
    V::store(flags, nan);
    bool doubtful = false;
    for (int j = 0; j < V::kWidth; ++j) {
      largest = lanes[j] > largest ? lanes[j] : largest;
      doubtful = doubtful || flags[j] != 0.0f;
    }
    if (doubtful) {
      for (std::int64_t k = 0; k < i; ++k) {
        if (x[k] != x[k]) return x[k];
      }
      largest = -INFINITY;
      for (std::int64_t k = 0; k < i; ++k) largest = x[k] > largest ? x[k] : largest;
    }
  }
  for (; i < n; ++i) {
    if (x[i] != x[i]) return x[i];
    largest = x[i] > largest ? x[i] : largest;
  }
  return largest;
}

constexpr Kernels kTable = {.isa = kIsa,
                            .row_group = kRowGroup,
                            .gemm = gemm,
                            .pack_rows = pack_rows,
                            .rms_norm = rms_norm,
                            .silu_mul = silu_mul,
                            .gelu_mul = gelu_mul,
                            .soft_cap = soft_cap,
                            .rotate = rotate,
                            .add = add,
                            .max = max};

// Clocks, ceilings and the model under test.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>

#include "core/error.h"
#include "core/rng.h"
#include "runner/bench/bench.h"
#include "runner/signals.h"

namespace lacuna::bench {

double Session::now() const {
  if (!options.cpu_time)
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double Session::median(const std::function<void()>& body, double budget) const {
  const double start = now();
  body();
  const double first = now() - start;
  if (first > 4 * budget) return first;
  std::vector<double> times;
  double spent = 0;
  while (times.size() < 3 || (spent < budget && times.size() < 50)) {
    const double begin = now();
    body();
    times.push_back(now() - begin);
    spent += times.back();
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

bool interrupted() { return SignalGuard::received() > 0; }

std::unique_ptr<Ops> make_ops(Device device, ThreadPool& threads) {
  if (device == Device::kCpu) return make_cpu_ops(threads);
#if LACUNA_HAS_CUDA_ENGINE
  return make_cuda_ops(threads);
#else
  throw_usage("this build has no CUDA engine; use --device cpu");
#endif
}

Ceilings measure_ceilings(const Session& session) {
  const bool gpu = session.options.device == Device::kCuda;
  const auto ops = make_ops(session.options.device, session.threads);
  const DType type = ops->activation_dtype();
  const auto element = static_cast<std::int64_t>(size_of(type));

  const std::int64_t n = gpu ? 8192 : session.options.quick ? 1024 : 2048;
  std::vector<float> values(static_cast<std::size_t>(n * n));
  Rng rng(7);
  for (float& v : values) v = static_cast<float>(rng.uniform()) - 0.5f;
  std::vector<BFloat16> half(values.size());
  convert_from_float(values.data(), half.data(), DType::kBF16, values.size());
  const MatrixSlice slice{.data = half.data(), .dtype = DType::kBF16, .rows = n, .cols = n, .row_stride = n};
  const LinearWeight w = ops->make_linear({&slice, 1}, {});
  const Tensor x({n, n}, type, session.options.device), y({n, n}, type, session.options.device);
  std::vector<std::byte> stored(values.size() * static_cast<std::size_t>(element));
  convert_from_float(values.data(), stored.data(), type, values.size());
  ops->upload(stored.data(), x.data(), stored.size());
  Ceilings c;
  const int repeat = gpu ? 5 : 1;
  const double product = session.median([&] {
    for (int i = 0; i < repeat; ++i) ops->linear(x.view(), w, false, y.view());
    ops->synchronize();
  });
  c.flops_per_s =
      2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) * repeat / product;

  const std::int64_t rows = gpu ? 131072 : session.options.quick ? 4096 : 16384, columns = 4096;
  const Tensor a({rows, columns}, type, session.options.device),
      b({rows, columns}, type, session.options.device);
  for (std::int64_t r = 0; r < rows; r += n * n / columns) {
    const auto bytes = static_cast<std::size_t>(std::min(n * n, (rows - r) * columns) * element);
    for (const Tensor* t : {&a, &b})
      ops->upload(stored.data(), static_cast<std::byte*>(t->data()) + r * columns * element, bytes);
  }
  const double adding = session.median([&] {
    ops->add(a.view(), b.view());
    ops->synchronize();
  });
  c.bytes_per_s = 3.0 * static_cast<double>(rows * columns * element) / adding;
  return c;
}

Model::Model(const Session& session, const ModelShape& shape) {
  const Options& options = session.options;
  std::string folder = options.model;
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds_since = [](std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const auto make = [&] {
    if (folder.empty() || &shape != &options.shape) {
      static int number = 0;
      const std::filesystem::path root = options.scratch.empty() ? std::filesystem::temp_directory_path()
                                                                 : std::filesystem::path(options.scratch);
      temporary_ = (root / fmt::format("lacuna-bench-{}-{}", getpid(), number++)).string();
      folder = temporary_;
      write_random_model(folder, random_model_config(options.shape_name, shape), session.threads);
      write_seconds_ = seconds_since(begin);
    }
    const auto loading = std::chrono::steady_clock::now();
    engine_ = Engine::load({.folder = folder, .device = options.device, .rope_override = {}}, self_,
                           session.threads);
    load_seconds_ = seconds_since(loading);
    // The mapping keeps what is still needed; an interrupted run leaves nothing behind.
    std::error_code ignored;
    if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
  };
  try {
    make();
  } catch (...) {
    std::error_code ignored;
    if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
    throw;
  }
}

Model::~Model() = default;

std::vector<TokenId> Model::prompt(std::int64_t tokens) const {
  std::vector<TokenId> ids(static_cast<std::size_t>(tokens));
  Rng rng(11, static_cast<std::uint64_t>(tokens));
  for (TokenId& id : ids)
    id = static_cast<TokenId>(rng.below(static_cast<std::uint64_t>(engine_->facts().vocab)));
  return ids;
}

}  // namespace lacuna::bench

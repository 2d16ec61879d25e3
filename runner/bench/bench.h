// `lacuna bench`: what this machine's device reaches, beside what it could reach. Everything runs through
// model/ops.h and model/engine.h, so the same code measures CPU and GPU. docs/performance.md says how to read
// the tables.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "attention/strategy.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "model/engine.h"
#include "model/ops.h"
#include "sweeps/cost_model.h"

namespace lacuna::bench {

struct Options {
  std::vector<std::string> parts;  ///< Of "attention", "prefill", "decode".
  Device device = Device::kCpu;
  std::string model;                     ///< Folder; empty: random weights of `shape`.
  std::string shape_name;                ///< Of a published model, or "small".
  ModelShape shape;                      ///< Of the model, or of shape_name cut to `layers`.
  int layers = 0;                        ///< Of the shape; 0: all.
  std::vector<std::int64_t> tokens;      ///< Ascending; empty: the part's own.
  std::vector<int> batches;              ///< Empty: the device's own.
  std::vector<StrategySpec> strategies;  ///< Beside dense; empty: the part's own.
  std::vector<std::string> strategy_names;
  std::int64_t shared_tokens = 0;  ///< Prompt of the shared-prefill row; 0: the device's own.
  int new_tokens = 0;              ///< Of the shared-prefill row; 0: the device's own.
  bool quick = false;
  bool cpu_time = false;  ///< Processor time of the process instead of time; one thread.
  std::string scratch;    ///< Folder for random weights.
};

/// One measured line. What a row has nothing to say about is 0 (or negative for sparsity).
struct Row {
  std::string part, key;  ///< "attention", "block_sparse_64"; stable, for scripts.
  std::string what;       ///< For people.
  std::int64_t tokens = 0;
  int batch = 1;
  double seconds = 0;                              ///< Median; index included.
  double index_seconds = 0;                        ///< Of it, choosing.
  double flops = 0;                                ///< Visited, of the part that is not choosing.
  double bytes = 0;                                ///< That had to be read.
  double floor_seconds = 0;                        ///< What the measured ceilings allow.
  double dense_seconds = 0;                        ///< The dense row it is compared with.
  double sparsity = -1;                            ///< Measured.
  std::int64_t peak_bytes = 0, planned_bytes = 0;  ///< Of this rank: what the job took, what the plan said.
  std::string note = {};
};
nlohmann::json to_json(const Row& row);

/// Ceilings of the same run: a large matrix product and adding one large array to another, both through Ops.
struct Ceilings {
  double flops_per_s = 0;
  double bytes_per_s = 0;
};

/// What the parts share.
struct Session {
  const Options& options;
  ThreadPool& threads;
  Ceilings ceilings;
  HardwareProfile profile;     ///< Filled by the parts.
  bool wants_profile = false;  ///< Measure also what only the profile needs.
  std::function<void(const Row&)> on_row;

  /// Seconds on the clock of choice.
  double now() const;
  /// Median seconds of `body`, which must end with the device idle: one call for warmth, then until
  /// `budget` seconds are spent, 3 to 50 times (1 time, without the warm one's repetition, when a call takes
  /// longer than the budget).
  double median(const std::function<void()>& body, double budget = 0.4) const;
  int threads_used() const { return threads.threads(); }
};

/// A signal that asks to end has come: after the current row, inside a job at its next layer or step.
bool interrupted();

std::unique_ptr<Ops> make_ops(Device device, ThreadPool& threads);
Ceilings measure_ceilings(const Session& session);

/// Each calls session.on_row for every row and fills its fields of session.profile.
void bench_attention(Session& session);

/// The model that prefill and decode share: the given folder, or random weights written to a temporary one.
class Model {
 public:
  Model(const Session& session, const ModelShape& shape);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  Engine& engine() { return *engine_; }
  double write_seconds() const { return write_seconds_; }
  double load_seconds() const { return load_seconds_; }
  std::vector<TokenId> prompt(std::int64_t tokens) const;

 private:
  std::string temporary_;
  SelfCommunicator self_;
  std::unique_ptr<Engine> engine_;
  double write_seconds_ = 0, load_seconds_ = 0;
};
void bench_prefill(Session& session, Model& model);
void bench_decode(Session& session, Model& model);

/// "small" (4 layers, 512 wide), or a published one. Throws kUsage with the nearest name.
ModelShape find_shape(const std::string& name);
/// config.json of a model with this shape and random weights' names. Throws kUsage for what cannot be made.
std::string random_model_config(const std::string& shape_name, const ModelShape& shape);
/// Writes config.json and safetensors of random bfloat16 weights (norms 1, matrices of deviation
/// 1/sqrt(inputs)), one file per layer, on all threads. Throws kResource when the disk is full.
void write_random_model(const std::string& folder, const std::string& config, ThreadPool& threads);

/// Tables as text: a title line per part, then the rows as they come.
std::string table_head(const std::string& part, Device device);
std::string table_line(const Row& row, Device device);

}  // namespace lacuna::bench

// Engine::run: one prefill, the evictors of all variants, then batched decoding of all variants.
#include "model/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <optional>

#if LACUNA_HAS_CUDA_ENGINE
#include "core/cuda.h"
#endif
#include "core/error.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/log.h"
#include "core/memory_use.h"
#include "model/memory_plan.h"
#include "model/sampling.h"
#include "model/transformer.h"

namespace lacuna {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Longest error text that travels between ranks.
constexpr std::size_t kErrorBytes = 512;

/// A variant while its job runs.
struct Running {
  const Variant* variant = nullptr;
  VariantResult* result = nullptr;
  std::unique_ptr<SequenceCache> cache;
  std::unique_ptr<DecodeSequence> sequence;
  int fed = 0;  ///< Generated tokens that went through the model.
  bool done = false;
};

/// Variants with the same evictor share its cache until they write.
struct Eviction {
  MethodSpec spec;
  std::unique_ptr<Evictor> evictor;
  SequenceCache cache;
  double seconds = 0;
  AttentionCounts counts;  ///< What choosing cost; nothing else.
  std::string error;
};

/// The better of two (value, index) candidates: larger value, then lower index.
struct Candidate {
  float value;
  std::int32_t index;  ///< -1: not a number
  std::int32_t failed;
};

/// What one engine's buffers hold, from the process's counters: engines in one process do not run at once, so
/// what changes while one is at work is its own.
class Footprint {
 public:
  explicit Footprint(Device device)
      : kind_(device == Device::kCuda ? Buffer::Kind::kDevice : Buffer::Kind::kHost) {}
  /// From here to end() the engine is at work.
  void begin() {
    others_ = buffer_bytes(kind_) - own_;
    forget_buffer_peak(kind_);
  }
  void end() { own_ = buffer_bytes(kind_) - others_; }
  /// Since begin().
  std::int64_t peak() const { return static_cast<std::int64_t>(buffer_peak(kind_) - others_); }

 private:
  Buffer::Kind kind_;
  std::size_t own_ = 0, others_ = 0;
};

/// Between begin() and end() of a footprint, however the scope ends.
class AtWork {
 public:
  explicit AtWork(Footprint& footprint) : footprint_(footprint) { footprint_.begin(); }
  ~AtWork() { footprint_.end(); }
  AtWork(const AtWork&) = delete;
  AtWork& operator=(const AtWork&) = delete;

 private:
  Footprint& footprint_;
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(const EngineOptions& options, ModelConfig config, ModelFacts facts, Weights files,
             Communicator& communicator, ThreadPool& threads)
      : options_(options),
        config_(std::move(config)),
        facts_(std::move(facts)),
        files_(std::move(files)),
        communicator_(communicator),
        footprint_(begun(options.device)),
        ops_(make_ops(options.device, threads)),
        shard_(make_shard(config_, communicator.size(), communicator.rank())),
        transformer_(config_, files_, shard_, *ops_, communicator, threads),
        pool_(*ops_, config_.head_dim, kv_budget()),
        stop_ids_(read_stop_ids(options.folder, config_)) {
    files_.release_pages();
    footprint_.end();
  }

  const ModelFacts& facts() const override { return facts_; }
  std::span<const TokenId> stop_ids() const override { return stop_ids_; }
  JobResult run(const JobRequest& request) override;
  MemoryPlan plan_memory(const JobShape& job) const override {
    return lacuna::plan_memory(facts_, options_.device, shard_.tp, job);
  }

 private:
  static Footprint begun(Device device) {
    Footprint footprint(device);
    footprint.begin();
    return footprint;
  }
  static std::unique_ptr<Ops> make_ops(Device device, ThreadPool& threads) {
    if (device == Device::kCpu) return make_cpu_ops(threads);
#if LACUNA_HAS_CUDA_ENGINE
    return make_cuda_ops(threads);
#else
    throw_usage("this build has no CUDA engine; use device cpu");
#endif
  }
  /// Address space: memory is taken as pages are written.
  std::size_t kv_budget() const {
    return static_cast<std::size_t>(options_.kv_bytes > 0 ? options_.kv_bytes : ops_->free_bytes());
  }

  void check_request(const JobRequest& request) const;
  void reserve(const JobRequest& request);
  MemoryPlan memory_peak() const;
  std::string first_error(const std::string& error) const;
  void agree(const std::string& error) const;
  void alike(const std::function<void()>& body) const;
  void poll_cancelled(const JobRequest& request) const;
  void prefill(const JobRequest& request, std::vector<Eviction>& evictions, JobResult& job);
  void fill_caches(int layer, const PrefillInput& input, SequenceCache& shared,
                   std::vector<Eviction>& evictions);
  void share_eviction_errors(std::vector<Eviction>& evictions) const;
  void store_layer(SequenceCache& cache, int layer, const PrefillInput& input,
                   std::span<const std::vector<std::int32_t>> kept);
  std::vector<Running> start_variants(const JobRequest& request, std::vector<Eviction>& evictions,
                                      JobResult& job);
  void decode_step(const JobRequest& request, std::vector<Running*>& batch);
  void take_tokens(const JobRequest& request, std::span<Running*> batch, std::span<std::string> errors);
  void accept(const JobRequest& request, Running& running, TokenId token);
  void share_errors(std::span<std::string> errors) const;
  std::vector<float> gather_logits(std::int64_t rows);
  void sum_over_ranks(JobResult& job) const;

  const EngineOptions options_;
  const ModelConfig config_;
  const ModelFacts facts_;
  const Weights files_;  // the CPU's embedding rows stay in the mapped file
  Communicator& communicator_;
  Footprint footprint_;
  std::unique_ptr<Ops> ops_;
  const Shard shard_;
  Transformer transformer_;
  PagePool pool_;
  std::vector<TokenId> stop_ids_;
};

void EngineImpl::check_request(const JobRequest& request) const {
  LACUNA_REQUIRE(!request.prompt.empty(), "the prompt is empty: it needs at least one token");
  for (std::size_t i = 0; i < request.prompt.size(); ++i) {
    const TokenId id = request.prompt[i];
    LACUNA_REQUIRE(id >= 0 && id < config_.vocab,
                   "prompt token {} is {}, outside the vocabulary of {} tokens", i, id, config_.vocab);
  }
  for (const Variant& variant : request.variants) check_sampling(variant.sampling, "variant");
}

/// Collective: the error of the first rank that has one; empty when none has.
std::string EngineImpl::first_error(const std::string& error) const {
  if (shard_.tp == 1) return error;
  std::vector<std::int32_t> failed(static_cast<std::size_t>(shard_.tp));
  const std::int32_t mine = error.empty() ? 0 : 1;
  ops_->all_gather_host(&mine, failed.data(), sizeof(mine), communicator_);
  if (std::find(failed.begin(), failed.end(), 1) == failed.end()) return {};
  std::vector<std::string> errors = {error};
  share_errors(errors);
  return errors[0];
}

/// Collective: when any rank has an error, every rank throws one.
void EngineImpl::agree(const std::string& error) const {
  const std::string any = first_error(error);
  if (!any.empty()) throw Error(ErrorKind::kResource, any);
}

/// Collective: runs `body`, in which ranks do not talk. A rank may run out of memory alone, above all where
/// several share a GPU; then all ranks throw, and none waits for it.
void EngineImpl::alike(const std::function<void()>& body) const {
  if (shard_.tp == 1) return body();
  std::string error;
  try {
    body();
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kResource) throw;
    error = e.what();
  }
  agree(error);
}

/// Collective: replaces every entry by the text of the first rank that has one.
void EngineImpl::share_errors(std::span<std::string> errors) const {
  const std::size_t bytes = errors.size() * kErrorBytes;
  std::vector<char> mine(bytes, '\0'), all(bytes * static_cast<std::size_t>(shard_.tp));
  for (std::size_t i = 0; i < errors.size(); ++i)
    errors[i].copy(mine.data() + i * kErrorBytes, kErrorBytes - 1);
  ops_->all_gather_host(mine.data(), all.data(), bytes, communicator_);
  for (std::size_t i = 0; i < errors.size(); ++i) {
    errors[i].clear();
    for (int r = 0; r < shard_.tp && errors[i].empty(); ++r)
      errors[i] = all.data() + static_cast<std::size_t>(r) * bytes + i * kErrorBytes;
  }
}

void EngineImpl::poll_cancelled(const JobRequest& request) const {
  if (!request.cancelled) return;
  agree(request.cancelled() ? "cancelled" : "");
}

/// Writes a layer's kept rows (all of them, when `kept` is empty) into new pages of `cache`.
void EngineImpl::store_layer(SequenceCache& cache, int layer, const PrefillInput& input,
                             std::span<const std::vector<std::int32_t>> kept) {
  std::vector<PageCopy> copies;
  std::vector<KvWrite> writes;
  const std::int64_t tokens = input.k.tokens;
  const std::int64_t first =
      transformer_.sliding(layer) ? std::max<std::int64_t>(0, tokens - config_.window) : 0;
  for (int h = 0; h < shard_.kv_heads; ++h) {
    const auto positions =
        kept.empty() ? std::span<const std::int32_t>() : std::span(kept[static_cast<std::size_t>(h)]);
    const std::int64_t count = kept.empty() ? tokens - first : static_cast<std::int64_t>(positions.size());
    cache.extend(layer, h, count, copies);
    if (count == 0) continue;
    writes.push_back({.page_ids = cache.head(layer, h).pages,
                      .first_slot = 0,
                      .count = count,
                      .head = h,
                      .row_begin = first,
                      .positions = positions});
  }
  ops_->store_kv(input.k, input.v, writes, pool_.view());
}

void EngineImpl::fill_caches(int layer, const PrefillInput& input, SequenceCache& shared,
                             std::vector<Eviction>& evictions) {
  bool stored = false;
  // A rank whose cache is full goes on choosing, because evictors and what follows them talk with the others.
  std::optional<Error> full;
  const auto store = [&](SequenceCache& cache, std::span<const std::vector<std::int32_t>> kept) {
    try {
      if (!full) store_layer(cache, layer, input, kept);
    } catch (const Error& e) {
      full = e;
    }
  };
  const auto share = [&](SequenceCache& cache) {
    if (!stored) store(shared, {});
    stored = true;
    cache.share_layer(shared, layer);
  };
  for (Eviction& eviction : evictions) {
    if (transformer_.sliding(layer)) {
      share(eviction.cache);
      continue;
    }
    if (!eviction.error.empty()) continue;
    // Work is enqueued: what came before must be done, or waiting for it would be counted as choosing.
    if (eviction.spec.method != "none") ops_->synchronize();
    const auto begin = Clock::now();
    std::vector<std::vector<std::int32_t>> kept;
    try {
      kept = eviction.evictor->keep(input, eviction.counts);
    } catch (const Error& e) {
      eviction.error = e.what();
      continue;
    }
    if (kept.empty()) {
      share(eviction.cache);
      if (eviction.spec.method == "none") continue;  // nothing was chosen: storing is part of the prefill
    } else {
      LACUNA_CHECK(kept.size() == static_cast<std::size_t>(shard_.kv_heads),
                   "evictor '{}' answered for {} of {} kv heads", eviction.spec.method, kept.size(),
                   shard_.kv_heads);
      store(eviction.cache, kept);
    }
    ops_->synchronize();
    eviction.seconds += seconds_since(begin);
  }
  share_eviction_errors(evictions);
  if (full) throw Error(*full);
}

/// An evictor that failed on one rank has failed on all: they must go on alike.
void EngineImpl::share_eviction_errors(std::vector<Eviction>& evictions) const {
  if (shard_.tp == 1 || evictions.empty()) return;
  std::vector<std::uint8_t> mine, all(evictions.size() * static_cast<std::size_t>(shard_.tp));
  for (const Eviction& e : evictions) mine.push_back(e.error.empty() ? 0 : 1);
  ops_->all_gather_host(mine.data(), all.data(), mine.size(), communicator_);
  if (std::find(all.begin(), all.end(), 1) == all.end()) return;
  std::vector<std::string> errors;
  for (const Eviction& e : evictions) errors.push_back(e.error);
  share_errors(errors);
  for (std::size_t i = 0; i < evictions.size(); ++i) evictions[i].error = errors[i];
}

void EngineImpl::prefill(const JobRequest& request, std::vector<Eviction>& evictions, JobResult& job) {
  const auto begin = Clock::now();
  const auto selector = ops_->prefill_selector(request.prefill);
  SequenceCache shared(pool_, config_.layers, shard_.kv_heads);
  transformer_.prefill(request.prompt, selector.get(), request.seed,
                       {.on_layer =
                            [&](int layer, const PrefillInput& input) {
                              fill_caches(layer, input, shared, evictions);
                              if (request.on_layer) request.on_layer(layer, input);
                            },
                        .between_layers = [&] { poll_cancelled(request); },
                        .agree = [&](const std::string& error) { agree(error); }},
                       job.prefill_sparse, job.prefill_all);
  ops_->synchronize();
  const double evict_seconds = std::accumulate(evictions.begin(), evictions.end(), 0.0,
                                               [](double sum, const Eviction& e) { return sum + e.seconds; });
  job.prefill_seconds = seconds_since(begin) - evict_seconds;
}

std::vector<float> EngineImpl::gather_logits(std::int64_t rows) {
  const TensorView local = transformer_.logits();
  const std::int64_t widest = largest_vocab_share(config_.vocab, shard_.tp);
  std::vector<float> mine(static_cast<std::size_t>(rows * widest)),
      all(mine.size() * static_cast<std::size_t>(shard_.tp));
  ops_->download(local.data, mine.data(), static_cast<std::size_t>(rows * shard_.vocab) * sizeof(float));
  if (shard_.tp == 1) return mine;
  ops_->all_gather_host(mine.data(), all.data(), mine.size() * sizeof(float), communicator_);
  std::vector<float> logits(static_cast<std::size_t>(rows * config_.vocab));
  for (int r = 0; r < shard_.tp; ++r) {
    const Shard other = make_shard(config_, shard_.tp, r);
    for (std::int64_t row = 0; row < rows; ++row) {
      std::copy_n(all.data() + static_cast<std::int64_t>(r) * rows * widest + row * other.vocab, other.vocab,
                  logits.data() + row * config_.vocab + other.vocab_begin);
    }
  }
  return logits;
}

void EngineImpl::accept(const JobRequest& request, Running& running, TokenId token) {
  VariantResult& result = *running.result;
  const SamplingOptions& sampling = running.variant->sampling;
  if (!sampling.ignore_stop && std::find(stop_ids_.begin(), stop_ids_.end(), token) != stop_ids_.end()) {
    result.stopped = true;
    running.done = true;
    return;
  }
  result.ids.push_back(token);
  if (request.on_token && communicator_.rank() == 0) {
    request.on_token(static_cast<std::size_t>(running.variant - request.variants.data()), token);
  }
  running.done = static_cast<int>(result.ids.size()) >= sampling.max_new_tokens;
}

/// Chooses the next token of every sequence from the logits of the last forward pass. Row i belongs to
/// batch[i]; with one row for several sequences (after prefill) all take row 0.
void EngineImpl::take_tokens(const JobRequest& request, std::span<Running*> batch,
                             std::span<std::string> errors) {
  const TensorView logits = transformer_.logits();
  const std::int64_t rows = logits.shape[0];
  std::vector<float> values(static_cast<std::size_t>(rows));
  std::vector<std::int32_t> indices(static_cast<std::size_t>(rows));
  ops_->argmax(logits, values, indices);

  const bool sampled = std::any_of(batch.begin(), batch.end(),
                                   [](const Running* r) { return r->variant->sampling.temperature > 0; });
  std::vector<float> full;
  if (sampled || request.want_logits) full = gather_logits(rows);

  // One candidate per row and rank; the same choice is made on every rank.
  std::vector<Candidate> mine(batch.size()), all(batch.size() * static_cast<std::size_t>(shard_.tp));
  bool failed = false;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const std::size_t row = rows == 1 ? 0 : i;
    const std::int32_t index =
        indices[row] < 0 ? -1 : indices[row] + static_cast<std::int32_t>(shard_.vocab_begin);
    if ((index < 0 || std::isinf(values[row])) && errors[i].empty()) {
      errors[i] = "the model computed logits that are not finite numbers";
    }
    mine[i] = {.value = values[row], .index = index, .failed = errors[i].empty() ? 0 : 1};
  }
  ops_->all_gather_host(mine.data(), all.data(), mine.size() * sizeof(Candidate), communicator_);
  for (const Candidate& candidate : all) failed = failed || candidate.failed != 0;
  if (failed) share_errors(errors);

  for (std::size_t i = 0; i < batch.size(); ++i) {
    Running& running = *batch[i];
    const std::size_t row = rows == 1 ? 0 : i;
    if (!errors[i].empty()) {
      running.result->error = errors[i];
      running.done = true;
      continue;
    }
    const std::span<const float> row_logits =
        full.empty() ? std::span<const float>()
                     : std::span(full).subspan(row * static_cast<std::size_t>(config_.vocab),
                                               static_cast<std::size_t>(config_.vocab));
    if (request.want_logits && running.fed > 0)
      running.result->logits.emplace_back(row_logits.begin(), row_logits.end());
    if (running.done) continue;
    Candidate best = all[i];
    for (int r = 1; r < shard_.tp; ++r) {
      const Candidate& other = all[static_cast<std::size_t>(r) * batch.size() + i];
      if (other.value > best.value) best = other;  // lower ranks hold lower ids: ties stay
    }
    TokenId token = best.index;
    try {
      if (running.variant->sampling.temperature > 0)
        token = sample_token(row_logits, running.variant->sampling, running.result->ids.size());
    } catch (const Error& e) {
      running.result->error = e.what();
      running.done = true;
      continue;
    }
    accept(request, running, token);
  }
}

std::vector<Running> EngineImpl::start_variants(const JobRequest& request, std::vector<Eviction>& evictions,
                                                JobResult& job) {
  std::vector<LayerInfo> layer_infos;
  for (int layer = 0; layer < config_.layers; ++layer) layer_infos.push_back(transformer_.layer_info(layer));
  std::vector<Running> all;
  all.reserve(request.variants.size());
  for (std::size_t i = 0; i < request.variants.size(); ++i) {
    const Variant& variant = request.variants[i];
    Running running{.variant = &variant, .result = &job.variants[i], .cache = nullptr, .sequence = nullptr};
    Eviction& eviction = *std::find_if(evictions.begin(), evictions.end(),
                                       [&](const Eviction& e) { return e.spec == variant.evict; });
    running.result->evict_seconds = eviction.seconds;
    for (AttentionCounts* counts : {&running.result->decode_sparse, &running.result->decode_all})
      *counts += eviction.counts;
    running.result->error = eviction.error;
    if (!eviction.error.empty()) {
      running.done = true;
    } else {
      running.cache = std::make_unique<SequenceCache>(eviction.cache.fork());
      running.result->kv_bytes_resident = running.cache->bytes();
      running.sequence = ops_->make_sequence(
          variant.decode, layer_infos,
          static_cast<std::int64_t>(request.prompt.size()) + variant.sampling.max_new_tokens);
    }
    all.push_back(std::move(running));
  }
  return all;
}

void EngineImpl::decode_step(const JobRequest& request, std::vector<Running*>& batch) {
  std::vector<StepSequence> steps(batch.size());
  std::vector<std::string> errors(batch.size());
  for (std::size_t i = 0; i < batch.size(); ++i) {
    Running& running = *batch[i];
    steps[i] = {.token = running.result->ids[static_cast<std::size_t>(running.fed)],
                .position = static_cast<std::int64_t>(request.prompt.size()) + running.fed,
                .cache = running.cache.get(),
                .sequence = running.sequence.get(),
                .seed = request.seed,
                .error = &errors[i]};
    ++running.fed;
  }
  transformer_.decode(steps, pool_, [&](const std::string& error) { return first_error(error); });
  take_tokens(request, batch, errors);
}

/// Counts and bytes are sums over the team.
void EngineImpl::sum_over_ranks(JobResult& job) const {
  if (shard_.tp == 1) return;
  std::vector<double> mine;
  const auto visit_counts = [](AttentionCounts& c, const auto& f) {
    for (double* x : {&c.visited_cells, &c.causal_cells, &c.computed_cells, &c.flops, &c.index_flops,
                      &c.kv_bytes_read, &c.index_bytes_read})
      f(*x);
  };
  const auto visit = [&](const auto& f) {
    visit_counts(job.prefill_sparse, f);
    visit_counts(job.prefill_all, f);
    for (VariantResult& v : job.variants) {
      visit_counts(v.decode_sparse, f);
      visit_counts(v.decode_all, f);
      for (std::int64_t* bytes : {&v.kv_bytes_resident, &v.kv_bytes_resident_dense}) {
        auto value = static_cast<double>(*bytes);
        f(value);
        *bytes = static_cast<std::int64_t>(value);
      }
    }
  };
  visit([&](double& x) { mine.push_back(x); });
  std::vector<double> all(mine.size() * static_cast<std::size_t>(shard_.tp));
  ops_->all_gather_host(mine.data(), all.data(), mine.size() * sizeof(double), communicator_);
  std::size_t i = 0;
  visit([&](double& x) {
    x = 0;
    for (int r = 0; r < shard_.tp; ++r) x += all[static_cast<std::size_t>(r) * mine.size() + i];
    ++i;
  });
}

/// Takes the memory that the job is planned to need, except for the cache, which grows. Collective: throws on
/// every rank when one has too little.
void EngineImpl::reserve(const JobRequest& request) {
  const auto tokens = static_cast<std::int64_t>(request.prompt.size());
  std::int64_t most_new = 0;
  for (const Variant& v : request.variants)
    most_new = std::max<std::int64_t>(most_new, v.sampling.max_new_tokens);
  const double reach = static_cast<double>(config_.max_positions) *
                       (config_.rope.type == RopeType::kDefault ? 1.0 : config_.rope.factor);
  if (static_cast<double>(tokens + most_new) > reach && communicator_.rank() == 0) {
    log::warning("{} tokens are more than the {} positions this model was made for", tokens + most_new,
                 config_.max_positions);
  }
  const JobShape shape{.tokens = tokens,
                       .prefill = request.prefill,
                       .variants = {request.variants.begin(), request.variants.end()},
                       .want_logits = request.want_logits};
  std::size_t keep = kKeepKvBytes;
  if (options_.device == Device::kCuda) keep = static_cast<std::size_t>(plan_memory(shape).kv_cache);
  pool_.trim(keep);
  pool_.reset_peak();
  alike([&] {
    transformer_.reserve(tokens, tokens + most_new, std::ssize(request.variants));
    if (options_.device == Device::kCuda) {
      const RankShape rank = rank_shape(config_, shard_);
      ops_->fit_workspaces(gpu_scratch_bytes(rank, shape), gpu_decode_bytes(rank, shape));
    }
  });
}

MemoryPlan EngineImpl::memory_peak() const {
  MemoryPlan peak;
  peak.weights = transformer_.weight_bytes();
  peak.kv_cache = pool_.peak_bytes();
  peak.activations = transformer_.workspace_bytes();
  peak.workspace = footprint_.peak() - (peak.weights - transformer_.mapped_weight_bytes()) - peak.activations;
  return peak;
}

JobResult EngineImpl::run(const JobRequest& request) {
  check_request(request);
  JobResult job;
  job.variants.resize(request.variants.size());
  const AtWork work(footprint_);
  reserve(request);
  const auto tokens = static_cast<std::int64_t>(request.prompt.size());
  std::vector<Eviction> evictions;
  for (const Variant& v : request.variants) {
    const bool known =
        std::any_of(evictions.begin(), evictions.end(), [&](const Eviction& e) { return e.spec == v.evict; });
    if (!known)
      evictions.push_back({.spec = v.evict,
                           .evictor = ops_->evictor(v.evict),
                           .cache = SequenceCache(pool_, config_.layers, shard_.kv_heads),
                           .seconds = 0,
                           .counts = {},
                           .error = {}});
  }
  prefill(request, evictions, job);
  job.linear_flops = linear_flops(facts_, tokens);
  if (request.want_logits) job.prompt_logits = gather_logits(1);

  std::vector<Running> all;
  alike([&] { all = start_variants(request, evictions, job); });
  const std::int64_t prompt_bytes = dense_kv_bytes(config_, shard_, tokens, pool_.page_bytes());
  for (VariantResult& v : job.variants) v.kv_bytes_resident_dense = prompt_bytes;
  evictions.clear();  // caches that only failed or finished variants used go back to the pool

  const auto begin = Clock::now();
  std::vector<Running*> batch;
  for (Running& running : all) {
    if (!running.done) batch.push_back(&running);
  }
  // Neighbours with the same method are chosen for together.
  std::stable_sort(batch.begin(), batch.end(), [](const Running* a, const Running* b) {
    return a->variant->decode.method < b->variant->decode.method;
  });
  if (!batch.empty()) {
    std::vector<std::string> errors(batch.size());
    take_tokens(request, batch, errors);
  }
  // A sequence whose last token needs no logits is not fed again.
  const auto feeds = [&](const Running& r) {
    if (!r.result->error.empty() || r.fed >= static_cast<int>(r.result->ids.size())) return false;
    return request.want_logits || !r.done;
  };
  while (true) {
    std::erase_if(batch, [&](Running* r) {
      if (feeds(*r)) return false;
      r->result->kv_bytes_resident += static_cast<std::int64_t>(r->sequence->state_bytes());
      try {
        r->sequence->take_counts(r->result->decode_sparse, r->result->decode_all);
      } catch (const Error& e) {
        if (r->result->error.empty()) r->result->error = e.what();
      }
      r->sequence.reset();
      r->cache.reset();
      return true;
    });
    if (batch.empty()) break;
    poll_cancelled(request);
    decode_step(request, batch);
  }
  const double decode_seconds = seconds_since(begin);
  for (VariantResult& v : job.variants) v.decode_seconds = decode_seconds;
  job.peak = memory_peak();
  job.peak_bytes = job.peak.total();
  sum_over_ranks(job);
  return job;
}

}  // namespace

bool cuda_engine_usable() {
#if LACUNA_HAS_CUDA_ENGINE
  return cuda_device_count() > 0;
#else
  return false;
#endif
}

std::unique_ptr<Engine> Engine::load(const EngineOptions& options, Communicator& communicator,
                                     ThreadPool& threads) {
  ModelConfig config = read_config(options.folder);
  check_degree(config, communicator.size(), options.folder);
  if (options.rope_override) override_rope(config, *options.rope_override);
  Weights files = Weights::open(options.folder);
  ModelFacts facts = make_facts(config, options.folder);
  return std::make_unique<EngineImpl>(options, std::move(config), std::move(facts), std::move(files),
                                      communicator, threads);
}

}  // namespace lacuna

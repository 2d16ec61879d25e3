#include "runner/executor.h"

#include <chrono>
#include <cmath>

#include "core/error.h"
#include "core/json.h"

namespace lacuna {

namespace {

std::size_t at(int i) { return static_cast<std::size_t>(i); }

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// Collective: throws on every rank when one has an error.
void agree_on_load(const std::string& error, const std::string& model, Communicator& communicator) {
  std::vector<char> failed(at(communicator.size()));
  const char mine = error.empty() ? 0 : 1;
  communicator.all_gather(&mine, failed.data(), 1);
  for (std::size_t r = 0; r < failed.size(); ++r) {
    if (failed[r] != 0)
      throw_resource("{}",
                     error.empty() ? fmt::format("rank {} of the team cannot load {}", r, model) : error);
  }
}

double sparsity(double visited, double causal) { return causal > 0 ? 1 - visited / causal : 0; }

}  // namespace

void Executor::load(int load, Communicator& communicator) {
  if (load == loaded_ && communicator_ == &communicator) return;
  unload();
  const ModelLoad& wanted = grid_.loads[at(load)];
  const SweepModel& model = sweep_.models[at(wanted.model)];
  // Small and local things first, and the same answer on every rank, so that no rank waits in the collective
  // load.
  std::string error;
  try {
    tokenizer_ = services_.load_tokenizer(model.path);
    chat_ = model.chat == "auto" ? services_.detect_chat(model.path)
                                 : parse_chat_format(model.chat, "model " + model.name);
  } catch (const Error& e) {
    error = e.what();
  }
  agree_on_load(error, model.name, communicator);
  // A rank may run out of memory alone.
  try {
    engine_ = load_engine(wanted, model, communicator);
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::kLibrary || e.kind() == ErrorKind::kInternal) throw;
    error = e.what();
  }
  agree_on_load(error, model.name, communicator);
  communicator_ = &communicator;
  loaded_ = load;
}

std::unique_ptr<Engine> Executor::load_engine(const ModelLoad& wanted, const SweepModel& model,
                                              Communicator& communicator) const {
  EngineOptions options{.folder = model.path, .device = device_, .rope_override = {}};
  if (!wanted.rope.empty()) options.rope_override = wanted.rope;
  if (rank_.sharing > 1 && device_ == Device::kCuda) {
    const MemoryPlan plan =
        services_.plan_memory(services_.read_facts(model.path), device_, communicator.size(), dense_job(1, 1, 1));
    options.kv_bytes = kv_share(rank_, plan.weights);
  }
  return services_.load_engine(options, communicator, threads_);
}

void Executor::unload() {
  engine_.reset();
  tokenizer_.reset();
  communicator_ = nullptr;
  loaded_ = -1;
}

Json Executor::facts() const {
  const ModelLoad& load = grid_.loads[at(loaded_)];
  const SweepModel& model = sweep_.models[at(load.model)];
  const ModelFacts& f = engine_->facts();
  return {{"name", model.name},
          {"path", model.path},
          {"tp", communicator_->size()},
          {"communicator", communicator_->kind()},
          {"device", name_of(device_)},
          {"dtype", device_ == Device::kCpu ? "float32" : "bfloat16"},
          {"stored_dtype", f.dtype},
          {"chat", name_of(chat_)},
          {"family", f.family},
          {"parameters", f.parameters},
          {"layers", f.layers},
          {"q_heads", f.q_heads},
          {"kv_heads", f.kv_heads},
          {"head_dim", f.head_dim},
          {"hidden", f.hidden},
          {"mlp", f.mlp},
          {"vocab", f.vocab},
          {"sliding_layers", f.sliding_layers},
          {"sliding_window", f.sliding_window},
          {"max_positions", f.max_positions},
          {"rope", f.rope},
          {"rope_override", load.rope},
          {"config_hash", f.config_hash},
          {"tokenizer_hash", f.tokenizer_hash},
          {"weights_hash", f.weights_hash}};
}

const Task& Executor::task_of(int task) {
  auto& made = tasks_[task];
  if (!made) made = make_task(sweep_.tasks[at(task)].task, sweep_.tasks[at(task)].params);
  return *made;
}

Executor::Prompt Executor::make_prompt(const Cell& cell, std::int32_t sample) {
  Prompt prompt;
  try {
    const Sample made = task_of(cell.task).generate({.tokenizer = tokenizer_.get(),
                                                     .chat = chat_,
                                                     .target_tokens = cell.length,
                                                     .seed = sweep_.seed,
                                                     .index = static_cast<std::uint64_t>(sample)});
    prompt.ids = made.ids;
    prompt.gold = made.gold;
  } catch (const Error& e) {
    prompt.error = e.what();
  }
  return prompt;
}

void Executor::share_prompt(Prompt& prompt) const {
  if (communicator_->size() == 1) return;
  std::int64_t count = prompt.error.empty() ? static_cast<std::int64_t>(prompt.ids.size()) : -1;
  communicator_->broadcast(&count, sizeof(count), 0);
  if (count < 0) {
    if (prompt.error.empty()) prompt.error = "no prompt";
    return;
  }
  prompt.ids.resize(static_cast<std::size_t>(count));
  communicator_->broadcast(prompt.ids.data(), prompt.ids.size() * sizeof(TokenId), 0);
}

SampleRecord Executor::blank(const JobOrder& order, std::size_t i, int attempt, int team,
                             const Prompt& prompt) const {
  SampleRecord r;
  r.cell = grid_.cells[at(order.cells[i])].key;
  r.sample = order.sample;
  r.attempt = attempt;
  r.team = team;
  r.seed = sweep_.seed + static_cast<std::uint64_t>(order.sample);
  r.shared = static_cast<std::int32_t>(order.cells.size());
  r.input_tokens = static_cast<std::int32_t>(prompt.ids.size());
  if (!prompt.gold.is_null()) r.gold = prompt.gold.dump(-1, ' ', false, Json::error_handler_t::replace);
  return r;
}

void Executor::fill(SampleRecord& r, const Cell& cell, const JobResult& job, const VariantResult& v,
                    const Prompt& prompt) {
  const StrategySpec& spec = grid_.specs[at(cell.spec)];
  const ModelFacts& facts = engine_->facts();
  const AttentionCounts &p = job.prefill_sparse, &d = v.decode_sparse;
  r.prefill_s = job.prefill_seconds;
  r.evict_s = v.evict_seconds;
  r.decode_s = v.decode_seconds;
  r.index_s = job.prefill_all.index_seconds + v.decode_all.index_seconds;
  r.peak_bytes = job.peak_bytes;
  if (!v.error.empty()) {
    r.status = schema::kFailed;
    r.answer_or_error = v.error;
    return;
  }
  r.prediction = tokenizer_->decode(v.ids);
  const Score score = task_of(cell.task).score(prompt.gold, r.prediction);
  r.score = score.value;
  r.no_answer = score.no_answer ? 1 : 0;
  r.answer_or_error = score.answer;
  r.stopped = v.stopped ? 1 : 0;
  r.output_tokens = static_cast<std::int32_t>(v.ids.size());

  r.sparsity_prefill = p.sparsity();
  r.sparsity_decode = d.sparsity();
  const std::string_view phase = phase_of(spec);
  if (phase == "dense") r.sparsity_computed = 0;
  if (phase == "prefill") r.sparsity_computed = r.sparsity_prefill;
  if (phase == "decode") r.sparsity_computed = r.sparsity_decode;
  if (phase == "both")
    r.sparsity_computed = sparsity(p.visited_cells + d.visited_cells, p.causal_cells + d.causal_cells);
  // A full cache is read once per kv head and step: causal cells count query heads, q_heads / kv_heads of
  // which share it.
  const double element = (device_ == Device::kCpu ? 4 : 2);
  const double full_bytes = d.causal_cells * facts.kv_heads / facts.q_heads * 2 * facts.head_dim * element;
  r.sparsity_bytes = full_bytes > 0 ? 1 - d.kv_bytes_read / full_bytes : 0;
  r.sparsity_resident =
      sparsity(static_cast<double>(v.kv_bytes_resident), static_cast<double>(v.kv_bytes_resident_dense));
  r.tile_efficiency = p.computed_cells > 0 ? p.visited_cells / p.computed_cells : kNaN;
  r.attention_flops = job.prefill_all.flops + v.decode_all.flops;
  r.index_flops = job.prefill_all.index_flops + v.decode_all.index_flops;
  r.flops = job.linear_flops + r.attention_flops + r.index_flops;
  r.kv_bytes_read = v.decode_all.kv_bytes_read;
  r.index_bytes_read = v.decode_all.index_bytes_read;
  r.kv_bytes_resident = v.kv_bytes_resident;
}

std::vector<SampleRecord> Executor::run(const JobOrder& order, int attempt, int team,
                                        const std::function<bool()>& cancelled) {
  const Cell& first = grid_.cells[at(order.cells.front())];
  Prompt prompt;
  if (communicator_->rank() == 0) prompt = make_prompt(first, order.sample);
  share_prompt(prompt);

  std::vector<Variant> variants;
  for (const int c : order.cells) {
    const StrategySpec& spec = grid_.specs[at(grid_.cells[at(c)].spec)];
    variants.push_back(
        {spec.evict, spec.decode,
         SamplingOptions{.max_new_tokens = grid_.cells[at(c)].max_new_tokens, .seed = sweep_.seed}});
  }
  JobResult job;
  std::string error = prompt.error;
  if (error.empty()) {
    try {
      job = engine_->run({.prompt = prompt.ids,
                          .prefill = grid_.specs[at(first.spec)].prefill,
                          .variants = variants,
                          .seed = sweep_.seed + static_cast<std::uint64_t>(order.sample),
                          .want_logits = false,
                          .on_token = {},
                          .cancelled = cancelled});
    } catch (const Error& e) {
      // The engine throws on every rank alike. What is neither the input's nor memory's fault ends the run.
      if (std::string_view(e.what()) == "cancelled") return {};
      if (e.kind() == ErrorKind::kLibrary) throw;
      error = e.what();
      // Its working memory may fill the device now; the next job loads the model anew.
      if (e.kind() == ErrorKind::kResource && device_ == Device::kCuda) {
        engine_.reset();
        loaded_ = -1;
      }
    }
  }
  std::vector<SampleRecord> records;
  if (communicator_->rank() != 0) return records;
  for (std::size_t i = 0; i < order.cells.size(); ++i) {
    SampleRecord record = blank(order, i, attempt, team, prompt);
    if (error.empty()) {
      fill(record, grid_.cells[at(order.cells[i])], job, job.variants[i], prompt);
    } else {
      record.status = schema::kFailed;
      record.answer_or_error = error;
    }
    record.finished = now_seconds();
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace lacuna

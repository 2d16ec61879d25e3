// lacuna generate: one prompt through one model under one strategy, alone or tensor-parallel under mpirun.
#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/npy.h"
#include "core/text.h"
#include "model/chat.h"
#include "model/engine.h"
#include "model/mpi.h"
#include "model/team_communicator.h"
#include "runner/commands/commands.h"
#include "runner/commands/layer_picture.h"
#include "runner/launch.h"
#include "sweeps/document.h"

namespace lacuna {

namespace {

struct GenerateOptions {
  std::string model, prompt, ids, strategy, chat = "auto", rope, dump_logits, device = "auto", picture;
  int max_tokens = 128, threads = 0, picture_layer = 0, picture_head = 0;
  float temperature = 0, top_p = 1;
  std::uint64_t seed = 0;
  bool ignore_stop = false, print_ids = false, stats = false, share_gpu = false;
};

/// "@FILE" is the file's content, all else itself.
std::string text_or_file(const std::string& text) {
  return text.starts_with('@') ? read_file(text.substr(1)) : text;
}

std::vector<TokenId> parse_ids(const std::string& given) {
  std::string text = text_or_file(given);
  for (char& c : text) {
    if (c == '\n' || c == '\t' || c == ' ' || c == '\r') c = ',';
  }
  std::vector<TokenId> ids;
  for (const std::string& piece : split(text, ',')) {
    if (piece.empty()) continue;
    TokenId id = 0;
    const auto [end, status] = std::from_chars(piece.data(), piece.data() + piece.size(), id);
    LACUNA_REQUIRE(status == std::errc() && end == piece.data() + piece.size() && id >= 0,
                   "--ids: '{}' is not a token id", piece);
    ids.push_back(id);
  }
  LACUNA_REQUIRE(!ids.empty(), "--ids: no token ids given");
  return ids;
}

bool has_tokenizer(const std::string& folder) { return std::filesystem::exists(folder + "/tokenizer.json"); }

/// Collective over all ranks: each one's device, made current.
RankFacts claim(const GenerateOptions& options, const MpiSession& session) {
  std::vector<RankSight> ranks;
  for (const std::string& text : gather_texts(session, to_json(look_around(options.device)).dump()))
    ranks.push_back(rank_sight_from(parse_json(text, "rank")));
  return claim_device(options.device, choose_device(ranks, session.rank()), options.share_gpu);
}

std::vector<TokenId> prompt_ids(const GenerateOptions& options, const Tokenizer* tokenizer) {
  if (!options.ids.empty()) return parse_ids(options.ids);
  LACUNA_REQUIRE(tokenizer != nullptr, "{}: it has no tokenizer.json; give token ids with --ids",
                 options.model);
  const ChatFormat format =
      options.chat == "auto" ? detect_chat_format(options.model) : parse_chat_format(options.chat, "--chat");
  return encode_chat(*tokenizer, format, text_or_file(options.prompt));
}

/// Rows: the prompt's last token, then every generated token.
void dump_logits(const std::string& path, const JobResult& job) {
  const VariantResult& result = job.variants[0];
  const auto rows = static_cast<std::int64_t>(1 + result.logits.size()),
             vocab = static_cast<std::int64_t>(job.prompt_logits.size());
  Tensor out({rows, vocab}, DType::kF32);
  std::copy(job.prompt_logits.begin(), job.prompt_logits.end(), out.as<float>());
  for (std::size_t i = 0; i < result.logits.size(); ++i) {
    std::copy(result.logits[i].begin(), result.logits[i].end(),
              out.as<float>() + static_cast<std::int64_t>(i + 1) * vocab);
  }
  write_npy(path, out.view());
}

void print_stats(const GenerateOptions& options, const Engine& engine, const JobResult& job,
                 std::size_t prompt_tokens) {
  const VariantResult& r = job.variants[0];
  std::fprintf(
      stderr, "%s\n",
      fmt::format("{}: {} of {} parameters, {} prompt tokens in {}, {} new tokens in {}, peak {}; attention "
                  "cells skipped: prefill {:.1f} %, decode {:.1f} %; cache kept {} of {}",
                  options.model, engine.facts().family,
                  format_count(static_cast<double>(engine.facts().parameters)), prompt_tokens,
                  format_seconds(job.prefill_seconds), r.ids.size(), format_seconds(r.decode_seconds),
                  format_bytes(static_cast<double>(job.peak_bytes)), 100 * job.prefill_sparse.sparsity(),
                  100 * r.decode_sparse.sparsity(), format_bytes(static_cast<double>(r.kv_bytes_resident)),
                  format_bytes(static_cast<double>(r.kv_bytes_resident_dense)))
          .c_str());
}

void generate(const GenerateOptions& options) {
  std::optional<MpiSession> session(std::in_place);
  log::configure(session->rank(), session->size());
  const bool speaks = session->rank() == 0;
  RankFacts rank;
  std::unique_ptr<Communicator> team;
  run_together(*session, [&] { rank = claim(options, *session); });
  run_together(*session, [&] { team = make_team_communicator(MPI_COMM_WORLD, rank.device); });

  std::optional<Tokenizer> tokenizer;
  std::vector<TokenId> ids;
  StrategySpec strategy;
  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<Engine> engine;
  run_together(*session, [&] {
    // Ranks of one machine share its cores.
    threads = std::make_unique<ThreadPool>(options.threads > 0 ? options.threads : rank.threads);
    const Json given = options.strategy.empty()
                           ? Json::object()
                           : Document::parse(text_or_file(options.strategy), "--strategy").root();
    strategy = parse_strategy(given, "--strategy");
    check_combination(strategy, "--strategy");
    if (has_tokenizer(options.model)) tokenizer = Tokenizer::load(options.model);
    ids = prompt_ids(options, tokenizer ? &*tokenizer : nullptr);
    EngineOptions engine_options{.folder = options.model, .device = rank.device, .rope_override = {}};
    if (rank.sharing > 1) {
      const ModelFacts facts = read_model_facts(options.model);
      engine_options.kv_bytes =
          kv_share(rank, plan_memory(facts, rank.device, session->size(), dense_job(1, 1, 1)).weights);
    }
    if (!options.rope.empty()) engine_options.rope_override = text_or_file(options.rope);
    engine = Engine::load(engine_options, *team, *threads);
  });

  Variant variant{.evict = strategy.evict,
                  .decode = strategy.decode,
                  .sampling = {.max_new_tokens = options.max_tokens,
                               .temperature = options.temperature,
                               .top_p = options.top_p,
                               .seed = options.seed,
                               .ignore_stop = options.ignore_stop}};
  const bool as_ids = options.print_ids || !tokenizer;
  std::optional<StreamDecoder> decoder;
  if (!as_ids) decoder.emplace(*tokenizer);
  bool first = true;
  JobRequest request{.prompt = ids,
                     .prefill = strategy.prefill,
                     .variants = std::span(&variant, 1),
                     .seed = options.seed,
                     .want_logits = !options.dump_logits.empty(),
                     .on_token = {},
                     .cancelled = {}};
  request.on_token = [&](std::size_t, TokenId id) {
    const std::string text = as_ids ? fmt::format("{}{}", first ? "" : ",", id) : decoder->push(id);
    first = false;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  };
  LayerCapture capture(options.picture_layer);
  if (!options.picture.empty()) {
    LACUNA_REQUIRE(session->size() == 1, "--picture needs all heads in one place: run without mpirun");
    const ModelFacts& facts = engine->facts();
    LACUNA_REQUIRE(options.picture_layer < facts.layers, "--picture-layer {}: the model has {} layers",
                   options.picture_layer, facts.layers);
    LACUNA_REQUIRE(options.picture_head < facts.q_heads, "--picture-head {}: the model has {} query heads",
                   options.picture_head, facts.q_heads);
    request.on_layer = capture.hook();
  }
  JobResult job;
  run_together(*session, [&] { job = engine->run(request); });
  if (!speaks) return;
  const std::string rest = (as_ids ? std::string() : decoder->finish()) + "\n";
  std::fwrite(rest.data(), 1, rest.size(), stdout);
  std::fflush(stdout);
  if (!job.variants[0].error.empty()) throw_resource("{}", job.variants[0].error);
  if (!options.picture.empty())
    write_file_atomically(options.picture, capture.draw(strategy, options.picture_head, *threads));
  if (!options.dump_logits.empty()) dump_logits(options.dump_logits, job);
  if (options.stats) print_stats(options, *engine, job, ids.size());
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* verb = app.add_subcommand(
      "generate", "Runs a prompt through a model under a strategy and prints what it writes");
  verb->add_option("--model", options->model, "Folder with config.json, *.safetensors, tokenizer.json")
      ->required();
  CLI::Option* prompt = verb->add_option("--prompt", options->prompt, "The user's message, or @FILE");
  CLI::Option* ids = verb->add_option("--ids", options->ids, "Token ids of the whole prompt: 1,2,3 or @FILE")
                         ->excludes(prompt);
  verb->add_option("--strategy", options->strategy,
                   "What to keep, as YAML or JSON, or @FILE; default: dense");
  verb->add_option("--max-tokens", options->max_tokens, "Most tokens to generate")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  verb->add_option("--temperature", options->temperature, "0: the most probable token each time")
      ->check(CLI::Range(0.0f, 100.0f))
      ->capture_default_str();
  verb->add_option("--top-p", options->top_p, "Draw from the most probable tokens of this mass")
      ->check(CLI::Range(0.0f, 1.0f))
      ->capture_default_str();
  verb->add_option("--seed", options->seed, "Of the random draws")->capture_default_str();
  verb->add_option("--chat", options->chat,
                   "Chat format: auto (the folder's own), none, chatml, llama3, gemma")
      ->capture_default_str();
  verb->add_option("--rope", options->rope,
                   "RoPE scaling in config.json's syntax, in place of the folder's, or @FILE");
  verb->add_option("--picture", options->picture,
                   "Draw what the strategy keeps of the prompt in one layer: .svg (on the CPU)");
  verb->add_option("--picture-layer", options->picture_layer, "That layer, from 0")
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--picture-head", options->picture_head, "Query head of a prefill, from 0")
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--dump-logits", options->dump_logits,
                   "Write the logits of the prompt's last and of every generated token to this .npy file");
  verb->add_option("--device", options->device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  verb->add_flag("--share-gpu", options->share_gpu,
                 "Let several ranks use one GPU, each with its share of the memory");
  verb->add_option("--threads", options->threads,
                   "Threads per rank; 0: the machine's cores shared among the ranks")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  verb->add_flag("--ignore-stop", options->ignore_stop, "Go on past stop tokens");
  verb->add_flag("--print-ids", options->print_ids, "Print token ids instead of text");
  verb->add_flag("--stats", options->stats, "Print times, memory and sparsity to standard error at the end");
  verb->footer(
      "Example: lacuna generate --model Qwen2.5-7B-Instruct --prompt 'Why is the sky blue?' --strategy "
      "'{evict: snapkv}'\n"
      "Under mpirun the ranks share the model: mpirun -np 4 lacuna generate ...");
  verb->callback([options, prompt, ids] {
    LACUNA_REQUIRE(prompt->count() + ids->count() == 1, "generate: give either --prompt or --ids");
    generate(*options);
  });
}

}  // namespace lacuna

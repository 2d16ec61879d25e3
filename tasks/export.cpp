#include "tasks/export.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/json.h"
#include "core/rng.h"
#include "core/thread_pool.h"

namespace lacuna {

namespace {

static_assert(std::endian::native == std::endian::little, "records are written as they lie in memory");

struct Job {
  std::unique_ptr<const Task> task;
  std::int64_t length = 0;
  bool trust_pieces = true;  ///< Pieces and whole prompts were seen to tokenise alike.
};

class Exporter {
 public:
  Exporter(const std::vector<ExportJob>& jobs, const ExportOptions& options)
      : options_(options), end_(end_of_turn(*options.tokenizer, options.chat)) {
    LACUNA_REQUIRE(!jobs.empty(), "export: no task was asked for");
    LACUNA_REQUIRE(jobs.size() <= UINT16_MAX, "export: at most {} jobs, found {}", UINT16_MAX, jobs.size());
    LACUNA_REQUIRE(options.tokenizer->vocab_size() <= UINT16_MAX + 1,
                   "export: ids are written as 16 bits, but the vocabulary has {} entries; use --jsonl",
                   options.tokenizer->vocab_size());
    for (const auto& job : jobs) {
      const auto& info = find_task(job.task, "export");
      jobs_.push_back({make_task(job.task, Params::parse(info.params, job.params, job.task)), job.length});
      total_weight_ += job.weight;
      shares_.push_back(total_weight_);
    }
    equal_ = std::ranges::all_of(jobs, [&](const ExportJob& job) { return job.weight == jobs[0].weight; });
    for (int i = 0; i < options.threads; ++i) caches_.emplace_back(*options.tokenizer);
    for (std::size_t i = 0; i < jobs_.size(); ++i) probe(jobs_[i]);
  }

  std::size_t job_of(std::uint64_t index) const {
    if (equal_) return index % jobs_.size();
    const double at = Rng(options_.seed, stream_id("export", index)).uniform() * total_weight_;
    const auto it = std::ranges::upper_bound(shares_, at);
    return std::min(static_cast<std::size_t>(it - shares_.begin()), shares_.size() - 1);
  }

  void append(std::string& out, std::uint64_t index, int thread) {
    const std::size_t number = job_of(index);
    const Job& job = jobs_[number];
    const Sample sample = generate(job, index, thread, job.trust_pieces);
    if (job.trust_pieces && index % kCheckEvery == 0) {
      LACUNA_CHECK(sample.ids == encode_chat(*options_.tokenizer, options_.chat, sample.prompt),
                   "sample {} tokenises differently by pieces and as a whole", index);
    }
    std::vector<TokenId> ids = sample.ids;
    const std::uint32_t answer_start = static_cast<std::uint32_t>(ids.size());
    const auto answer = options_.tokenizer->encode(sample.answer_text);
    ids.insert(ids.end(), answer.begin(), answer.end());
    ids.push_back(end_);
    const auto put = [&](auto value) { out.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
    put(static_cast<std::uint32_t>(ids.size()));
    put(answer_start);
    put(static_cast<std::uint16_t>(number));
    put(std::uint16_t{0});
    for (const TokenId id : ids) put(static_cast<std::uint16_t>(id));
  }

  int threads() const { return options_.threads; }

 private:
  static constexpr std::uint64_t kCheckEvery = 64, kProbes = 8;

  Sample generate(const Job& job, std::uint64_t index, int thread, bool trust) {
    return job.task->generate({.tokenizer = options_.tokenizer,
                               .chat = options_.chat,
                               .target_tokens = job.length,
                               .seed = options_.seed,
                               .index = index,
                               .cache = &caches_[static_cast<std::size_t>(thread)],
                               .trust_pieces = trust});
  }

  /// Finds out whether this tokenizer splits where pieces end.
  void probe(Job& job) {
    for (std::uint64_t i = 0; i < kProbes && job.trust_pieces; ++i) {
      const Sample sample = generate(job, options_.first + i, 0, true);
      job.trust_pieces = sample.ids == encode_chat(*options_.tokenizer, options_.chat, sample.prompt);
    }
  }

  ExportOptions options_;
  TokenId end_;
  std::vector<Job> jobs_;
  std::vector<double> shares_;  ///< Running sums of the weights
  double total_weight_ = 0;
  bool equal_ = true;
  std::vector<PieceCache> caches_;
};

}  // namespace

std::vector<ExportJob> parse_export_spec(const Json& spec, const std::string& where) {
  LACUNA_REQUIRE(spec.is_array() && !spec.empty(), "{}: expected a list of {{\"task\", \"length\", ...}}",
                 where);
  std::vector<ExportJob> jobs;
  for (std::size_t i = 0; i < spec.size(); ++i) {
    const std::string at = fmt::format("{}[{}]", where, i);
    LACUNA_REQUIRE(spec[i].is_object(), "{}: expected an object, found {}", at, spec[i].type_name());
    for (const auto& [key, value] : spec[i].items()) {
      LACUNA_REQUIRE(key == "task" || key == "length" || key == "params" || key == "weight",
                     "{}: unknown field '{}'; valid: task, length, params, weight", at, key);
    }
    ExportJob job{.task = json_get<std::string>(spec[i], "task", at),
                  .params = spec[i].value("params", Json::object()),
                  .length = json_get<std::int64_t>(spec[i], "length", at),
                  .weight = json_get_or<double>(spec[i], "weight", 1.0, at)};
    LACUNA_REQUIRE(std::isfinite(job.weight) && job.weight > 0, "{}: weight must be positive", at);
    (void)find_task(job.task, at);
    jobs.push_back(std::move(job));
  }
  return jobs;
}

TokenId end_of_turn(const Tokenizer& tokenizer, ChatFormat chat) {
  // The user's turn ends as the assistant's must: with the token that the frame's suffix begins with.
  const std::string suffix = chat_frame(chat).suffix;
  LACUNA_REQUIRE(!suffix.empty(),
                 "export: a model without a chat format has no end-of-turn token; give --chat");
  const std::string text = suffix.substr(0, suffix.find('>') + 1);
  const TokenId id = tokenizer.token_id(text);
  LACUNA_REQUIRE(id >= 0, "export: the tokenizer has no token '{}', which chat format '{}' ends with", text,
                 name_of(chat));
  return id;
}

std::uint64_t export_samples(const std::vector<ExportJob>& jobs, const ExportOptions& options,
                             const std::function<bool(std::string_view)>& write) {
  Exporter exporter(jobs, options);
  const auto threads = static_cast<std::uint64_t>(exporter.threads());
  ThreadPool pool(exporter.threads());
  const std::uint64_t per_thread = threads == 1 ? 1 : 16;
  std::vector<std::string> blocks(threads);
  std::uint64_t done = 0;
  while (options.count == 0 || done < options.count) {
    const std::uint64_t batch =
        options.count == 0 ? threads * per_thread : std::min(threads * per_thread, options.count - done);
    pool.parallel_for(static_cast<std::int64_t>(threads), [&](std::int64_t block) {
      auto& out = blocks[static_cast<std::size_t>(block)];
      out.clear();
      const auto begin = static_cast<std::uint64_t>(block) * batch / threads;
      const auto end = (static_cast<std::uint64_t>(block) + 1) * batch / threads;
      for (std::uint64_t i = begin; i < end; ++i) {
        exporter.append(out, options.first + done + i, static_cast<int>(block));
      }
    });
    for (const auto& block : blocks) {
      if (!block.empty() && !write(block)) return done;
    }
    done += batch;
  }
  return done;
}

}  // namespace lacuna

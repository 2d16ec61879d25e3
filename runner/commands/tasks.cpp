// lacuna tasks: lists the benchmark tasks, prints and exports samples, scores predictions.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/text.h"
#include "core/thread_pool.h"
#include "runner/commands/commands.h"
#include "tasks/document.h"
#include "tasks/export.h"
#include "tasks/task.h"

namespace lacuna {

namespace {

struct Options {
  std::string names, model, length = "4096", chat, data, jsonl, score, export_file, spec;
  std::vector<std::string> params;
  std::uint64_t index = 0, count = 0, seed = 42;
  int threads = 0;
  bool show_params = false, markdown = false;
};

/// Standard output ("-") or a file. Everything is checked, so that a full disk is an error and not a short
/// file.
class Output {
 public:
  explicit Output(const std::string& path) : path_(path) {
    file_ = path == "-" ? stdout : std::fopen(path.c_str(), "wb");
    LACUNA_REQUIRE(file_ != nullptr, "{}: cannot be written: {}", path, std::strerror(errno));
  }
  ~Output() {
    if (file_ != nullptr && file_ != stdout) std::fclose(file_);
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void write(std::string_view bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) fail();
  }
  /// Must be called at the end.
  void close() {
    const bool ok = std::fflush(file_) == 0 && (file_ == stdout || std::fclose(file_) == 0);
    if (file_ != stdout) file_ = nullptr;
    if (!ok) fail();
  }

 private:
  [[noreturn]] void fail() { throw_library("{}: writing failed: {}", path_, std::strerror(errno)); }
  std::string path_;
  std::FILE* file_;
};

Json given_params(const Options& options) {
  Json given = Json::object();
  for (const auto& text : options.params) {
    const auto equals = text.find('=');
    LACUNA_REQUIRE(equals != std::string::npos && equals > 0, "-p {}: expected name=value", text);
    given[text.substr(0, equals)] = parse_scalar(text.substr(equals + 1));
  }
  if (!options.data.empty()) given["data"] = options.data;
  return given;
}

struct Loaded {
  Tokenizer tokenizer;
  ChatFormat chat;
};

Loaded load_model(const Options& options) {
  LACUNA_REQUIRE(!options.model.empty(),
                 "tasks: --model FOLDER is needed (a folder with tokenizer.json) to write samples");
  return {Tokenizer::load(options.model), options.chat.empty() ? detect_chat_format(options.model)
                                                               : parse_chat_format(options.chat, "--chat")};
}

void print_list() {
  for (const auto& info : tasks()) {
    fmt::print("{:<16} {:<12} {:<16} {}\n", info.name, info.metric, name_of(info.group),
               info.summary + (info.needs_data ? " (needs --data FILE)" : ""));
  }
  fmt::print(
      "\nA sample: lacuna tasks ruler_niah --model FOLDER --length 4096. Parameters: lacuna tasks ruler_niah "
      "--params\n");
}

void print_params(const TaskInfo& info) {
  fmt::print("{}: {}\n", info.name, info.summary);
  for (const auto& spec : info.params)
    fmt::print("  -p {:<22} {}\n     {}\n", spec.name + "=...", describe(spec), spec.help);
}

std::string shortened(const std::string& text, std::size_t most) {
  if (text.size() <= most) return text;
  const auto safe = [&](std::size_t at) {  // not inside a UTF-8 character
    while (at > 0 && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    return at;
  };
  const std::size_t head = safe(most / 2), tail = safe(text.size() - most / 2);
  return fmt::format("{}\n[... {} bytes left out; --jsonl - prints everything ...]\n{}", text.substr(0, head),
                     tail - head, text.substr(tail));
}

void print_sample(const TaskInfo& info, const Sample& sample, std::int64_t target) {
  fmt::print("{}\n", shortened(sample.prompt, 6000));
  fmt::print("---\nright answer: {}\n", sample.answer_text);
  fmt::print("metric: {}\ntokens: {} of {} ({:.1f} %)\n", info.metric, sample.ids.size(), target,
             100.0 * static_cast<double>(sample.ids.size()) / static_cast<double>(target));
  for (const auto& [section, tokens] : sample.sections) fmt::print("  {:<16} {:>8}\n", section, tokens);
}

Json sample_record(const std::string& name, const Json& params, const Options& options, std::int64_t length,
                   std::uint64_t index, const Sample& sample) {
  Json sections = Json::object();
  for (const auto& [section, tokens] : sample.sections) sections[section] = tokens;
  return {{"task", name},
          {"params", params},
          {"seed", options.seed},
          {"index", index},
          {"length", length},
          {"tokens", sample.ids.size()},
          {"sections", sections},
          {"prompt", sample.prompt},
          {"gold", sample.gold},
          {"answer_text", sample.answer_text},
          {"description", sample.description}};
}

std::string to_line(const Json& record) {
  return record.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::uint64_t checked_count(const Options& options, const Task& task) {
  const std::uint64_t count = options.count == 0 ? 1 : options.count;
  LACUNA_REQUIRE(task.size() == 0 || options.index + count <= task.size(),
                 "the data file gives {} samples; {} from index {} on were asked for", task.size(), count,
                 options.index);
  return count;
}

void write_samples(const Options& options) {
  const TaskInfo& info = find_task(options.names, "tasks");
  const Params params = Params::parse(info.params, given_params(options), info.name);
  const auto task = make_task(info.name, params);
  const Loaded model = load_model(options);
  const std::int64_t length = parse_count(options.length, "--length");
  PieceCache cache(model.tokenizer);
  SampleRequest request{.tokenizer = &model.tokenizer,
                        .chat = model.chat,
                        .target_tokens = length,
                        .seed = options.seed,
                        .index = options.index,
                        .cache = &cache};
  const std::uint64_t count = checked_count(options, *task);
  if (options.jsonl.empty()) {
    for (; request.index < options.index + count; ++request.index) {
      print_sample(info, task->generate(request), length);
    }
    return;
  }
  Output out(options.jsonl);
  for (; request.index < options.index + count; ++request.index) {
    const Sample sample = task->generate(request);
    out.write(to_line(sample_record(info.name, params.to_json(), options, length, request.index, sample)));
  }
  out.close();
}

void write_export(const Options& options) {
  const Loaded model = load_model(options);
  std::vector<ExportJob> jobs;
  if (!options.spec.empty()) {
    LACUNA_REQUIRE(options.names.empty() && options.params.empty() && options.data.empty(),
                   "--spec holds tasks and parameters itself; leave out NAME, -p and --data");
    jobs = parse_export_spec(read_json_file(options.spec), options.spec);
  } else {
    const std::int64_t length = parse_count(options.length, "--length");
    for (const auto& name : split(options.names, ',')) {
      jobs.push_back({.task = name, .params = given_params(options), .length = length});
    }
  }
  const ExportOptions settings{.tokenizer = &model.tokenizer,
                               .chat = model.chat,
                               .seed = options.seed,
                               .first = options.index,
                               .count = options.count,
                               .threads = options.threads == 0 ? default_threads() : options.threads};
  LACUNA_REQUIRE(options.count > 0 || options.export_file == "-", "--export {}: a file needs --count",
                 options.export_file);
  LACUNA_REQUIRE(options.export_file != "-" || isatty(STDOUT_FILENO) == 0,
                 "--export -: records are binary; send them to a file or a pipe");
  Output out(options.export_file);
  export_samples(jobs, settings, [&](std::string_view bytes) {
    out.write(bytes);
    return true;
  });
  out.close();
}

struct Tally {
  std::uint64_t n = 0, no_answer = 0;
  double sum = 0, squares = 0;
};

void score_file(const Options& options) {
  const std::string text = read_file(options.score);
  std::map<std::string, Tally> tallies;
  std::unique_ptr<Output> out;
  if (!options.jsonl.empty()) out = std::make_unique<Output>(options.jsonl);
  std::size_t number = 0;
  for (const auto& line : split(text, '\n')) {
    ++number;
    if (trim(line).empty()) continue;
    const std::string where = fmt::format("{}:{}", options.score, number);
    const Json record = parse_json(line, where);
    LACUNA_REQUIRE(record.is_object(), "{}: expected an object with gold and prediction", where);
    const std::string name =
        options.names.empty() ? json_get<std::string>(record, "task", where) : options.names;
    (void)find_task(name, where);
    LACUNA_REQUIRE(record.contains("gold"), "{}: field 'gold' is missing", where);
    const Score score =
        score_output(name, record["gold"], json_get<std::string>(record, "prediction", where), where);
    auto& tally = tallies[name];
    ++tally.n;
    tally.no_answer += score.no_answer ? 1 : 0;
    tally.sum += score.value;
    tally.squares += score.value * score.value;
    if (out) {
      Json line_out = {
          {"task", name}, {"score", score.value}, {"no_answer", score.no_answer}, {"answer", score.answer}};
      if (record.contains("index")) line_out["index"] = record["index"];
      out->write(to_line(line_out));
    }
  }
  LACUNA_REQUIRE(!tallies.empty(), "{}: no predictions in it", options.score);
  if (out) out->close();
  if (options.jsonl == "-") return;
  fmt::print("{:<16} {:>7} {:>8} {:>8} {:>10}\n", "task", "n", "score", "+-", "no answer");
  for (const auto& [name, t] : tallies) {
    const double n = static_cast<double>(t.n), mean = t.sum / n;
    const double sem = t.n < 2 ? 0.0 : std::sqrt(std::max(0.0, t.squares / n - mean * mean) / (n - 1));
    fmt::print("{:<16} {:>7} {:>8.4f} {:>8.4f} {:>10}\n", name, t.n, mean, sem, t.no_answer);
  }
}

void run(const Options& options) {
  if (options.markdown) {
    const Loaded model = load_model(options);
    fmt::print("{}", tasks_markdown(model.tokenizer, model.chat, "`" + options.model + "`"));
    return;
  }
  if (!options.score.empty()) return score_file(options);
  if (!options.export_file.empty()) {
    LACUNA_REQUIRE(!options.names.empty() || !options.spec.empty(), "--export needs NAME or --spec FILE");
    return write_export(options);
  }
  if (options.names.empty()) {
    LACUNA_REQUIRE(options.model.empty() && options.jsonl.empty() && options.params.empty(),
                   "tasks: a task's NAME is missing; `lacuna tasks` lists them");
    return print_list();
  }
  if (options.show_params) return print_params(find_task(options.names, "tasks"));
  write_samples(options);
}

}  // namespace

void add_tasks_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("tasks", "List the benchmark tasks, write samples, score predictions");
  command->footer(
      "Examples:\n"
      "  lacuna tasks\n"
      "  lacuna tasks ruler_vt --params\n"
      "  lacuna tasks ruler_niah --model FOLDER --length 16K --index 3\n"
      "  lacuna tasks qa_squad --data squad.json --model FOLDER --length 8K --count 100 --jsonl "
      "samples.jsonl\n"
      "  lacuna tasks --score predictions.jsonl      (lines with task, gold, prediction)\n"
      "  lacuna tasks ruler_niah,ruler_vt --model FOLDER --length 1024 -p preset=mini -p style=direct "
      "--export - | trainer");
  command->add_option("NAME", options->names, "Task (several with commas for --export)");
  command->add_option("--model", options->model, "Folder with tokenizer.json and the chat template");
  command->add_option("--chat", options->chat,
                      "Chat format (chatml, llama3, gemma, none) instead of the folder's own");
  command->add_option("--length", options->length, "Tokens of the prompt, chat frame included (4096, 16K)");
  command->add_option("--index", options->index, "Index of the (first) sample");
  command->add_option("--count", options->count, "How many samples");
  command->add_option("--seed", options->seed, "Seed")->capture_default_str();
  command->add_option("-p,--param", options->params, "Parameter of the task as name=value");
  command->add_option("--data", options->data, "Data file of a QA task");
  command->add_flag("--params", options->show_params, "Print the task's parameters");
  command->add_flag("--markdown", options->markdown, "Print docs/tasks.md, with token counts of --model");
  command->add_option("--jsonl", options->jsonl,
                      "Write samples (with --score: scores) as JSON lines; - is standard output");
  command->add_option("--score", options->score, "Score the predictions in this file of JSON lines");
  command->add_option("--export", options->export_file,
                      "Write token ids for training (docs/tasks.md); - is standard output");
  command->add_option("--spec", options->spec, "JSON list of {task, length, params, weight} for --export");
  command->add_option("--threads", options->threads, "Threads for --export (default: all cores)")
      ->check(CLI::Range(1, 1024));
  command->callback([options] { run(*options); });
}

}  // namespace lacuna

#include "slurm/options.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstdlib>

#include "core/error.h"
#include "core/text.h"

namespace lacuna::slurm {
namespace {

int parse_int(const std::string& text, int least, const std::string& where) {
  int value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  LACUNA_REQUIRE(status == std::errc() && end == text.data() + text.size() && value >= least,
                 "{}: '{}' must be a whole number of at least {}", where, text, least);
  return value;
}

/// One word for sbatch: what a line of the script can hold without meaning something else.
std::string parse_word(const std::string& text, const std::string& where) {
  LACUNA_REQUIRE(
      !text.empty() && std::none_of(text.begin(), text.end(),
                                    [](unsigned char c) { return std::isspace(c) || std::iscntrl(c); }),
      "{}: '{}' must be one word", where, text);
  return text;
}

std::string parse_line(const std::string& text, const std::string& where) {
  LACUNA_REQUIRE(!text.empty() && text.find_first_of("\n\r") == std::string::npos &&
                     text.find('\0') == std::string::npos,
                 "{}: must be one line of text", where);
  return text;
}

void apply_memory(SlurmOptions& o, const std::string& v, const std::string& where) {
  std::size_t digits = 0;
  while (digits < v.size() && std::isdigit(static_cast<unsigned char>(v[digits])) != 0) ++digits;
  const std::string unit = v.substr(digits);
  LACUNA_REQUIRE(digits > 0 && (unit.empty() || unit == "M" || unit == "G" || unit == "T"),
                 "{}: '{}' is not a memory size: write 64G, or 0 for the whole node", where, v);
  o.memory = v;
}

void apply_signal(SlurmOptions& o, const std::string& v, const std::string& where) {
  const auto at = v.find('@');
  std::string name = v.substr(0, at);
  if (name.rfind("SIG", 0) == 0) name = name.substr(3);
  LACUNA_REQUIRE(name != "USR1",
                 "{}: SIGUSR1 cannot be used: NCCL and some MPI libraries take it; write USR2@120", where);
  LACUNA_REQUIRE(name == "USR2" || name == "TERM", "{}: '{}' must be USR2@SECONDS or TERM@SECONDS", where, v);
  o.signal = name;
  if (at != std::string::npos) o.signal_seconds = parse_int(v.substr(at + 1), 1, where);
  LACUNA_REQUIRE(o.signal_seconds <= 65535, "{}: Slurm takes at most 65535 seconds", where);
}

void apply_environment(SlurmOptions& o, const std::string& v, const std::string& where) {
  const auto at = v.find('=');
  const std::string name = v.substr(0, at);
  const bool good =
      at != std::string::npos && !name.empty() && std::isdigit(static_cast<unsigned char>(name[0])) == 0 &&
      std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) || c == '_'; });
  LACUNA_REQUIRE(good, "{}: '{}' must be NAME=VALUE", where, v);
  o.environment.emplace_back(name, v.substr(at + 1));
}

void apply_sbatch_arg(SlurmOptions& o, const std::string& v, const std::string& where) {
  LACUNA_REQUIRE(v.rfind("--", 0) == 0, "{}: '{}' must look like --name=value", where, v);
  // These carry the script's logic; another value would break it silently.
  for (const char* fixed :
       {"--array", "--requeue", "--no-requeue", "--signal", "--open-mode", "--output", "--error",
        "--job-name", "--comment", "--ntasks", "--nodes", "--dependency", "--chdir"}) {
    LACUNA_REQUIRE(v != fixed && v.rfind(std::string(fixed) + "=", 0) != 0,
                   "{}: {} is set by lacuna sbatch itself", where, fixed);
  }
  o.sbatch_args.push_back(parse_line(v, where));
}

void apply_gpu_memory(SlurmOptions& o, const std::string& v, const std::string& where) {
  char* end = nullptr;
  const double gib = std::strtod(v.c_str(), &end);
  const std::string unit = end;
  LACUNA_REQUIRE(end != v.c_str() && gib > 0 && gib < 1e6 && (unit.empty() || unit == "G" || unit == "GiB"),
                 "{}: '{}' must be GiB of one GPU: 80", where, v);
  o.gpu_memory_gib = gib;
}

#define LACUNA_APPLY(EXPRESSION) \
  [](SlurmOptions& o, const std::string& v, const std::string& where) { EXPRESSION; }

const std::array kSettings = {
    Setting{"nodes", "N", "Nodes of each job", false, LACUNA_APPLY(o.nodes = parse_int(v, 1, where))},
    Setting{"gpus-per-node", "G", "GPUs on each node; one rank runs per GPU", false,
            LACUNA_APPLY(o.gpus_per_node = parse_int(v, 1, where))},
    Setting{"array", "K", "K independent jobs share the sweep; another merges and analyses", false,
            LACUNA_APPLY(o.array = parse_int(v, 1, where))},
    Setting{"time", "TIME",
            "Time limit of one start (HH:MM:SS, D-HH, minutes); longer studies start again by themselves",
            false, LACUNA_APPLY(parse_time(v, where); o.time = v)},
    Setting{"partition", "NAME", "Partition (several: a,b)", false,
            LACUNA_APPLY(o.partition = parse_word(v, where))},
    Setting{"account", "NAME", "Account that is charged", false,
            LACUNA_APPLY(o.account = parse_word(v, where))},
    Setting{"qos", "NAME", "Quality of service", false, LACUNA_APPLY(o.qos = parse_word(v, where))},
    Setting{"constraint", "FEATURES", "Node features, as in sbatch --constraint", false,
            LACUNA_APPLY(o.constraint = parse_word(v, where))},
    Setting{"gpu-type", "TYPE", "GPU type as Slurm names it (sinfo -o %G): a100, h100, h200", false,
            LACUNA_APPLY(o.gpu_type = parse_word(v, where))},
    Setting{"gpu-memory", "GIB", "Memory of one GPU in GiB, when the type does not tell", false,
            apply_gpu_memory},
    Setting{"cpus-per-gpu", "N", "Cores per rank (default: the GPU's share of its node, at most 16)", false,
            LACUNA_APPLY(o.cpus_per_gpu = parse_int(v, 1, where))},
    Setting{"memory", "SIZE", "Host memory per node, as in sbatch --mem (default: the partition's)", false,
            apply_memory},
    Setting{"launcher", "NAME", "mpirun, or srun (with --mpi=pmix)", false,
            LACUNA_APPLY(
                LACUNA_REQUIRE(v == "mpirun" || v == "srun", "{}: '{}' must be mpirun or srun", where, v);
                o.launcher = v)},
    Setting{"signal", "SIG@S", "Warning before the time limit: USR2@120, or TERM@120", false, apply_signal},
    Setting{"max-stalls", "N", "Give up after N starts in a row that finished no sample", false,
            LACUNA_APPLY(o.max_stalls = parse_int(v, 1, where))},
    Setting{"module", "NAME", "Environment module to load; may be repeated", true,
            LACUNA_APPLY(o.modules.push_back(parse_line(v, where)))},
    Setting{"env", "NAME=VALUE", "Environment variable for the run; may be repeated", true,
            apply_environment},
    Setting{"setup", "FILE", "Shell file to source before the run", false,
            LACUNA_APPLY(o.setup = parse_line(v, where))},
    Setting{"container", "IMAGE", "Apptainer image to run lacuna from (see docs/slurm.md)", false,
            LACUNA_APPLY(o.container = parse_line(v, where))},
    Setting{"sbatch-arg", "ARG", "Any other option of sbatch, as --name=value; may be repeated", true,
            apply_sbatch_arg},
};
#undef LACUNA_APPLY

}  // namespace

std::span<const Setting> slurm_settings() { return kSettings; }

std::optional<long long> parse_time(const std::string& text, const std::string& where) {
  if (text == "UNLIMITED" || text == "INFINITE" || text == "infinite") return std::nullopt;
  const auto wrong = [&]() -> long long {
    throw_usage("{}: '{}' is not a time: write minutes, HH:MM:SS, D-HH or D-HH:MM:SS", where, text);
  };
  const auto number = [&](const std::string& part) -> long long {
    long long value = 0;
    const auto [end, status] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (status != std::errc() || end != part.data() + part.size() || value < 0 || value > 10'000'000)
      return wrong();
    return value;
  };
  const auto dash = text.find('-');
  long long seconds = 0;
  if (dash != std::string::npos) {
    const auto parts = split(std::string_view(text).substr(dash + 1), ':');
    if (parts.size() > 3) wrong();
    seconds = number(text.substr(0, dash)) * 86400;
    long long unit = 3600;
    for (const auto& part : parts) {
      seconds += number(part) * unit;
      unit /= 60;
    }
  } else {
    const auto parts = split(text, ':');
    if (parts.size() == 1) seconds = number(parts[0]) * 60;
    if (parts.size() == 2) seconds = number(parts[0]) * 60 + number(parts[1]);
    if (parts.size() == 3) seconds = number(parts[0]) * 3600 + number(parts[1]) * 60 + number(parts[2]);
    if (parts.size() > 3) wrong();
  }
  if (seconds == 0) wrong();
  return seconds;
}

std::string format_time(long long seconds) {
  const long long days = seconds / 86400, rest = seconds % 86400;
  const std::string clock = fmt::format("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
  return days > 0 ? fmt::format("{}-{}", days, clock) : clock;
}

std::optional<double> gpu_memory_by_type(const std::string& type) {
  std::string name = type;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  struct Known {
    const char* name;
    const char* variant;
    double gib;
  };
  // Usable memory as the driver reports it, rounded down; a bare "a100" may be the 40 GB one.
  static constexpr Known kKnown[] = {
      {"h200", "", 140},   {"gh200", "", 94}, {"h100", "94", 93}, {"h100", "", 79},
      {"a100", "80", 79},  {"a100", "", 39},  {"b200", "", 178},  {"l40s", "", 44},
      {"l40", "", 44},     {"a40", "", 44},   {"v100", "32", 31}, {"v100", "", 15},
      {"rtx6000", "", 47}, {"a30", "", 23},   {"l4", "", 22},     {"t4", "", 14}};
  for (const auto& known : kKnown) {
    const auto at = name.find(known.name);
    if (at == std::string::npos) continue;
    if (at > 0 && std::isalnum(static_cast<unsigned char>(name[at - 1])) != 0) continue;  // gh200 is no h200
    const auto end = at + std::char_traits<char>::length(known.name);
    if (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end])) != 0)
      continue;  // l40 is no l4
    if (name.find(known.variant, end) != std::string::npos) return known.gib;
  }
  return std::nullopt;
}

}  // namespace lacuna::slurm

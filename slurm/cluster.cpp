#include "slurm/cluster.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <set>

#include "core/error.h"
#include "core/text.h"
#include "slurm/options.h"

namespace lacuna::slurm {
namespace {

long long leading_number(std::string_view text) {
  long long value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

/// "sbatch: error: Batch job submission failed: Invalid partition" -> the last words, the part that says what
/// is wrong.
std::string slurm_words(const CommandResult& result) {
  std::string best;
  for (const auto& line : split(result.err.empty() ? result.out : result.err, '\n')) {
    std::string_view words = trim(line);
    for (const std::string_view prefix :
         {"sbatch: ", "allocation failure: ", "error: ", "fatal: ", "Batch job submission failed: "}) {
      if (words.substr(0, prefix.size()) == prefix) words.remove_prefix(prefix.size());
    }
    if (!words.empty()) best += (best.empty() ? "" : "; ") + std::string(words);
  }
  return best.empty() ? fmt::format("exit code {}", result.code) : best;
}

}  // namespace

int NodeGroup::gpu_count(const std::string& type) const {
  int count = 0;
  for (const auto& [name, number] : gpus) {
    if (type.empty() || name == type) count += number;
  }
  return count;
}

std::map<std::string, int> parse_gres_gpus(const std::string& gres) {
  // Commas also stand inside parentheses: gpu:a100:4(S:0,2).
  std::map<std::string, int> gpus;
  std::string item;
  int depth = 0;
  const auto finish = [&] {
    const auto parts = split(item, ':');
    if (parts[0] == "gpu" && parts.size() >= 2) {
      const std::string type = parts.size() >= 3 ? parts[1] : "";
      gpus[type] += static_cast<int>(leading_number(parts.back()));
    }
    item.clear();
  };
  for (const char c : gres) {
    if (c == '(') ++depth;
    if (depth == 0 && c == ',') {
      finish();
    } else if (depth == 0) {
      item += c;
    }
    if (c == ')') --depth;
  }
  finish();
  return gpus;
}

std::vector<NodeGroup> parse_sinfo(const std::string& text) {
  std::vector<NodeGroup> groups;
  for (const auto& line : split(text, '\n')) {
    const auto fields = split(trim(line), '|');
    if (fields.size() < 7) continue;
    NodeGroup group;
    group.partition = fields[0];
    if (!group.partition.empty() && group.partition.back() == '*') {
      group.is_default = true;
      group.partition.pop_back();
    }
    group.up = fields[1] == "up";
    if (fields[2] != "infinite" && fields[2] != "n/a")
      group.time_limit = parse_time(
          fields[2] +
              (split(fields[2], ':').size() == 1 && fields[2].find('-') == std::string::npos ? ":00" : ""),
          "sinfo");
    group.nodes = static_cast<int>(leading_number(fields[3]));
    group.cpus = static_cast<int>(leading_number(fields[4]));
    group.memory_mib = leading_number(fields[5]);
    group.gpus = parse_gres_gpus(fields[6]);
    groups.push_back(std::move(group));
  }
  return groups;
}

const std::string& JobRecord::get(const std::string& name) const {
  static const std::string kNone;
  const auto it = fields.find(name);
  return it == fields.end() ? kNone : it->second;
}

std::vector<JobRecord> parse_scontrol_jobs(const std::string& text) {
  std::vector<JobRecord> jobs;
  for (const auto& line : split(text, '\n')) {
    if (line.rfind("JobId=", 0) != 0) continue;
    JobRecord job;
    std::string key;
    bool first = true;
    for (const auto& word : split(line, ' ')) {
      const auto equals = word.find('=');
      const bool names_field =
          equals != std::string::npos && equals > 0 &&
          std::isupper(static_cast<unsigned char>(word[0])) != 0 &&
          std::all_of(word.begin(), word.begin() + static_cast<std::ptrdiff_t>(equals), [](unsigned char c) {
            return std::isalnum(c) || c == '_' || c == ':' || c == '/' || c == '-';
          });
      if (names_field) {
        key = word.substr(0, equals);
        first = job.fields.emplace(key, word.substr(equals + 1)).second;
      } else if (!key.empty() && first && !word.empty()) {
        job.fields[key] += " " + word;
      }
    }
    job.id = job.get("JobId");
    if (!job.get("ArrayJobId").empty() && !job.get("ArrayTaskId").empty()) {
      const std::string& task = job.get("ArrayTaskId");
      const bool many = task.find_first_of(",-%") != std::string::npos;
      job.id = fmt::format("{}_{}", job.get("ArrayJobId"), many ? "[" + task + "]" : task);
    }
    jobs.push_back(std::move(job));
  }
  return jobs;
}

bool Cluster::available() { return commands_.run({"sbatch", "--version"}).code == 0; }

std::vector<NodeGroup> Cluster::nodes() {
  const auto result = commands_.run({"sinfo", "-h", "-e", "-o", kSinfoFormat});
  if (result.code != 0) throw_library("Slurm does not answer (sinfo): {}", slurm_words(result));
  return parse_sinfo(result.out);
}

std::string Cluster::test(const std::string& script) {
  const auto result = commands_.run({"sbatch", "--test-only", script});
  LACUNA_REQUIRE(result.code == 0, "Slurm would refuse this job (sbatch --test-only {}): {}", script,
                 slurm_words(result));
  return slurm_words(result);
}

std::string Cluster::submit(const std::string& script, const std::string& dependency) {
  std::vector<std::string> argv = {"sbatch", "--parsable"};
  if (!dependency.empty()) argv.push_back("--dependency=" + dependency);
  argv.push_back(script);
  const auto result = commands_.run(argv);
  LACUNA_REQUIRE(result.code == 0, "Slurm refused the job (sbatch {}): {}", script, slurm_words(result));
  // "12" or "12;cluster"
  std::string id = split(trim(result.out), ';')[0];
  if (id.empty() || !std::all_of(id.begin(), id.end(), [](unsigned char c) { return std::isdigit(c); })) {
    throw_library("sbatch printed no job id but '{}'", trim(result.out));
  }
  return id;
}

std::vector<JobRecord> Cluster::jobs(const std::string& id) {
  const auto result = commands_.run({"scontrol", "-o", "show", "job", id});
  if (result.code == 0) return parse_scontrol_jobs(result.out);
  if (result.err.find("Invalid job id") != std::string::npos ||
      result.out.find("Invalid job id") != std::string::npos)
    return {};
  throw_library("Slurm does not answer (scontrol show job {}): {}", id, slurm_words(result));
}

std::vector<JobRecord> Cluster::finished_jobs(const std::string& id) {
  const auto result =
      commands_.run({"sacct", "-n", "-X", "-P", "-j", id, "-o", "JobID,State,ExitCode,NodeList"});
  std::vector<JobRecord> jobs;
  if (result.code != 0) return jobs;  // most test clusters and some sites have no accounting
  for (const auto& line : split(result.out, '\n')) {
    const auto fields = split(line, '|');
    if (fields.size() < 4) continue;
    // "CANCELLED by 1000"
    jobs.push_back(
        {fields[0],
         {{"JobState", split(fields[1], ' ')[0]}, {"ExitCode", fields[2]}, {"NodeList", fields[3]}}});
  }
  return jobs;
}

std::vector<std::string> Cluster::find_jobs(const std::string& name, const std::string& comment) {
  const auto result = commands_.run({"squeue", "-h", "--me", "-n", name, "-o", "%F|%k"});
  if (result.code != 0) throw_library("Slurm does not answer (squeue): {}", slurm_words(result));
  std::set<std::string> ids;
  for (const auto& line : split(result.out, '\n')) {
    const auto bar = line.find('|');
    if (bar != std::string::npos && trim(std::string_view(line).substr(bar + 1)) == comment)
      ids.insert(line.substr(0, bar));
  }
  return {ids.begin(), ids.end()};
}

void Cluster::cancel(const std::vector<std::string>& ids) {
  if (ids.empty()) return;
  std::vector<std::string> argv = {"scancel"};
  argv.insert(argv.end(), ids.begin(), ids.end());
  const auto result = commands_.run(argv);
  if (result.code != 0) throw_library("scancel: {}", slurm_words(result));
}

}  // namespace lacuna::slurm

#include "slurm/submission.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <set>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace lacuna::slurm {
namespace {

std::string jobs_file(const std::string& out) { return out + "/slurm/jobs.json"; }

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

void write_submitted_jobs(const std::string& out, const std::vector<SubmittedJob>& jobs) {
  Json list = Json::array();
  for (const auto& job : jobs) {
    list.push_back({{"id", job.id},
                    {"kind", job.kind},
                    {"array", job.array},
                    {"name", job.name},
                    {"comment", job.comment},
                    {"submitted", job.submitted}});
  }
  write_file_atomically(jobs_file(out), Json{{"version", 1}, {"jobs", list}}.dump(2) + "\n");
}

/// Waits or runs: everything that Slurm could still start or has not ended.
bool is_active(const JobRecord& job) {
  static const std::set<std::string> kActive = {
      "PENDING",   "RUNNING",   "CONFIGURING", "COMPLETING",   "SUSPENDED",   "REQUEUED",    "RESIZING",
      "SIGNALING", "STAGE_OUT", "STOPPED",     "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"};
  return kActive.count(job.get("JobState")) > 0;
}

/// Active jobs of this folder: ids, arrays as one.
std::vector<std::string> active_jobs(Cluster& cluster, const std::string& out) {
  const Study study{.program = {}, .sweep = {}, .out = out, .overrides = {}, .working_folder = {}};
  std::set<std::string> ids;
  for (const auto& id : cluster.find_jobs(study.job_name(), study.comment())) ids.insert(id);
  for (const auto& job : read_submitted_jobs(out)) {
    for (const auto& record : cluster.jobs(job.id)) {
      const bool ours = record.get("JobName") == job.name && record.get("Comment") == job.comment;
      if (ours && is_active(record)) ids.insert(job.id);
    }
  }
  return {ids.begin(), ids.end()};
}

}  // namespace

std::vector<SubmittedJob> read_submitted_jobs(const std::string& out) {
  const std::string file = jobs_file(out);
  std::vector<SubmittedJob> jobs;
  if (!std::filesystem::exists(file)) return jobs;
  const Json root = read_json_file(file);
  const Json list = json_get<Json>(root, "jobs", file);
  LACUNA_REQUIRE(list.is_array(), "{}: field 'jobs' must be a list", file);
  for (const auto& entry : list) {
    SubmittedJob job;
    job.id = json_get<std::string>(entry, "id", file);
    job.kind = json_get<std::string>(entry, "kind", file);
    job.array = json_get_or<int>(entry, "array", 1, file);
    job.name = json_get<std::string>(entry, "name", file);
    job.comment = json_get<std::string>(entry, "comment", file);
    job.submitted = json_get_or<std::string>(entry, "submitted", "", file);
    LACUNA_REQUIRE(!job.id.empty() && job.id.find_first_not_of("0123456789") == std::string::npos,
                   "{}: '{}' is no job id", file, job.id);
    jobs.push_back(std::move(job));
  }
  return jobs;
}

void write_scripts(const Study& study, const SlurmOptions& options) {
  // Texts first: a request that cannot be written down leaves nothing behind.
  const std::string run = run_script_text(study, options);
  std::error_code error;
  std::filesystem::create_directories(study.folder() + "/logs", error);
  if (!error) std::filesystem::create_directories(study.folder() + "/state", error);
  if (error) throw_library("{}: cannot make the folder: {}", study.folder(), error.message());
  write_file_atomically(study.rank_script(), rank_script_text());
  if (options.array > 1) write_file_atomically(study.merge_script(), merge_script_text(study, options));
  write_file_atomically(study.run_script(), run);
  for (const auto& script : {study.rank_script(), study.run_script()}) (void)::chmod(script.c_str(), 0755);
}

std::vector<SubmittedJob> submit(Cluster& cluster, const Study& study, const SlurmOptions& options) {
  const auto active = active_jobs(cluster, study.out);
  LACUNA_REQUIRE(
      active.empty(),
      "{}: job {} of this folder still waits or runs; two would do the same work twice. Cancel it first: "
      "lacuna sbatch --cancel {}",
      study.out, fmt::join(active, ", "), shell_quote(study.out));
  auto all = read_submitted_jobs(study.out);
  std::vector<SubmittedJob> made;
  const auto add = [&](const std::string& id, const char* kind, int array) {
    made.push_back({id, kind, array, study.job_name(), study.comment(), utc_now()});
    all.push_back(made.back());
    try {
      write_submitted_jobs(study.out, all);
    } catch (const Error&) {
      // A job that nobody knows about could not be cancelled by us: rather none.
      cluster.cancel({id});
      throw;
    }
  };
  const std::string id = cluster.submit(study.run_script());
  add(id, "run", options.array);
  if (options.array > 1) add(cluster.submit(study.merge_script(), "afterany:" + id), "merge", 1);
  return made;
}

std::vector<std::string> cancel(Cluster& cluster, const std::string& out) {
  const auto ids = active_jobs(cluster, out);
  cluster.cancel(ids);
  return ids;
}

}  // namespace lacuna::slurm

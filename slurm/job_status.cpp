#include "slurm/job_status.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/text.h"
#include "slurm/submission.h"

namespace lacuna::slurm {
namespace {

/// Empty for Slurm's ways to say nothing.
std::string meaningful(const std::string& value) {
  return value == "None" || value == "(null)" || value == "Unknown" || value == "N/A" || value == "0:0"
             ? ""
             : value;
}

std::string read_note(const std::string& dir, const std::string& id) {
  const std::string file = fmt::format("{}/slurm/state/{}.note", dir, id);
  if (!std::filesystem::exists(file)) return "";
  try {
    return std::string(trim(read_file(file)));
  } catch (const Error&) {
    return "";  // replaced or removed just now
  }
}

JobStatus from_record(const std::string& dir, const SubmittedJob& job, const JobRecord& record) {
  JobStatus status;
  status.id = record.id;
  status.kind = job.kind;
  status.state = record.get("JobState");
  status.reason = meaningful(record.get("Reason"));
  status.exit_code = meaningful(record.get("ExitCode"));
  status.nodes = meaningful(record.get("NodeList"));
  status.run_time = meaningful(record.get("RunTime"));
  status.start = meaningful(record.get("StartTime"));
  const auto& restarts = record.get("Restarts");
  std::from_chars(restarts.data(), restarts.data() + restarts.size(), status.restarts);
  status.note = read_note(dir, record.id);
  return status;
}

bool is_over(const std::string& state) {
  return state != "PENDING" && state != "RUNNING" && state != "COMPLETING" && state != "CONFIGURING" &&
         state != "SUSPENDED" && state != "REQUEUED";
}

void append_statuses(const std::string& dir, Cluster& cluster, const SubmittedJob& job, bool only_active,
                     std::vector<JobStatus>& statuses) {
  std::vector<JobRecord> records;
  std::string why_unknown = "Slurm has forgotten it: it ended some time ago";
  try {
    for (auto& record : cluster.jobs(job.id)) {
      // Ids are used again after a while; another name or comment is another job.
      if (record.get("JobName") == job.name && record.get("Comment") == job.comment)
        records.push_back(std::move(record));
    }
    if (records.empty() && !only_active) records = cluster.finished_jobs(job.id);
  } catch (const Error& e) {
    why_unknown = e.what();
  }
  for (const auto& record : records) {
    JobStatus status = from_record(dir, job, record);
    if (!only_active || !is_over(status.state)) statuses.push_back(std::move(status));
  }
  if (records.empty() && !only_active) {
    statuses.push_back({.id = job.id,
                        .kind = job.kind,
                        .state = "unknown",
                        .reason = why_unknown,
                        .restarts = 0,
                        .exit_code = {},
                        .nodes = {},
                        .run_time = {},
                        .start = {},
                        .note = read_note(dir, job.id)});
  }
}

/// Jobs of this folder that wait or run and were given to sbatch by hand, so that jobs.json does not have
/// them.
std::vector<SubmittedJob> unlisted_jobs(const std::string& out, Cluster& cluster,
                                        const std::vector<SubmittedJob>& listed) {
  const Study study{.program = {}, .sweep = {}, .out = out, .overrides = {}, .working_folder = {}};
  std::vector<SubmittedJob> jobs;
  if (!std::filesystem::exists(study.run_script())) return jobs;
  try {
    for (const auto& id : cluster.find_jobs(study.job_name(), study.comment())) {
      const auto same = [&](const auto& job) { return job.id == id; };
      if (std::none_of(listed.begin(), listed.end(), same))
        jobs.push_back({id, "run", 1, study.job_name(), study.comment(), ""});
    }
  } catch (const Error&) {
    // Slurm does not answer: what is said of the listed jobs tells that.
  }
  return jobs;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace

std::vector<JobStatus> job_statuses(const std::string& dir, Commands& commands) {
  std::error_code error;
  std::string out = std::filesystem::canonical(dir, error).string();
  if (error) out = dir;
  const auto submitted = read_submitted_jobs(out);
  std::vector<JobStatus> statuses;
  Cluster cluster(commands);
  if (!submitted.empty()) {
    // The last submission: from its "run" to the end.
    std::size_t last = submitted.size() - 1;
    while (last > 0 && submitted[last].kind != "run") --last;
    for (std::size_t i = 0; i < submitted.size(); ++i)
      append_statuses(out, cluster, submitted[i], i < last, statuses);
  }
  for (const auto& job : unlisted_jobs(out, cluster, submitted))
    append_statuses(out, cluster, job, true, statuses);
  return statuses;
}

std::string format_job_statuses(const std::vector<JobStatus>& jobs) {
  std::string text;
  for (const auto& job : jobs) {
    text += fmt::format("Slurm {} {}: ", job.kind == "merge" ? "merge job" : "job", job.id);
    if (job.state == "PENDING") {
      text += "queued";
      if (!job.reason.empty()) text += fmt::format(" ({})", job.reason);
      if (!job.start.empty()) text += fmt::format(", expected to start {}", job.start);
    } else if (job.state == "RUNNING") {
      text += fmt::format("running on {} for {}", job.nodes, job.run_time);
    } else {
      text += lower(job.state);
      if (!job.reason.empty()) text += fmt::format(" ({})", job.reason);
      if (!job.exit_code.empty()) text += fmt::format(", exit code {}", job.exit_code);
    }
    if (job.restarts > 0)
      text += fmt::format(", requeued {} time{}", job.restarts, job.restarts == 1 ? "" : "s");
    if (!job.note.empty()) text += fmt::format("; last: {}", job.note);
    text += "\n";
  }
  return text;
}

nlohmann::json to_json(const std::vector<JobStatus>& jobs) {
  nlohmann::json list = nlohmann::json::array();
  for (const auto& job : jobs) {
    list.push_back({{"id", job.id},
                    {"kind", job.kind},
                    {"state", job.state},
                    {"reason", job.reason},
                    {"restarts", job.restarts},
                    {"exit_code", job.exit_code},
                    {"nodes", job.nodes},
                    {"run_time", job.run_time},
                    {"start", job.start},
                    {"note", job.note}});
  }
  return list;
}

}  // namespace lacuna::slurm

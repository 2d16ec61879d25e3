// The journal: what is true about a run. Append-only files of checksummed lines, one file per team and
// launch.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runner/file_system.h"
#include "runner/sample_record.h"

namespace lacuna {

/// Writes one team's records. The file is made with the first record. Not thread-safe.
class JournalWriter {
 public:
  /// `name` must be new in the folder: launch and team make it so.
  JournalWriter(FileSystem& files, std::string folder, std::string name)
      : files_(files), folder_(std::move(folder)), name_(std::move(name)) {}

  /// Returns when all records are on disk: one write, one sync. When it throws (disk full), a half-written
  /// line has been cut off where that was possible; readers drop it otherwise.
  void append(std::span<const SampleRecord> records);

 private:
  FileSystem& files_;
  std::string folder_, name_;
  std::unique_ptr<AppendFile> file_;
  std::uint64_t size_ = 0;
};

/// What was wrong with a line; the line counts as not there.
struct JournalIssue {
  std::string file;
  std::uint64_t line = 0;  ///< From 1.
  std::string what;
};

/// Where a line stands.
struct LineRef {
  std::int32_t file = 0;  ///< Into JournalReader::files().
  std::uint64_t offset = 0;
  std::uint32_t bytes = 0;  ///< Without the newline.
};

/// Reads a journal folder, again and again: each poll() sees only what came since the last. Never writes,
/// never locks.
class JournalReader {
 public:
  JournalReader(const FileSystem& files, std::string folder) : files_(files), folder_(std::move(folder)) {}

  using Sink = std::function<void(const RecordHead&, std::string_view line, const LineRef&)>;
  /// Calls `sink` for every good line. A line without its newline may still be being written: it is left for
  /// the next poll.
  void poll(const Sink& sink);

  /// Bad lines so far (at most 1000 kept; issue_count() counts all), and unfinished last lines as of the last
  /// poll.
  const std::vector<JournalIssue>& issues() const { return issues_; }
  std::uint64_t issue_count() const { return issue_count_; }
  std::vector<JournalIssue> torn_lines() const;
  const std::vector<std::string>& files() const { return paths_; }

 private:
  struct Position {
    std::int32_t index = 0;
    std::uint64_t offset = 0, line = 0;
    bool torn = false;
  };
  void poll_file(const std::string& name, Position& position, const Sink& sink);
  /// Takes the whole lines at the start of `content`; returns their bytes.
  std::size_t take_lines(const std::string& name, std::string_view content, Position& position,
                         const Sink& sink);
  void report(const std::string& file, std::uint64_t line, std::string what);

  const FileSystem& files_;
  std::string folder_;
  std::map<std::string, Position> positions_;
  std::vector<std::string> paths_;
  std::vector<JournalIssue> issues_;
  std::uint64_t issue_count_ = 0;
};

}  // namespace lacuna

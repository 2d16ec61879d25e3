// Programs under test as child processes, and what their run folders hold.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lacuna::testing {

using Words = std::vector<std::string>;
using Environment = std::map<std::string, std::string>;

/// A child in a process group of its own; standard output and error go to one file.
class Child {
 public:
  Child(const Words& command, const Environment& environment = {}, std::int64_t file_size_limit = 0);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// To the whole group.
  void signal(int number) const;
  bool running();
  /// Exit code, or 128 + signal.
  int wait();
  std::string output() const;
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  bool ended_ = false;
  int code_ = -1;
  std::string log_;
};

struct Ended {
  int code = -1;
  std::string output;
};
Ended run(const Words& command, const Environment& environment = {}, std::int64_t file_size_limit = 0);

/// A folder below the system's temporary one, removed at the end.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// "mpirun -np ranks PROGRAM ..." as this project starts it; ranks 0: the program alone.
Words launch(int ranks, Words command);
/// Pids of the program's ranks started with OUT as an argument, by rank.
std::map<int, pid_t> ranks_of(const std::string& out);

/// Rows of results.h5, after checking that no (cell, sample) stands twice.
std::int64_t rows(const std::string& out);
std::int64_t failed_rows(const std::string& out);
std::string digest(const std::string& out);

}  // namespace lacuna::testing

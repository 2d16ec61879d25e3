// Programs of the operating system (sbatch, squeue, ...) behind an interface, so that tests answer in their
// place.
#pragma once

#include <string>
#include <vector>

namespace lacuna::slurm {

struct CommandResult {
  int code = 0;  ///< Exit code; 127: no such program; 128 + n: ended by signal n.
  std::string out, err;
};

class Commands {
 public:
  virtual ~Commands() = default;
  /// Runs argv[0], found on PATH, with exactly these arguments: no shell, so no quoting. Waits for it.
  virtual CommandResult run(const std::vector<std::string>& argv) = 0;
};

/// The real ones. A command that takes longer than the limit is ended and reported with code 124: a Slurm
/// controller that does not answer must not hang `lacuna status`.
class SystemCommands : public Commands {
 public:
  explicit SystemCommands(int limit_seconds = 60) : limit_seconds_(limit_seconds) {}
  CommandResult run(const std::vector<std::string>& argv) override;

 private:
  int limit_seconds_;
};

}  // namespace lacuna::slurm

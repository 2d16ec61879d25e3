// Slurm's programs as a script of answers: what was asked is written down, what is answered is given by the
// test.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "slurm/commands.h"

namespace lacuna::slurm {

class FakeCommands : public Commands {
 public:
  using Answer = std::function<CommandResult(const std::vector<std::string>&)>;
  explicit FakeCommands(Answer answer) : answer_(std::move(answer)) {}
  CommandResult run(const std::vector<std::string>& argv) override {
    asked.push_back(argv);
    return answer_(argv);
  }
  std::vector<std::vector<std::string>> asked;

 private:
  Answer answer_;
};

}  // namespace lacuna::slurm

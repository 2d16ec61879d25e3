#include "tests/runner/harness.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "core/file.h"
#include "core/hdf5.h"
#include "runner/store.h"

namespace lacuna::testing {

namespace {

std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> zero_separated(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, '\0');) parts.push_back(part);
  return parts;
}

}  // namespace

Child::Child(const Words& command, const Environment& environment, std::int64_t file_size_limit) {
  static std::atomic<int> number{0};
  log_ = (std::filesystem::temp_directory_path() /
          ("lacuna_child_" + std::to_string(::getpid()) + "_" + std::to_string(number++)))
             .string();
  pid_ = ::fork();
  if (pid_ == 0) {
    ::setpgid(0, 0);
    const int fd = ::open(log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::dup2(fd, STDOUT_FILENO);
    ::dup2(fd, STDERR_FILENO);
    for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
    if (file_size_limit > 0) {
      // A write beyond the limit fails as on a full disk; the signal that goes with it is not wanted.
      const rlimit limit{static_cast<rlim_t>(file_size_limit), static_cast<rlim_t>(file_size_limit)};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      ::signal(SIGXFSZ, SIG_IGN);
    }
    std::vector<char*> words;
    for (const auto& word : command) words.push_back(const_cast<char*>(word.c_str()));
    words.push_back(nullptr);
    ::execvp(words[0], words.data());
    ::_exit(127);
  }
  ::setpgid(pid_, pid_);
}

Child::~Child() {
  if (running()) {
    signal(SIGKILL);
    wait();
  }
  std::error_code ignored;
  std::filesystem::remove(log_, ignored);
}

void Child::signal(int number) const { ::kill(-pid_, number); }

bool Child::running() {
  if (ended_) return false;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) == 0) return true;
  ended_ = true;
  code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return false;
}

int Child::wait() {
  while (running()) ::usleep(2000);
  return code_;
}

std::string Child::output() const { return slurp(log_); }

Ended run(const Words& command, const Environment& environment, std::int64_t file_size_limit) {
  Child child(command, environment, file_size_limit);
  const int code = child.wait();
  return {code, child.output()};
}

Scratch::Scratch() {
  std::string name = (std::filesystem::temp_directory_path() / "lacuna_runner_XXXXXX").string();
  path_ = ::mkdtemp(name.data());
}

Scratch::~Scratch() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Words launch(int ranks, Words command) {
  if (ranks == 0) return command;
  Words words = {"scripts/mpirun", std::to_string(ranks)};
  words.insert(words.end(), command.begin(), command.end());
  return words;
}

std::map<int, pid_t> ranks_of(const std::string& out) {
  std::map<int, pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto words = zero_separated(slurp(entry.path().string() + "/cmdline"));
    if (words.empty() || words[0].find("lacuna") == std::string::npos ||
        std::ranges::find(words, out) == words.end())
      continue;
    for (const auto& variable : zero_separated(slurp(entry.path().string() + "/environ"))) {
      constexpr std::string_view kRank = "OMPI_COMM_WORLD_RANK=";
      if (variable.starts_with(kRank)) found[std::stoi(variable.substr(kRank.size()))] = std::stoi(name);
    }
  }
  return found;
}

std::int64_t rows(const std::string& out) {
  const hdf5::File file = hdf5::File::open(out + "/results.h5");
  const auto cells = file.read<std::int32_t>("/samples/cell");
  const auto samples = file.read<std::int32_t>("/samples/sample");
  std::set<std::pair<int, int>> seen;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    EXPECT_TRUE(seen.emplace(cells[i], samples[i]).second) << "cell " << cells[i] << " sample " << samples[i];
  }
  return static_cast<std::int64_t>(cells.size());
}

std::int64_t failed_rows(const std::string& out) {
  const auto status = hdf5::File::open(out + "/results.h5").read<std::uint8_t>("/samples/status");
  return std::count(status.begin(), status.end(), schema::kFailed);
}

std::string digest(const std::string& out) { return results_digest(out + "/results.h5"); }

}  // namespace lacuna::testing

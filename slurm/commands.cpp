#include "slurm/commands.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

#include "core/error.h"

extern char** environ;

namespace lacuna::slurm {
namespace {

/// A pipe whose ends close themselves.
class Pipe {
 public:
  Pipe() {
    if (::pipe2(ends_.data(), O_CLOEXEC) != 0) throw_library("pipe: {}", std::strerror(errno));
  }
  ~Pipe() {
    close_end(0);
    close_end(1);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  int read_end() const { return ends_[0]; }
  int write_end() const { return ends_[1]; }
  void close_end(std::size_t end) {
    if (ends_[end] >= 0) ::close(ends_[end]);
    ends_[end] = -1;
  }

 private:
  std::array<int, 2> ends_ = {-1, -1};
};

/// Reads what is there; false at the end of the stream.
bool drain(int fd, std::string& text) {
  char chunk[1 << 14];
  const ssize_t got = ::read(fd, chunk, sizeof(chunk));
  if (got < 0) return errno == EINTR || errno == EAGAIN;
  text.append(chunk, static_cast<std::size_t>(got));
  return got > 0;
}

}  // namespace

CommandResult SystemCommands::run(const std::vector<std::string>& argv) {
  LACUNA_CHECK(!argv.empty(), "no command");
  Pipe out, err;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out.write_end(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err.write_end(), STDERR_FILENO);
  std::vector<char*> arguments;
  for (const auto& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  pid_t pid = 0;
  const int status = ::posix_spawnp(&pid, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (status == ENOENT) return {.code = 127, .out = {}, .err = argv[0] + ": not found"};
  if (status != 0) throw_library("{}: cannot start: {}", argv[0], std::strerror(status));
  out.close_end(1);
  err.close_end(1);

  CommandResult result;
  bool late = false;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(limit_seconds_);
  std::array<pollfd, 2> waiting = {pollfd{out.read_end(), POLLIN, 0}, pollfd{err.read_end(), POLLIN, 0}};
  while (waiting[0].fd >= 0 || waiting[1].fd >= 0) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now())
            .count();
    if (left <= 0) {
      late = true;
      ::kill(pid, SIGKILL);
      break;
    }
    if (::poll(waiting.data(), waiting.size(), static_cast<int>(left)) < 0 && errno != EINTR) break;
    if (waiting[0].revents != 0 && !drain(waiting[0].fd, result.out)) waiting[0].fd = -1;
    if (waiting[1].revents != 0 && !drain(waiting[1].fd, result.err)) waiting[1].fd = -1;
  }
  int ended = 0;
  while (::waitpid(pid, &ended, 0) < 0 && errno == EINTR) {
  }
  result.code = WIFEXITED(ended) ? WEXITSTATUS(ended) : 128 + WTERMSIG(ended);
  if (late) {
    result.code = 124;
    result.err += fmt::format("{}: no answer within {} s", argv[0], limit_seconds_);
  }
  return result;
}

}  // namespace lacuna::slurm

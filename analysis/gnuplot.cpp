#include "analysis/gnuplot.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace lacuna {

namespace {

/// Exit code by which the child says that gnuplot is not there.
constexpr int kNotFound = 127;

std::string read_all(int fd) {
  std::string text;
  std::array<char, 4096> buffer;
  while (true) {
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return text;
    if (text.size() < (1u << 20)) text.append(buffer.data(), std::size_t(n));
  }
}

/// Between fork and exec: only async-signal-safe calls.
[[noreturn]] void become_gnuplot(const char* folder, const char* script, int output) {
  const int null = ::open("/dev/null", O_RDONLY);
  if (null >= 0) ::dup2(null, STDIN_FILENO);
  ::dup2(output, STDOUT_FILENO);
  ::dup2(output, STDERR_FILENO);
  if (::chdir(folder) != 0) ::_exit(126);
  ::execlp("gnuplot", "gnuplot", "--default-settings", script, static_cast<char*>(nullptr));
  ::_exit(kNotFound);
}

}  // namespace

void run_gnuplot(const std::string& folder, const std::string& script) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw_library("pipe: {}", std::strerror(errno));
  const pid_t child = ::fork();
  if (child < 0) {
    ::close(ends[0]);
    ::close(ends[1]);
    throw_library("fork: {}", std::strerror(errno));
  }
  if (child == 0) become_gnuplot(folder.c_str(), script.c_str(), ends[1]);
  ::close(ends[1]);
  const std::string words = read_all(ends[0]);
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
  LACUNA_REQUIRE(!(WIFEXITED(status) && WEXITSTATUS(status) == kNotFound),
                 "gnuplot is needed to draw the figures and is not on PATH; install it with: apt-get install "
                 "gnuplot-nox");
  const std::string tail = words.size() > 600 ? words.substr(words.size() - 600) : words;
  throw_library("gnuplot failed on {}/{} ({}): {}", folder, script,
                WIFSIGNALED(status) ? fmt::format("signal {}", WTERMSIG(status))
                                    : fmt::format("exit {}", WEXITSTATUS(status)),
                tail.empty() ? "it said nothing" : tail);
}

}  // namespace lacuna

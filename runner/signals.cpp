#include "runner/signals.h"

#include <array>
#include <atomic>
#include <csignal>

namespace lacuna {

namespace {

// A signal handler can only reach static storage; lock-free atomics are allowed there.
std::atomic<int> count{0};
static_assert(std::atomic<int>::is_always_lock_free);

constexpr std::array kSignals = {SIGTERM, SIGUSR2, SIGINT};
std::array<struct sigaction, kSignals.size()> previous{};

void on_signal(int) { count.fetch_add(1); }

}  // namespace

SignalGuard::SignalGuard() {
  count = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // reads and writes of the journal are not to be cut short
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &previous[i]);
}

SignalGuard::~SignalGuard() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous[i], nullptr);
}

int SignalGuard::received() { return count.load(); }
void SignalGuard::raise_one() { on_signal(0); }

}  // namespace lacuna

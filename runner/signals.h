// SIGTERM, SIGUSR2 and SIGINT end a run cleanly: at the next sample, and at the second signal within the
// sample.
#pragma once

namespace lacuna {

/// Installs the handlers for the lifetime of the object and puts the old ones back.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

  /// Signals received since the guard was made.
  static int received();
  /// As if a signal had come; for tests.
  static void raise_one();
};

}  // namespace lacuna

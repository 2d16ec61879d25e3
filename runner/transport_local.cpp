#include <chrono>
#include <deque>
#include <mutex>
#include <thread>

#include "core/error.h"
#include "runner/transport.h"

namespace lacuna {

Message Endpoint::wait() {
  // Short jobs should not wait for us, long ones should not be disturbed: sleep longer the longer nothing
  // comes.
  auto pause = std::chrono::microseconds(20);
  while (true) {
    if (auto message = poll()) return std::move(*message);
    std::this_thread::sleep_for(pause);
    if (pause < std::chrono::microseconds(1000)) pause *= 2;
  }
}

namespace {

/// Messages in one direction within a process.
class Mailbox {
 public:
  void put(Message message) {
    const std::lock_guard lock(mutex_);
    messages_.push_back(std::move(message));
  }
  std::optional<Message> take() {
    const std::lock_guard lock(mutex_);
    if (messages_.empty()) return std::nullopt;
    Message message = std::move(messages_.front());
    messages_.pop_front();
    return message;
  }

 private:
  std::mutex mutex_;
  std::deque<Message> messages_;
};

class LocalEndpoint final : public Endpoint {
 public:
  LocalEndpoint(std::shared_ptr<Mailbox> in, std::shared_ptr<Mailbox> out)
      : in_(std::move(in)), out_(std::move(out)) {}
  void send(int, const Message& message) override { out_->put(message); }
  std::optional<Message> poll() override { return in_->take(); }

 private:
  std::shared_ptr<Mailbox> in_, out_;
};

class LocalTransport final : public Transport {
 public:
  int rank() const override { return 0; }
  int ranks() const override { return 1; }
  std::unique_ptr<Endpoint> coordinator_endpoint() override {
    return std::make_unique<LocalEndpoint>(up_, down_);
  }
  std::unique_ptr<Endpoint> rank_endpoint() override { return std::make_unique<LocalEndpoint>(down_, up_); }
  std::unique_ptr<Communicator> make_team(const std::vector<int>& ranks, int, bool) override {
    LACUNA_CHECK(ranks.size() == 1, "a team of {} in a run of one rank", ranks.size());
    return std::make_unique<SelfCommunicator>();
  }
  std::string broadcast(std::string text) override { return text; }
  std::vector<std::string> gather(const std::string& text) override { return {text}; }

 private:
  std::shared_ptr<Mailbox> up_ = std::make_shared<Mailbox>(), down_ = std::make_shared<Mailbox>();
};

}  // namespace

std::unique_ptr<Transport> make_local_transport() { return std::make_unique<LocalTransport>(); }

}  // namespace lacuna

#include "runner/worker.h"

#include <numeric>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "runner/signals.h"

namespace lacuna {

namespace {

/// Facts that decide results. RoPE settings are in the cells' keys.
constexpr const char* kIdentity[] = {"config_hash", "tokenizer_hash", "weights_hash",
                                     "device",      "dtype",          "chat"};

void check_identity(const Json& facts, const Json& known) {
  const std::string name = facts["name"].get<std::string>();
  if (!known.is_object() || !known.contains(name)) return;
  for (const char* key : kIdentity) {
    const Json before = known[name].value(key, Json()), now = facts.value(key, Json());
    if (before.is_null() || before == now) continue;
    throw_usage(
        "model {}: its {} was {} in earlier launches into this folder and is {} now; use another --out", name,
        key, before.dump(), now.dump());
  }
}

class Worker {
 public:
  explicit Worker(const WorkerContext& context)
      : c_(context),
        endpoint_(context.transport->rank_endpoint()),
        executor_(*context.sweep, *context.grid, *context.services, context.rank, *context.threads),
        journal_(*context.files, context.journal,
                 fmt::format("{}-r{:05d}.jsonl", context.launch, context.transport->rank())) {}

  void serve() {
    while (true) {
      const Message message = endpoint_->wait();
      if (message.kind == Message::Kind::kStop) return;
      LACUNA_CHECK(message.kind == Message::Kind::kForm, "rank {} was told {} outside a team",
                   c_.transport->rank(), static_cast<int>(message.kind));
      serve_in_team(message);
      if (stopped_) return;
    }
  }

 private:
  void serve_in_team(const Message& form) {
    team_ = form.numbers[0];
    const std::vector<int> ranks(form.numbers.begin() + 1, form.numbers.end());
    if (ranks != ranks_) {
      executor_.unload();
      team_communicator_.reset();
      team_communicator_ = c_.transport->make_team(ranks, team_, c_.rank.device == Device::kCuda);
      ranks_ = ranks;
    }
    const bool leads = team_communicator_->rank() == 0;
    while (true) {
      JobOrder order;
      if (leads) {
        const Message message = endpoint_->wait();
        if (message.kind == Message::Kind::kRun) {
          order.load = message.numbers[0];
          order.sample = message.numbers[1];
          order.cells.assign(message.numbers.begin() + 2, message.numbers.end());
        } else {
          stopped_ = message.kind == Message::Kind::kStop;  // the coordinator failed
          LACUNA_CHECK(stopped_ || message.kind == Message::Kind::kDissolve, "a team was told {}",
                       static_cast<int>(message.kind));
        }
      }
      share_order(order);
      if (order.cells.empty()) return;
      run(order, leads);
    }
  }

  /// From the team's first rank to the others; no cells means that the team ends.
  void share_order(JobOrder& order) {
    if (team_communicator_->size() == 1) return;
    std::int32_t head[3] = {order.load, order.sample, static_cast<std::int32_t>(order.cells.size())};
    team_communicator_->broadcast(head, sizeof(head), 0);
    order.load = head[0];
    order.sample = head[1];
    order.cells.resize(static_cast<std::size_t>(head[2]));
    if (head[2] > 0)
      team_communicator_->broadcast(order.cells.data(), order.cells.size() * sizeof(std::int32_t), 0);
  }

  void run(const JobOrder& order, bool leads) {
    if (!load(order, leads)) return;
    const auto cancelled = [] { return SignalGuard::received() >= 2; };
    const auto records = executor_.run(order, c_.attempt, ranks_.front(), cancelled);
    if (!leads) return;
    journal_.append(records);
    std::int32_t failed = 0;
    for (const auto& record : records) failed += record.status == schema::kOk ? 0 : 1;
    const auto kind = records.empty() ? Message::Kind::kInterrupted : Message::Kind::kDone;
    endpoint_->send(
        0, {.kind = kind, .numbers = {team_, static_cast<std::int32_t>(records.size()) - failed, failed}});
  }

  bool load(const JobOrder& order, bool leads) {
    try {
      if (order.load != loaded_ || ranks_ != loaded_by_ || !executor_.loaded()) {
        executor_.load(order.load, *team_communicator_);
        loaded_ = order.load;
        loaded_by_ = ranks_;
        if (leads)
          endpoint_->send(
              0, {.kind = Message::Kind::kLoaded, .numbers = {team_}, .text = executor_.facts().dump()});
      }
    } catch (const Error& e) {
      executor_.unload();
      loaded_ = -1;
      if (e.kind() == ErrorKind::kInternal) throw;
      if (leads)
        endpoint_->send(0, {.kind = Message::Kind::kLoadFailed, .numbers = {team_}, .text = e.what()});
      return false;
    }
    // Outside: another model under an old name must end the run, not fail its cells.
    check_identity(executor_.facts(), c_.known_models);
    return true;
  }

  const WorkerContext& c_;
  std::unique_ptr<Endpoint> endpoint_;
  std::unique_ptr<Communicator> team_communicator_;
  Executor executor_;  // after the communicator: its engine goes first
  JournalWriter journal_;
  std::vector<int> ranks_, loaded_by_;
  int team_ = -1, loaded_ = -1;
  bool stopped_ = false;
};

}  // namespace

void serve(const WorkerContext& context) { Worker(context).serve(); }

}  // namespace lacuna

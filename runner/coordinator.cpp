#include "runner/coordinator.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "runner/signals.h"

namespace lacuna {

namespace {

std::size_t at(int i) { return static_cast<std::size_t>(i); }

double thread_cpu_seconds() {
  timespec time{};
  (void)::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

SampleRecord cell_failure(const Cell& cell, const std::string& reason, int attempt) {
  SampleRecord r;
  r.cell = cell.key;
  r.sample = SampleRecord::kWholeCell;
  r.status = schema::kFailed;
  r.attempt = attempt;
  r.answer_or_error = reason;
  r.finished = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return r;
}

void Coordinator::carry_out(const std::vector<Scheduler::Action>& actions, int reporting_team) {
  // A team that reported and got no new job is no team any more; its ranks wait for the next.
  bool goes_on = reporting_team < 0;
  for (const auto& action : actions) {
    goes_on |= action.kind == Scheduler::Action::Kind::kRun && action.team == reporting_team &&
               (actions.front().kind == Scheduler::Action::Kind::kRun);
  }
  if (!goes_on) {
    endpoint_.send(leader_of_team_[at(reporting_team)], {.kind = Message::Kind::kDissolve});
    if (board_ != nullptr) board_->dissolved(reporting_team);
  }
  for (const auto& action : actions) {
    if (action.kind == Scheduler::Action::Kind::kForm) {
      if (leader_of_team_.size() <= at(action.team)) leader_of_team_.resize(at(action.team) + 1, -1);
      leader_of_team_[at(action.team)] = action.ranks.front();
      Message form{.kind = Message::Kind::kForm, .numbers = {action.team}};
      form.numbers.insert(form.numbers.end(), action.ranks.begin(), action.ranks.end());
      for (const int rank : action.ranks) endpoint_.send(rank, form);
      if (board_ != nullptr) board_->formed(action.team, action.ranks);
    } else {
      Message run{.kind = Message::Kind::kRun, .numbers = {action.model, action.sample}};
      const auto& cells = jobs_.cells[at(action.group)];
      run.numbers.insert(run.numbers.end(), cells.begin(), cells.end());
      endpoint_.send(leader_of_team_[at(action.team)], run);
      if (started_.size() <= at(action.team)) started_.resize(at(action.team) + 1);
      started_[at(action.team)] = Clock::now();
      if (board_ != nullptr) board_->started(action.team, action.group, action.sample);
    }
  }
}

void Coordinator::fail_dropped(const std::string& reason) {
  const auto& dropped = scheduler_.dropped();
  std::set<std::int32_t> cells;
  std::int64_t samples = 0;
  for (; dropped_seen_ < dropped.size(); ++dropped_seen_) {
    const auto& list = jobs_.cells[at(dropped[dropped_seen_].group)];
    cells.insert(list.begin(), list.end());
    samples += static_cast<std::int64_t>(list.size());
  }
  if (cells.empty()) return;
  std::vector<SampleRecord> records;
  for (const auto cell : cells) records.push_back(cell_failure(grid_.cells[at(cell)], reason, attempt_));
  failures_.append(records);
  progress_.add(0, samples);
}

void Coordinator::handle(const Message& message) {
  const int team = message.numbers.empty() ? -1 : message.numbers[0];
  switch (message.kind) {
    case Message::Kind::kDone:
      progress_.add(message.numbers[1], message.numbers[2]);
      note_end(team);
      if (board_ != nullptr) board_->done(team, message.numbers[1] + message.numbers[2]);
      carry_out(scheduler_.job_done(team), team);
      break;
    case Message::Kind::kInterrupted:
      scheduler_.stop();
      interrupted_ = true;
      carry_out(scheduler_.job_done(team), team);
      break;
    case Message::Kind::kLoaded: {
      const Json facts = parse_json(message.text, "a worker's message");
      log::debug("team {} loaded {}", team, facts.value("name", ""));
      launch_.add_model(facts);
      launch_.write();
      break;
    }
    case Message::Kind::kLoadFailed:
      log::warning("{}; its cells fail, the rest goes on", message.text);
      carry_out(scheduler_.load_failed(team), team);
      fail_dropped(message.text);
      break;
    default:
      throw_internal("the coordinator was sent {}", static_cast<int>(message.kind));
  }
}

void Coordinator::run() {
  const double cpu_before = thread_cpu_seconds();
  const auto begin = std::chrono::steady_clock::now();
  std::exception_ptr failure;
  try {
    hand_out();
  } catch (...) {
    failure = std::current_exception();
  }
  // Also after a failure: a worker that waits for us must not wait for ever.
  for (int rank = 0; rank < ranks_; ++rank) endpoint_.send(rank, {.kind = Message::Kind::kStop});
  progress_.finish();
  launch_.set("coordinator",
              {{"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count()},
               {"cpu_seconds", thread_cpu_seconds() - cpu_before}});
  if (failure) std::rethrow_exception(failure);
}

std::chrono::duration<double> Coordinator::pause() const {
  // A team that has reported waits half a pause on average: an eighth of a percent of its job. Looking more
  // often would cost more of the core that rank 0 computes on.
  return std::chrono::duration<double>(std::clamp(mean_job_seconds_ / 400, 20e-6, 5e-3));
}

void Coordinator::note_end(int team) {
  constexpr double kWeight = 0.05;  // of the newest job
  const double took = std::chrono::duration<double>(Clock::now() - started_[at(team)]).count();
  mean_job_seconds_ += kWeight * (took - mean_job_seconds_);
}

void Coordinator::show_progress() {
  progress_.show(scheduler_.busy_teams(), board_ != nullptr ? board_->lines() : std::vector<std::string>{});
}

void Coordinator::hand_out() {
  carry_out(scheduler_.start(), -1);
  while (!scheduler_.finished() && !abandoned_) {
    if (SignalGuard::received() > 0 && !interrupted_) {
      interrupted_ = true;
      scheduler_.stop();
      log::info(
          "signal received: {} running job{} will end, then the run stops; a second signal gives them up",
          scheduler_.busy_teams(), scheduler_.busy_teams() == 1 ? "" : "s");
    }
    if (progress_.due()) show_progress();
    if (const auto message = endpoint_.poll()) {
      handle(*message);
      continue;
    }
    std::this_thread::sleep_for(pause());
  }
  if (!abandoned_)
    fail_dropped("no team of this run can take the job: too few ranks on a node, or too little memory");
}

}  // namespace lacuna

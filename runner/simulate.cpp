#include "runner/simulate.h"

#include <algorithm>
#include <chrono>
#include <queue>

namespace lacuna {

namespace {

struct Event {
  double time;
  std::int64_t order;  // of creation: equal times stay in order
  int team;
  bool operator>(const Event& other) const {
    return time != other.time ? time > other.time : order > other.order;
  }
};

double lower_bound(const std::vector<Scheduler::Model>& models, const std::vector<Scheduler::Group>& groups,
                   std::size_t ranks) {
  double work = 0, longest = 0;
  for (const auto& group : groups) {
    if (group.samples.empty()) continue;
    const auto& model = models[static_cast<std::size_t>(group.model)];
    work += group.seconds * model.tp * static_cast<double>(group.samples.size());
    longest = std::max(longest, model.load_seconds + group.seconds);
  }
  return std::max(work / static_cast<double>(ranks), longest);
}

}  // namespace

Simulation simulate(const std::vector<Scheduler::Rank>& ranks, const std::vector<Scheduler::Model>& models,
                    const std::vector<Scheduler::Group>& groups, const JobSeconds& seconds,
                    const Observer& observer) {
  using Clock = std::chrono::steady_clock;
  Simulation result;
  result.lower_bound = lower_bound(models, groups, ranks.size());
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events;
  std::vector<int> loaded(ranks.size(), -1);
  std::vector<double> ready;  // per team: when its model is loaded
  double now = 0;
  std::int64_t created = 0;

  const auto carry_out = [&](const std::vector<Scheduler::Action>& actions) {
    for (const auto& action : actions) {
      if (observer) observer(now, action);
      const auto team = static_cast<std::size_t>(action.team);
      const auto& model = models[static_cast<std::size_t>(action.model)];
      if (ready.size() <= team) ready.resize(team + 1, 0);
      if (action.kind == Scheduler::Action::Kind::kForm) {
        ++result.teams_formed;
        const bool load = std::ranges::any_of(
            action.ranks, [&](int r) { return loaded[static_cast<std::size_t>(r)] != action.model; });
        for (const int r : action.ranks) loaded[static_cast<std::size_t>(r)] = action.model;
        ready[team] = now + (load ? model.load_seconds : 0);
        if (load) result.loading += model.load_seconds * model.tp;
        continue;
      }
      const auto& group = groups[static_cast<std::size_t>(action.group)];
      const double took = seconds ? seconds(action.group, action.sample) : group.seconds;
      const double begin = std::max(now, ready[team]);
      result.busy += took * model.tp;
      ++result.jobs;
      events.push({begin + took, created++, action.team});
    }
  };
  const auto timed = [&](auto&& call) {
    const auto begin = Clock::now();
    auto actions = call();
    result.scheduler_seconds += std::chrono::duration<double>(Clock::now() - begin).count();
    return actions;
  };

  Scheduler scheduler(ranks, models, groups);
  carry_out(timed([&] { return scheduler.start(); }));
  while (!events.empty()) {
    const Event event = events.top();
    events.pop();
    now = event.time;
    carry_out(timed([&] { return scheduler.job_done(event.team); }));
  }
  result.makespan = now;
  result.utilisation = now > 0 ? result.busy / (static_cast<double>(ranks.size()) * now) : 0;
  result.dropped = static_cast<std::int64_t>(scheduler.dropped().size());
  return result;
}

}  // namespace lacuna

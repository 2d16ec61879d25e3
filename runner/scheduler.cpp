#include "runner/scheduler.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace lacuna {

namespace {

std::size_t at(int i) { return static_cast<std::size_t>(i); }

std::int64_t memory_of(const Scheduler::Rank& rank) { return rank.memory > 0 ? rank.memory : INT64_MAX; }

}  // namespace

Scheduler::Scheduler(std::vector<Rank> ranks, std::vector<Model> models, std::vector<Group> groups)
    : ranks_(std::move(ranks)),
      models_(std::move(models)),
      groups_(std::move(groups)),
      next_sample_(groups_.size(), 0),
      queues_(models_.size()),
      model_order_(models_.size()),
      free_(ranks_.size(), true),
      free_ranks_(static_cast<int>(ranks_.size())) {
  LACUNA_CHECK(!ranks_.empty(), "a scheduler without ranks");
  for (std::size_t r = 0; r < ranks_.size(); ++r) {
    const std::size_t node = at(ranks_[r].node);
    if (nodes_.size() <= node) nodes_.resize(node + 1);
    nodes_[node].push_back(static_cast<int>(r));
  }
  for (const auto& node : nodes_) {
    free_on_node_.push_back(static_cast<int>(node.size()));
    largest_node_ = std::max(largest_node_, free_on_node_.back());
  }
  std::vector<double> longest(models_.size(), 0);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const Group& group = groups_[g];
    if (group.samples.empty()) continue;
    Queue& queue = queues_[at(group.model)];
    queue.groups.push_back(static_cast<int>(g));
    queue.jobs += static_cast<std::int64_t>(group.samples.size());
    queue.seconds += group.seconds * static_cast<double>(group.samples.size());
    longest[at(group.model)] = std::max(longest[at(group.model)], group.seconds);
  }
  for (auto& queue : queues_) {
    std::ranges::stable_sort(queue.groups,
                             [&](int a, int b) { return groups_[at(a)].seconds > groups_[at(b)].seconds; });
  }
  std::iota(model_order_.begin(), model_order_.end(), 0);
  std::ranges::stable_sort(model_order_, [&](int a, int b) {
    if (models_[at(a)].tp != models_[at(b)].tp) return models_[at(a)].tp > models_[at(b)].tp;
    return longest[at(a)] > longest[at(b)];
  });
}

std::vector<Scheduler::Action> Scheduler::start() {
  std::vector<Action> actions;
  form_teams(actions);
  return actions;
}

std::vector<Scheduler::Action> Scheduler::job_done(int team) {
  Team& t = teams_[at(team)];
  LACUNA_CHECK(t.busy, "team {} reports a job it was not given", team);
  t.busy = false;
  --busy_teams_;
  std::vector<Action> actions;
  if (!run_next(team, actions)) {
    dissolve(team);
    form_teams(actions);
  }
  return actions;
}

std::vector<Scheduler::Action> Scheduler::load_failed(int team) {
  Team& t = teams_[at(team)];
  LACUNA_CHECK(t.busy, "team {} reports a job it was not given", team);
  t.busy = false;
  --busy_teams_;
  dropped_.push_back(t.job);
  drop_model(t.model);
  dissolve(team);
  std::vector<Action> actions;
  form_teams(actions);
  return actions;
}

bool Scheduler::run_next(int team, std::vector<Action>& actions) {
  if (stopped_) return false;
  Team& t = teams_[at(team)];
  Queue& queue = queues_[at(t.model)];
  const auto fits = [&](int g) { return groups_[at(g)].memory <= t.memory; };
  const auto found = std::ranges::find_if(queue.groups, fits);
  if (found == queue.groups.end()) return false;
  const int g = *found;
  const Group& group = groups_[at(g)];
  const std::int32_t sample = group.samples[next_sample_[at(g)]++];
  if (next_sample_[at(g)] == group.samples.size()) queue.groups.erase(found);
  --queue.jobs;
  queue.seconds -= group.seconds;
  t.busy = true;
  t.job = {g, sample};
  ++busy_teams_;
  actions.push_back(
      {.kind = Action::Kind::kRun, .team = team, .model = t.model, .group = g, .sample = sample});
  return true;
}

void Scheduler::dissolve(int team) {
  Team& t = teams_[at(team)];
  for (const int rank : t.ranks) {
    free_[at(rank)] = true;
    ++free_on_node_[at(ranks_[at(rank)].node)];
  }
  free_ranks_ += static_cast<int>(t.ranks.size());
  --queues_[at(t.model)].teams;
  t.ranks.clear();
  free_teams_.push_back(team);
}

std::int64_t Scheduler::smallest_need(int model) const {
  std::int64_t need = INT64_MAX;
  for (const int g : queues_[at(model)].groups) need = std::min(need, groups_[at(g)].memory);
  return need;
}

bool Scheduler::worth_joining(const Queue& queue, const Model& model) const {
  // The teams at work will have emptied the queue after seconds/teams: later than that, nothing is left to
  // do.
  return queue.teams == 0 || model.load_seconds < queue.seconds / queue.teams;
}

std::vector<int> Scheduler::find_ranks(int model) const {
  const int tp = models_[at(model)].tp;
  const bool on_one_node = tp <= largest_node_;
  const auto has_room = [&](int free) { return free >= tp; };
  if (free_ranks_ < tp || (on_one_node && std::ranges::none_of(free_on_node_, has_room))) return {};
  const std::int64_t need = smallest_need(model);
  std::vector<int> found;
  const auto collect = [&](std::size_t node) {
    for (const int rank : nodes_[node]) {
      if (static_cast<int>(found.size()) == tp) return;
      if (free_[at(rank)] && memory_of(ranks_[at(rank)]) >= need) found.push_back(rank);
    }
  };
  if (on_one_node) {
    for (std::size_t node = 0; node < nodes_.size(); ++node) {
      if (free_on_node_[node] < tp) continue;
      found.clear();
      collect(node);
      if (static_cast<int>(found.size()) == tp) return found;
    }
    return {};
  }
  // Wider than any node: neighbouring nodes together.
  for (std::size_t node = 0; node < nodes_.size(); ++node) collect(node);
  return static_cast<int>(found.size()) == tp ? found : std::vector<int>{};
}

void Scheduler::make_team(int model, std::vector<int> ranks, std::vector<Action>& actions) {
  int id = static_cast<int>(teams_.size());
  if (free_teams_.empty()) {
    teams_.emplace_back();
  } else {
    id = free_teams_.back();
    free_teams_.pop_back();
  }
  Team& team = teams_[at(id)];
  team = Team{.ranks = ranks, .model = model, .memory = INT64_MAX, .job = {}, .busy = false};
  for (const int rank : ranks) {
    free_[at(rank)] = false;
    --free_on_node_[at(ranks_[at(rank)].node)];
    team.memory = std::min(team.memory, memory_of(ranks_[at(rank)]));
  }
  free_ranks_ -= static_cast<int>(ranks.size());
  ++queues_[at(model)].teams;
  actions.push_back({.kind = Action::Kind::kForm, .team = id, .model = model, .ranks = std::move(ranks)});
  const bool runs = run_next(id, actions);
  LACUNA_CHECK(runs, "a team was formed without a job");
}

void Scheduler::form_teams(std::vector<Action>& actions) {
  if (!stopped_) {
    for (const int model : model_order_) {
      while (free_ranks_ > 0 && queues_[at(model)].jobs > 0 &&
             worth_joining(queues_[at(model)], models_[at(model)])) {
        std::vector<int> ranks = find_ranks(model);
        if (ranks.empty()) break;
        make_team(model, std::move(ranks), actions);
      }
    }
  }
  if (busy_teams_ == 0 && !stopped_) drop_what_is_left();
}

void Scheduler::drop_model(int model) {
  Queue& queue = queues_[at(model)];
  for (const int g : queue.groups) {
    for (std::size_t i = next_sample_[at(g)]; i < groups_[at(g)].samples.size(); ++i) {
      dropped_.push_back({g, groups_[at(g)].samples[i]});
    }
    next_sample_[at(g)] = groups_[at(g)].samples.size();
  }
  queue.groups.clear();
  queue.jobs = 0;
  queue.seconds = 0;
}

void Scheduler::drop_what_is_left() {
  // Every rank is free and still no team could be formed: these never will be.
  for (const int model : model_order_) {
    if (queues_[at(model)].jobs > 0) drop_model(model);
  }
}

std::int64_t Scheduler::pending_jobs() const {
  std::int64_t jobs = 0;
  for (const auto& queue : queues_) jobs += queue.jobs;
  return jobs;
}

}  // namespace lacuna

// Who runs what: cuts the ranks into teams and hands out jobs. Pure logic: it sees events and answers with
// actions, so the same class drives a real run and the simulation of `lacuna plan --simulate`.
//
// The order is: models with the largest tensor-parallel degree first, then those with the longest jobs;
// within a model the longest jobs first. A team keeps its model while there is work for it and is then
// dissolved; its ranks, and free ones beside them, form teams for the next model. Since degrees only fall,
// teams split and never wait for each other: no barrier, each rank loads a model at most once, and the end of
// the sweep is filled with its shortest jobs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lacuna {

class Scheduler {
 public:
  struct Rank {
    int node = 0;
    std::int64_t memory = 0;  ///< Bytes a job may use on this rank; 0: unlimited.
  };
  struct Model {
    int tp = 1;
    double load_seconds = 0;
  };
  /// Jobs that differ only in the sample: equal cost, equal memory.
  struct Group {
    int model = 0;
    double seconds = 0;       ///< Estimate for one job.
    std::int64_t memory = 0;  ///< Bytes per rank for one job, weights included.
    std::vector<std::int32_t> samples;
  };

  struct Action {
    enum class Kind {
      kForm,  ///< `ranks` become team `team` and load `model`. They belong to no other team any more.
      kRun,   ///< `team` runs (`group`, `sample`).
    };
    Kind kind = Kind::kRun;
    int team = -1;
    int model = -1;
    int group = -1;
    std::int32_t sample = -1;
    std::vector<int> ranks = {};
  };
  struct Job {
    int group = -1;
    std::int32_t sample = -1;
  };

  Scheduler(std::vector<Rank> ranks, std::vector<Model> models, std::vector<Group> groups);

  /// All ranks are free: the first teams and their first jobs.
  std::vector<Action> start();
  /// The team's job is done (well or not).
  std::vector<Action> job_done(int team);
  /// The team's model did not load: its job and every other job of the model are dropped (see dropped()).
  std::vector<Action> load_failed(int team);
  /// No new jobs from now on; what runs may end.
  void stop() { stopped_ = true; }

  /// Nothing runs, and nothing more will.
  bool finished() const { return busy_teams_ == 0; }
  int busy_teams() const { return busy_teams_; }
  std::int64_t pending_jobs() const;
  /// Jobs that can never run on these ranks (too few ranks, too little memory), or whose model failed to
  /// load. Complete once finished().
  const std::vector<Job>& dropped() const { return dropped_; }

  std::span<const int> ranks_of(int team) const { return teams_[static_cast<std::size_t>(team)].ranks; }

 private:
  struct Queue {              // of one model
    std::vector<int> groups;  // with pending jobs, longest first
    std::int64_t jobs = 0;
    double seconds = 0;
    int teams = 0;
  };
  struct Team {
    std::vector<int> ranks;
    int model = -1;
    std::int64_t memory = 0;  // of its smallest rank
    Job job;
    bool busy = false;
  };

  bool run_next(int team, std::vector<Action>& actions);
  void dissolve(int team);
  void form_teams(std::vector<Action>& actions);
  bool worth_joining(const Queue& queue, const Model& model) const;
  std::vector<int> find_ranks(int model) const;
  void make_team(int model, std::vector<int> ranks, std::vector<Action>& actions);
  void drop_model(int model);
  void drop_what_is_left();
  std::int64_t smallest_need(int model) const;

  std::vector<Rank> ranks_;
  std::vector<Model> models_;
  std::vector<Group> groups_;
  std::vector<std::size_t> next_sample_;  // per group
  std::vector<Queue> queues_;             // per model
  std::vector<int> model_order_;
  std::vector<Team> teams_;
  std::vector<int> free_teams_;          // ids to use again
  std::vector<std::vector<int>> nodes_;  // ranks per node
  std::vector<bool> free_;               // per rank
  std::vector<int> free_on_node_;
  int free_ranks_ = 0, largest_node_ = 0;
  int busy_teams_ = 0;
  bool stopped_ = false;
  std::vector<Job> dropped_;
};

}  // namespace lacuna

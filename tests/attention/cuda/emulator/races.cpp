// Finds accesses to shared memory that no barrier orders, whatever order the emulator ran them in. Every
// thread has a vector clock, which __syncwarp, __syncthreads and mbarriers join; every byte remembers its
// last write and the reads since. Shuffles, votes and products of a warp order nothing, as CUDA says.
//
// The translated kernels are compiled with -fsanitize=thread, whose calls before each access come here
// instead of to its own library.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "tests/attention/cuda/emulator/emulator.h"

extern "C" char __executable_start;

namespace {

using Clock = std::vector<unsigned>;
using Known = std::shared_ptr<const Clock>;

enum class Access { kRead, kWrite, kAtomic };
struct Read {
  int thread;
  unsigned time;
  const void* code;
};
/// One byte.
struct Cell {
  unsigned block = 0;  ///< in which it was last touched
  int writer = -1;
  unsigned time = 0;
  bool atomic = false;
  const void* code = nullptr;
  std::vector<Read> reads;
};
struct Range {
  const unsigned char* begin = nullptr;
  std::vector<Cell> cells;
};
struct Signal {
  Clock pending;
  Known last_merged;
  Known released[2];
};

void raise(Clock& to, const Clock& from) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = std::max(to[i], from[i]);
}

class Races : public emulator::Observer {
 public:
  void begin(int threads, const unsigned char* shared, std::size_t bytes) override {
    ++block_;
    const auto count = static_cast<std::size_t>(threads);
    time_.assign(count, 1);
    known_.assign(count, std::make_shared<const Clock>(count, 0));
    signals_.clear();
    dynamic_.begin = shared;
    if (dynamic_.cells.size() < bytes) dynamic_.cells.resize(bytes);
    dynamic_bytes_ = bytes;
  }
  void variable(const void* begin, std::size_t bytes) override {
    auto& range = variables_[static_cast<const unsigned char*>(begin)];
    if (range.cells.size() == bytes) return;
    range.begin = static_cast<const unsigned char*>(begin);
    range.cells.resize(bytes);
  }
  void met(int first, unsigned lanes) override {
    std::vector<int> who;
    for (int i = 0; i < 32; ++i)
      if ((lanes >> i & 1u) != 0) who.push_back(first + i);
    join(who);
  }
  void all_met() override {
    std::vector<int> who(time_.size());
    for (std::size_t i = 0; i < who.size(); ++i) who[i] = static_cast<int>(i);
    join(who);
  }
  void set_up(const void* signal) override { signals_[signal] = Signal{}; }
  void arrived(int thread, const void* at, bool last, int parity) override {
    Signal& signal = signals_[at];
    const auto t = static_cast<std::size_t>(thread);
    signal.pending.resize(time_.size(), 0);
    if (signal.last_merged != known_[t]) raise(signal.pending, *known_[t]);
    signal.last_merged = known_[t];
    signal.pending[t] = time_[t]++;
    if (!last) return;
    signal.released[parity] = std::make_shared<const Clock>(std::move(signal.pending));
    signal.pending.clear();
    signal.last_merged = nullptr;
  }
  void waited(int thread, const void* at, int parity) override {
    const Known& released = signals_[at].released[parity];
    Known& mine = known_[static_cast<std::size_t>(thread)];
    if (released == nullptr || mine == released) return;
    if (mine != joined_from_ || released != joined_with_) {
      Clock both = *mine;
      raise(both, *released);
      joined_from_ = mine, joined_with_ = released;
      joined_ = std::make_shared<const Clock>(std::move(both));
    }
    mine = joined_;
  }
  void atomic(const void* at, std::size_t bytes, const void* code) override {
    access(at, bytes, Access::kAtomic, code);
  }

  void access(const void* address, std::size_t bytes, Access what, const void* code) {
    const int thread = emulator::thread();
    if (thread < 0) return;
    const auto* at = static_cast<const unsigned char*>(address);
    Cell* cells = find(at);
    if (cells == nullptr) return;
    for (std::size_t i = 0; i < bytes; ++i) touch(cells[i], thread, what, code);
  }

  std::size_t report() const {
    for (const auto& [places, found] : races_) {
      std::printf("race, %zu times, first in %s: %s of %s, then %s of %s\n", found.count, found.test.c_str(),
                  found.before.c_str(), line(places.first).c_str(), found.after.c_str(),
                  line(places.second).c_str());
    }
    return races_.size();
  }

 private:
  struct Found {
    std::size_t count = 0;
    std::string test, before, after;
  };

  void join(const std::vector<int>& who) {
    Clock all = *known_[static_cast<std::size_t>(who[0])];
    Known last;
    for (const int t : who) {
      const Known& known = known_[static_cast<std::size_t>(t)];
      if (known != last) raise(all, *known);
      last = known;
    }
    for (const int t : who) {
      const auto i = static_cast<std::size_t>(t);
      all[i] = std::max(all[i], time_[i]++);
    }
    const Known result = std::make_shared<const Clock>(std::move(all));
    for (const int t : who) known_[static_cast<std::size_t>(t)] = result;
  }
  Cell* find(const unsigned char* at) {
    if (at >= dynamic_.begin && at < dynamic_.begin + dynamic_bytes_)
      return dynamic_.cells.data() + (at - dynamic_.begin);
    auto after = variables_.upper_bound(at);
    if (after == variables_.begin()) return nullptr;
    Range& range = std::prev(after)->second;
    if (at >= range.begin + range.cells.size()) return nullptr;
    return range.cells.data() + (at - range.begin);
  }
  bool knows(int thread, int of, unsigned time) const {
    return thread == of || (*known_[static_cast<std::size_t>(thread)])[static_cast<std::size_t>(of)] >= time;
  }
  void touch(Cell& cell, int thread, Access what, const void* code) {
    if (cell.block != block_) {
      cell.block = block_;
      cell.writer = -1;
      cell.reads.clear();
    }
    const bool both_atomic = what == Access::kAtomic && cell.atomic;
    if (cell.writer >= 0 && !both_atomic && !knows(thread, cell.writer, cell.time))
      add(cell.code, cell.atomic ? "atomic" : "write", code, what == Access::kRead ? "read" : "write");
    if (what == Access::kRead) {
      std::erase_if(cell.reads, [&](const Read& read) { return knows(thread, read.thread, read.time); });
      cell.reads.push_back({thread, time_[static_cast<std::size_t>(thread)], code});
      return;
    }
    for (const Read& read : cell.reads)
      if (!knows(thread, read.thread, read.time)) add(read.code, "read", code, "write");
    cell.reads.clear();
    cell.writer = thread;
    cell.time = time_[static_cast<std::size_t>(thread)];
    cell.atomic = what == Access::kAtomic;
    cell.code = code;
  }
  void add(const void* before, const char* first, const void* after, const char* second) {
    Found& found = races_[{before, after}];
    if (++found.count > 1) return;
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    if (test != nullptr) found.test = std::string(test->test_suite_name()) + "." + test->name();
    found.before = first, found.after = second;
  }
  /// Source lines of a place in the program, with the functions inlined there.
  static std::string line(const void* code) {
    char command[256];
    std::snprintf(command, sizeof command, "addr2line -s -i -e /proc/%d/exe 0x%zx", getpid(),
                  static_cast<std::size_t>(static_cast<const char*>(code) - &__executable_start) - 1);
    std::string text;
    char place[256];
    FILE* pipe = popen(command, "r");
    while (pipe != nullptr && std::fgets(place, sizeof place, pipe) != nullptr) {
      const std::string file(place, std::strcspn(place, "\n"));
      if (file.find(".h:") == std::string::npos) text += (text.empty() ? "" : " < ") + file;
    }
    if (pipe != nullptr) pclose(pipe);
    return text;
  }

  unsigned block_ = 0;
  std::vector<unsigned> time_;  ///< of every thread's next access
  std::vector<Known> known_;    ///< up to which time each thread knows of the others
  std::unordered_map<const void*, Signal> signals_;
  Known joined_from_, joined_with_, joined_;
  Range dynamic_;
  std::size_t dynamic_bytes_ = 0;
  std::map<const unsigned char*, Range> variables_;
  std::map<std::pair<const void*, const void*>, Found> races_;
};

Races races;

class AtTheEnd : public ::testing::Environment {
  void SetUp() override { emulator::observer = &races; }
  void TearDown() override {
    emulator::observer = nullptr;
    EXPECT_EQ(races.report(), 0u) << "places where shared memory is handed over without a barrier";
  }
};
[[maybe_unused]] const auto* const environment = ::testing::AddGlobalTestEnvironment(new AtTheEnd);

}  // namespace

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
#define LACUNA_HOOK(bytes)                                                                                   \
  void __tsan_read##bytes(void* at) { races.access(at, bytes, Access::kRead, __builtin_return_address(0)); } \
  void __tsan_write##bytes(void* at) {                                                                       \
    races.access(at, bytes, Access::kWrite, __builtin_return_address(0));                                    \
  }                                                                                                          \
  void __tsan_unaligned_read##bytes(void* at) {                                                              \
    races.access(at, bytes, Access::kRead, __builtin_return_address(0));                                     \
  }                                                                                                          \
  void __tsan_unaligned_write##bytes(void* at) {                                                             \
    races.access(at, bytes, Access::kWrite, __builtin_return_address(0));                                    \
  }
LACUNA_HOOK(1)
LACUNA_HOOK(2)
LACUNA_HOOK(4)
LACUNA_HOOK(8)
LACUNA_HOOK(16)
void __tsan_read_range(void* at, std::size_t bytes) {
  races.access(at, bytes, Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* at, std::size_t bytes) {
  races.access(at, bytes, Access::kWrite, __builtin_return_address(0));
}
}

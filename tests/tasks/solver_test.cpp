// Every synthetic and story sample is answerable from its text alone, its gold is right, and its end does not
// suffice.
#include <gtest/gtest.h>

#include <cstdlib>

#include "tasks/task.h"
#include "tests/tasks/solvers.h"

namespace lacuna {
namespace {

struct Case {
  const char* task;
  nlohmann::json params;
  std::int64_t length;
  int samples;
  double tail_at_most;  ///< Mean score of a reader of the last quarter
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.task << " at " << c.length << " " << c.params.dump();
}

/// The `slow` run takes all samples at the largest length, too.
bool all_samples() { return std::getenv("LACUNA_ALL_SAMPLES") != nullptr; }

std::vector<Case> cases() {
  std::vector<Case> list;
  const char* names[] = {"ruler_niah",      "ruler_vt",        "ruler_cwe",
                         "story_retrieval", "story_filtering", "story_multihop"};
  const int most = all_samples() ? 200 : 10;
  for (const char* name : names) {
    // A quarter of a list of words shows most of the words that appear ten times as often as others.
    const double tail = std::string_view(name) == "ruler_cwe" ? 0.97 : 0.6;
    // 300 numbered entries do not fit into 2K tokens.
    const nlohmann::json at_2k = std::string_view(name) == "ruler_cwe" ? nlohmann::json{{"common_count", 12}}
                                                                       : nlohmann::json::object();
    list.push_back({name, at_2k, 2048, 200, tail});
    list.push_back({name, nlohmann::json::object(), 16384, 200, tail});
    list.push_back({name, nlohmann::json::object(), 128000, most, tail});
    for (const std::int64_t length : {512, 2048, 8192}) {
      list.push_back(
          {name, {{"preset", "mini"}, {"style", "direct"}}, length, length == 8192 ? 50 : 200, tail});
    }
  }
  return list;
}

class SolverTest : public ::testing::TestWithParam<Case> {
 protected:
  static void SetUpTestSuite() { tokenizer_ = new Tokenizer(Tokenizer::load("tests/tasks/golden")); }
  static void TearDownTestSuite() {
    delete tokenizer_;
    tokenizer_ = nullptr;
  }
  static Tokenizer* tokenizer_;
};
Tokenizer* SolverTest::tokenizer_ = nullptr;

TEST_P(SolverTest, ReadsTheTextAlone) {
  const Case& c = GetParam();
  const auto task = make_task(c.task, Params::parse(find_task(c.task, "test").params, c.params, "test"));
  PieceCache cache(*tokenizer_);
  double tail = 0;
  for (int i = 0; i < c.samples; ++i) {
    const Sample sample = task->generate({.tokenizer = tokenizer_,
                                          .chat = ChatFormat::kChatML,
                                          .target_tokens = c.length,
                                          .seed = 7,
                                          .index = static_cast<std::uint64_t>(i),
                                          .cache = &cache});
    ASSERT_GE(std::ssize(sample.ids) * 100, c.length * 95) << "sample " << i;
    ASSERT_LE(std::ssize(sample.ids), c.length) << "sample " << i;
    const std::string output = testing::solve(c.task, sample.prompt);
    ASSERT_EQ(task->score(sample.gold, output).value, 1.0) << "sample " << i << "\n"
                                                           << output << "\n"
                                                           << sample.answer_text;
    ASSERT_EQ(task->score(sample.gold, "Because.\n" + sample.answer_text).value, 1.0) << sample.answer_text;
    tail += task->score(sample.gold, testing::solve(c.task, testing::tail_of(sample.prompt, 0.25))).value;
  }
  RecordProperty("tail_score", std::to_string(tail / c.samples));
  EXPECT_LT(tail / c.samples, c.tail_at_most);
}

INSTANTIATE_TEST_SUITE_P(AllTasks, SolverTest, ::testing::ValuesIn(cases()));

}  // namespace
}  // namespace lacuna

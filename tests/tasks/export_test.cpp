#include "tasks/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "core/error.h"
#include "core/json.h"
#include "tests/tasks/testing.h"

namespace lacuna {
namespace {

using testing::tokenizer;

struct Record {
  std::uint32_t total = 0, answer_start = 0;
  std::uint16_t job = 0, reserved = 0;
  std::vector<std::uint16_t> ids;
};

std::vector<Record> parse(std::string_view bytes) {
  std::vector<Record> records;
  const auto take = [&](void* to, std::size_t n) {
    ASSERT_GE(bytes.size(), n);
    std::memcpy(to, bytes.data(), n);
    bytes.remove_prefix(n);
  };
  while (!bytes.empty()) {
    Record r;
    take(&r.total, 4);
    take(&r.answer_start, 4);
    take(&r.job, 2);
    take(&r.reserved, 2);
    r.ids.resize(r.total);
    take(r.ids.data(), 2 * r.ids.size());
    if (::testing::Test::HasFatalFailure()) break;
    records.push_back(std::move(r));
  }
  return records;
}

std::string export_bytes(const std::vector<ExportJob>& jobs, std::uint64_t count, int threads,
                         std::uint64_t first = 0) {
  std::string bytes;
  const auto written = export_samples(jobs,
                                      {.tokenizer = &tokenizer(),
                                       .chat = ChatFormat::kChatML,
                                       .seed = 9,
                                       .first = first,
                                       .count = count,
                                       .threads = threads},
                                      [&](std::string_view part) {
                                        bytes += part;
                                        return true;
                                      });
  EXPECT_EQ(written, count);
  return bytes;
}

std::vector<ExportJob> all_tasks(std::int64_t length) {
  std::vector<ExportJob> jobs;
  for (const char* name : testing::kGenerated)
    jobs.push_back({name, {{"preset", "mini"}, {"style", "direct"}}, length});
  return jobs;
}

TEST(Export, RecordsAreWhatGenerateGives) {
  const auto jobs = all_tasks(512);
  const auto records = parse(export_bytes(jobs, 130, 1));
  ASSERT_EQ(records.size(), 130u);
  for (std::size_t i = 0; i < records.size(); ++i) {
    const auto& record = records[i];
    EXPECT_EQ(record.job, i % jobs.size());
    EXPECT_EQ(record.reserved, 0);
    const Sample sample = testing::make(jobs[record.job].task, jobs[record.job].params)
                              ->generate({.tokenizer = &tokenizer(),
                                          .chat = ChatFormat::kChatML,
                                          .target_tokens = 512,
                                          .seed = 9,
                                          .index = i});
    ASSERT_EQ(record.answer_start, sample.ids.size());
    const std::vector<TokenId> prompt(record.ids.begin(), record.ids.begin() + record.answer_start);
    EXPECT_EQ(prompt, sample.ids);
    const std::vector<TokenId> answer(record.ids.begin() + record.answer_start, record.ids.end() - 1);
    EXPECT_EQ(tokenizer().decode(answer), sample.answer_text);
    EXPECT_EQ(record.ids.back(), tokenizer().token_id("<|im_end|>"));
  }
}

TEST(Export, DoesNotDependOnThreadsOrBeginnings) {
  const auto jobs = all_tasks(400);
  const std::string one = export_bytes(jobs, 150, 1), three = export_bytes(jobs, 150, 3);
  EXPECT_EQ(one, three);
  EXPECT_EQ(export_bytes(jobs, 60, 1) + export_bytes(jobs, 90, 2, 60), one);
}

TEST(Export, WeightsShareTheRecords) {
  auto jobs = all_tasks(300);
  jobs.resize(2);
  jobs[1].weight = 3;
  std::size_t second = 0;
  for (const auto& record : parse(export_bytes(jobs, 400, 1))) second += record.job;
  EXPECT_NEAR(static_cast<double>(second), 300, 35);
}

TEST(Export, StopsWhenTheReaderDoes) {
  int calls = 0;
  const auto written = export_samples(
      all_tasks(300),
      {.tokenizer = &tokenizer(), .chat = ChatFormat::kChatML, .seed = 9, .count = 0, .threads = 1},
      [&](std::string_view) { return ++calls < 5; });
  EXPECT_EQ(written, 4u);
}

TEST(Export, SpecIsChecked) {
  const auto error = [](const Json& spec) -> std::string {
    try {
      parse_export_spec(spec, "spec.json");
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  using ::testing::HasSubstr;
  const auto jobs = parse_export_spec(
      Json::parse(R"([{"task": "ruler_vt", "length": 512, "params": {"num_hops": 1}, "weight": 2}])"), "s");
  EXPECT_EQ(jobs[0].task, "ruler_vt");
  EXPECT_EQ(jobs[0].length, 512);
  EXPECT_EQ(jobs[0].weight, 2.0);
  EXPECT_THAT(error(Json::array()), HasSubstr("expected a list"));
  EXPECT_THAT(error({{{"task", "ruler_vt"}}}), HasSubstr("spec.json[0]: field 'length' is missing"));
  EXPECT_THAT(error({{{"task", "ruler_v"}, {"length", 5}}}), HasSubstr("did you mean 'ruler_vt'?"));
  EXPECT_THAT(error({{{"task", "ruler_vt"}, {"length", 5}, {"wait", 1}}}), HasSubstr("unknown field 'wait'"));
  EXPECT_THAT(error({{{"task", "ruler_vt"}, {"length", 5}, {"weight", 0}}}),
              HasSubstr("weight must be positive"));
}

TEST(Export, NeedsAnEndOfTurn) {
  EXPECT_THROW(end_of_turn(tokenizer(), ChatFormat::kNone), Error);
  EXPECT_THROW(end_of_turn(tokenizer(), ChatFormat::kGemma), Error);
}

}  // namespace
}  // namespace lacuna

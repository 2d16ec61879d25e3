// The readers of question-answering files, and the three tasks on them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "tasks/qa_data.h"
#include "tests/tasks/testing.h"

namespace lacuna {
namespace {

using ::testing::HasSubstr;
using testing::make;
using testing::tokenizer;

QaData squad_file(const std::string& path) { return read_squad(read_file(path), path); }
QaData choices_file(const std::string& path) { return read_choices(read_file(path), path); }

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage) << e.what();
    return e.what();
  }
  return "no error";
}

TEST(Squad, ReadsBothVersions) {
  const QaData v2 = squad_file("tests/tasks/data/squad_v2.json");
  EXPECT_EQ(v2.documents.size(), 8u);
  EXPECT_EQ(v2.questions.size(), 16u);
  EXPECT_EQ(v2.unanswerable, 8u);
  EXPECT_EQ(v2.duplicate, 1u);
  EXPECT_EQ(v2.empty, 2u);
  EXPECT_EQ(v2.questions[0].text, "Who founded the lighthouse of Karn?");
  EXPECT_EQ(v2.questions[0].answers, (std::vector<std::string>{"Ilse Brandt", "Brandt"}));
  EXPECT_EQ(v2.questions[1].answers, (std::vector<std::string>{"1821", "in 1821"}));
  EXPECT_EQ(v2.questions[1].id, "lighthouse-1");
  const QaData v1 = squad_file("tests/tasks/data/squad_v1.json");
  EXPECT_EQ(v1.documents.size(), 2u);
  EXPECT_EQ(v1.questions.size(), 4u);
  EXPECT_EQ(v1.unanswerable, 0u);
}

TEST(Squad, MalformedFilesNameTheField) {
  const auto error = [](const std::string& text) { return error_of([&] { read_squad(text, "f.json"); }); };
  EXPECT_THAT(error(""), HasSubstr("f.json: not valid JSON"));
  EXPECT_THAT(error("[1, 2"), HasSubstr("f.json: not valid JSON"));
  EXPECT_THAT(error("[]"), HasSubstr("f.json: expected an object, found array"));
  EXPECT_THAT(error("{}"), HasSubstr("field 'data' is missing"));
  EXPECT_THAT(error(R"({"data": 3})"), HasSubstr("field 'data' is a number, expected a list"));
  EXPECT_THAT(error(R"({"data": [{"title": "x"}]})"), HasSubstr("data[0]: field 'paragraphs' is missing"));
  EXPECT_THAT(error(R"({"data": [{"paragraphs": [{"qas": []}]}]})"),
              HasSubstr("data[0].paragraphs[0]: field 'context' is missing"));
  EXPECT_THAT(error(R"({"data": [{"paragraphs": [{"context": "c", "qas": [{"answers": []}]}]}]})"),
              HasSubstr("data[0].paragraphs[0].qas[0]: field 'question' is missing"));
  EXPECT_THAT(
      error(R"({"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [{}]}]}]}]})"),
      HasSubstr("qas[0].answers[0]: field 'text' is missing"));
  EXPECT_THAT(
      error(R"({"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [7]}]}]}]})"),
      HasSubstr("field 'text'"));
  EXPECT_THAT(error(R"({"data": []})"), HasSubstr("no question that can be used"));
  EXPECT_THAT(
      error(
          R"({"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "is_impossible": true}]}]}]})"),
      HasSubstr("1 unanswerable"));
}

TEST(Choices, ParsesOptions) {
  std::string question;
  std::vector<std::string> options;
  ASSERT_TRUE(
      parse_options("Question 1.Why? A. They \n B. Their U.S. \n C. x\n D. y \n", &question, &options));
  EXPECT_EQ(question, "Why?");
  EXPECT_EQ(options, (std::vector<std::string>{"They", "Their U.S.", "x", "y"}));
  ASSERT_TRUE(parse_options("Question: what  for? Options: A.to sign up B.to report ", &question, &options));
  EXPECT_EQ(question, "what for?");
  EXPECT_EQ(options, (std::vector<std::string>{"to sign up", "to report"}));
  ASSERT_TRUE(parse_options("How many?A. 1\nB. 2", &question, &options));
  EXPECT_EQ(question, "How many?");
  ASSERT_TRUE(
      parse_options("Is vitamin A. good or vitamin B. bad? A. yes B. no C. both", &question, &options));
  EXPECT_EQ(question, "Is vitamin A. good or vitamin B. bad?");
  EXPECT_EQ(options, (std::vector<std::string>{"yes", "no", "both"}));
  ASSERT_TRUE(parse_options("Which? (A) one (B) two", &question, &options));
  EXPECT_EQ(question, "Which?");
  EXPECT_EQ(options, (std::vector<std::string>{"one", "two"}));
  for (const char* none :
       {"", "Why?", "Why? A. only", "A. x B. y", "Why? B. x C. y", "Why? A.B. y", "Why? a. x b. y"}) {
    EXPECT_FALSE(parse_options(none, &question, &options)) << none;
  }
}

TEST(Choices, ParsesLetters) {
  EXPECT_EQ(parse_letters("B", 4), "B");
  EXPECT_EQ(parse_letters("DA", 4), "AD");
  EXPECT_EQ(parse_letters(" a, c ", 4), "AC");
  EXPECT_EQ(parse_letters("E", 4), "");
  EXPECT_EQ(parse_letters("", 4), "");
  EXPECT_EQ(parse_letters("1", 4), "");
}

TEST(Choices, ReadsBothForms) {
  const QaData lettered = choices_file("tests/tasks/data/choices.jsonl");
  EXPECT_EQ(lettered.documents.size(), 8u);
  EXPECT_EQ(lettered.questions.size(), 24u);
  EXPECT_EQ(lettered.questions[1].answers[0], "AC");
  EXPECT_EQ(lettered.questions[2].text, "What does the text not mention?");
  EXPECT_EQ(lettered.questions[2].options[3], "Water");
  const QaData release = choices_file("tests/tasks/data/quality_release.jsonl");
  EXPECT_EQ(release.documents.size(), 3u);
  EXPECT_EQ(release.questions.size(), 6u);
  EXPECT_EQ(release.unanswerable, 3u);
  EXPECT_EQ(release.questions[0].answers[0], "B");
  EXPECT_EQ(release.questions[0].id, "0_A");
}

TEST(Choices, MalformedFilesNameLineAndField) {
  const auto error = [](const std::string& text) { return error_of([&] { read_choices(text, "f.jsonl"); }); };
  const std::string good = R"({"context": "c", "questions": ["Why? A. x B. y"], "answer": ["A"]})";
  EXPECT_EQ(error(good), "no error");
  EXPECT_EQ(error(good + "\r\n\n"), "no error");
  EXPECT_THAT(error(""), HasSubstr("no question that can be used"));
  EXPECT_THAT(error(good + "\n{"), HasSubstr("f.jsonl:2: not valid JSON"));
  EXPECT_THAT(error(good + "\n3"), HasSubstr("f.jsonl:2: expected an object"));
  EXPECT_THAT(error(good + "\n\n{\"questions\": []}"), HasSubstr("f.jsonl:3: field 'context' is missing"));
  EXPECT_THAT(error(R"({"context": 1, "questions": [], "answer": []})"), HasSubstr("field 'context' is 1"));
  EXPECT_THAT(error(R"({"context": "c", "questions": "q", "answer": []})"),
              HasSubstr("field 'questions' is a string"));
  EXPECT_THAT(error(R"({"context": "c", "questions": ["q"], "answer": []})"),
              HasSubstr("differ in length: 1 and 0"));
  EXPECT_THAT(error(R"({"context": "c", "questions": [1], "answer": ["A"]})"),
              HasSubstr("field 'questions[0]' is a number"));
  EXPECT_THAT(error(R"({"context": "c", "questions": ["Why?"], "answer": ["A"]})"),
              HasSubstr("no options lettered"));
  EXPECT_THAT(error(R"({"context": "c", "questions": ["Why? A. x B. y"], "answer": ["C"]})"),
              HasSubstr("field 'answer[0]' is 'C', expected letters out of A to B"));
  EXPECT_THAT(error(R"({"article": "c", "questions": [{"question": "q", "options": ["a"]}]})"),
              HasSubstr("questions[0]: field 'options' has 1 entries"));
  EXPECT_THAT(
      error(R"({"article": "c", "questions": [{"question": "q", "options": ["a", "b"], "gold_label": 3}]})"),
      HasSubstr("field 'gold_label' is 3, expected 1 to 2"));
}

struct FileCase {
  const char* task;
  const char* path;
};

/// The checks that hold for every sample of a QA task.
void check_samples(const FileCase& c, const QaData& data, std::int64_t length, const Json& more,
                   std::uint64_t samples) {
  Json params = {{"data", c.path}, {"repeat_documents", true}};
  params.update(more);
  const auto task = make(c.task, params);
  EXPECT_EQ(task->size(), data.questions.size());
  std::set<std::size_t> asked;
  for (std::uint64_t i = 0; i < samples; ++i) {
    const Sample sample = task->generate({.tokenizer = &tokenizer(),
                                          .chat = ChatFormat::kChatML,
                                          .target_tokens = length,
                                          .seed = 4,
                                          .index = i});
    ASSERT_LE(std::ssize(sample.ids), length) << c.task;
    ASSERT_GE(std::ssize(sample.ids) * 100, length * 95) << c.task;
    const auto& question = data.questions.at(sample.description.at("question").get<std::size_t>());
    EXPECT_TRUE(asked.insert(sample.description.at("question").get<std::size_t>()).second) << "asked twice";
    // The document stands under its number, the question twice, and the gold is the file's.
    const std::string document =
        fmt::format("Document {}:\n{}\n\n", sample.description.at("document").get<int>(),
                    data.documents.at(question.document));
    EXPECT_NE(sample.prompt.find(document), std::string::npos);
    EXPECT_NE(sample.prompt.find(question.text), sample.prompt.rfind(question.text));
    if (question.options.empty())
      EXPECT_EQ(sample.gold, Json(question.answers));
    else
      EXPECT_EQ(sample.gold, Json(question.answers[0]));
    EXPECT_EQ(task->score(sample.gold, sample.answer_text).value, 1.0) << sample.answer_text;
    EXPECT_EQ(task->score(sample.gold, "<answer>zzz</answer>").value, 0.0);
  }
}

TEST(QaTasks, OwnFixtures) {
  check_samples({"qa_squad", "tests/tasks/data/squad_v2.json"}, squad_file("tests/tasks/data/squad_v2.json"),
                3000, Json::object(), 16);
  check_samples({"qa_quality", "tests/tasks/data/quality_release.jsonl"},
                choices_file("tests/tasks/data/quality_release.jsonl"), 2000, Json::object(), 6);
  check_samples({"qa_toefl", "tests/tasks/data/choices.jsonl"},
                choices_file("tests/tasks/data/choices.jsonl"), 3000, {{"style", "direct"}}, 24);
}

TEST(QaTasks, AllLengthsShareTheQuestions) {
  const auto task =
      make("qa_squad", {{"data", "tests/tasks/data/squad_v2.json"}, {"repeat_documents", true}});
  for (std::uint64_t i = 0; i < 5; ++i) {
    SampleRequest request{
        .tokenizer = &tokenizer(), .chat = ChatFormat::kChatML, .target_tokens = 1000, .seed = 1, .index = i};
    const Json question = task->generate(request).description.at("id");
    request.target_tokens = 20000;
    EXPECT_EQ(task->generate(request).description.at("id"), question);
  }
}

TEST(QaTasks, Refusals) {
  const auto refusal = [](const char* name, const Json& params, std::int64_t length, std::uint64_t index) {
    return error_of([&] {
      make(name, params)
          ->generate({.tokenizer = &tokenizer(),
                      .chat = ChatFormat::kChatML,
                      .target_tokens = length,
                      .seed = 1,
                      .index = index});
    });
  };
  const Json file = {{"data", "tests/tasks/data/squad_v2.json"}};
  EXPECT_THAT(refusal("qa_squad", file, 16384, 0), HasSubstr("repeat_documents=true"));
  EXPECT_THAT(refusal("qa_squad", file, 1000, 16), HasSubstr("sample 16 does not exist: 16 of 16 questions"));
  EXPECT_THAT(refusal("qa_squad", file, 250, 0), HasSubstr("do not hold the question's own document"));
  EXPECT_THAT(
      refusal("qa_squad", {{"data", "tests/tasks/data/squad_v2.json"}, {"own_prompt_limit", 50}}, 1000, 0),
      HasSubstr("0 of 16 questions have a prompt of at most 50 tokens"));
  EXPECT_THAT(refusal("qa_squad", {{"data", "/nowhere.json"}}, 1000, 0), HasSubstr("/nowhere.json"));
  EXPECT_THAT(refusal("qa_squad", {{"data", "tests/tasks/data/choices.jsonl"}}, 1000, 0),
              HasSubstr("choices.jsonl"));
  EXPECT_THAT(refusal("qa_squad", Json::object(), 1000, 0), HasSubstr("'data' is required"));
}

TEST(QaTasks, FilesThatPeopleHave) {
  const std::string folder = "../shared/data/";
  if (!std::filesystem::exists(folder + "squad.json")) {
    GTEST_SKIP() << folder << " with squad.json, quality.jsonl and toeflqa.jsonl is not on this machine";
  }
  const QaData squad = squad_file(folder + "squad.json");
  EXPECT_EQ(squad.documents.size(), 26u);
  EXPECT_EQ(squad.questions.size(), 65u);
  EXPECT_EQ(squad.unanswerable, 81u);
  const QaData quality = choices_file(folder + "quality.jsonl");
  EXPECT_EQ(quality.documents.size(), 7u);
  EXPECT_EQ(quality.questions.size(), 79u);
  const QaData toefl = choices_file(folder + "toeflqa.jsonl");
  EXPECT_EQ(toefl.documents.size(), 120u);
  EXPECT_EQ(toefl.questions.size(), 577u);
  for (const QaData* data : {&quality, &toefl}) {
    for (const auto& question : data->questions) EXPECT_EQ(question.options.size(), 4u) << question.text;
  }
  EXPECT_EQ(
      std::ranges::count_if(toefl.questions, [](const QaQuestion& q) { return q.answers[0].size() > 1; }),
      76);
  const std::string paths[] = {folder + "squad.json", folder + "quality.jsonl", folder + "toeflqa.jsonl"};
  for (const std::int64_t length : {4096, 8192, 16384, 32768}) {
    check_samples({"qa_squad", paths[0].c_str()}, squad, length, Json::object(), 5);
    check_samples({"qa_toefl", paths[2].c_str()}, toefl, length, Json::object(), 5);
    // These articles are longer than 4K tokens of the small vocabulary.
    if (length >= 16384)
      check_samples({"qa_quality", paths[1].c_str()}, quality, length, {{"own_prompt_limit", 16000}}, 5);
  }
}

}  // namespace
}  // namespace lacuna

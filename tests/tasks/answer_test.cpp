#include "tasks/answer.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/json.h"
#include "core/rng.h"

namespace lacuna {
namespace {

double score_of(const std::string& task, const Json& gold, const std::string& output) {
  return score_output(task, gold, output, "test").value;
}

TEST(Extract, TakesTheLastClosedPair) {
  EXPECT_EQ(extract_answer("so <answer> x </answer>"), "x");
  EXPECT_EQ(extract_answer("<answer>x</answer> no, <answer>\ny\n</answer> done"), "y");
  EXPECT_EQ(extract_answer("<Answer>x</ANSWER>"), "x");
  EXPECT_EQ(extract_answer("<answer>old</answer> <answer>cut off"), "old");
  EXPECT_EQ(extract_answer("<answer><answer>x</answer></answer>"), "x");
}

TEST(Extract, FallsBack) {
  EXPECT_EQ(extract_answer("hm <answer> cut off"), "cut off");
  EXPECT_EQ(extract_answer("<answer>a <answer> b"), "b");
  EXPECT_EQ(extract_answer("The reason.\nAnswer: Rollo\nmore"), "Rollo");
  EXPECT_EQ(extract_answer("</answer> <answer> x"), "x");
  EXPECT_EQ(extract_answer("</answer> x"), "");
  EXPECT_EQ(extract_answer("Rollo"), "");
  EXPECT_EQ(extract_answer(""), "");
  EXPECT_EQ(extract_answer("<answer></answer>"), "");
  EXPECT_EQ(extract_answer("<answer> \n </answer>"), "");
}

TEST(Extract, MissingAnswersCount) {
  for (const char* output : {"", "Rollo", "<answer></answer>", "<answer>  "}) {
    const Score score = score_output("qa_squad", {"Rollo"}, output, "test");
    EXPECT_TRUE(score.no_answer) << output;
    EXPECT_EQ(score.value, 0) << output;
  }
  const Score wrong = score_output("qa_squad", {"Rollo"}, "<answer>William</answer>", "test");
  EXPECT_FALSE(wrong.no_answer);
  EXPECT_EQ(wrong.value, 0);
}

TEST(Squad, EqualsThePublishedRules) {
  const Json rows = read_json_file("tests/tasks/golden/squad_scores.json");
  ASSERT_GE(rows.size(), 400u);
  for (const auto& row : rows) {
    const auto prediction = row[0].get<std::string>(), reference = row[1].get<std::string>();
    EXPECT_EQ(normalize_squad(prediction), row[4].get<std::string>()) << prediction;
    EXPECT_EQ(squad_f1(prediction, reference), row[2].get<double>()) << prediction << " | " << reference;
    EXPECT_EQ(squad_exact(prediction, reference), row[3].get<int>() == 1) << prediction << " | " << reference;
  }
}

TEST(Squad, TakesTheBestReference) {
  const Json gold = {"in the 10th century", "10th century"};
  EXPECT_EQ(score_of("qa_squad", gold, "<answer>10th century</answer>"), 1.0);
}

TEST(Choice, ReadsLetters) {
  for (const char* answer :
       {"B", "b", "(B)", "B.", "**B**", "Option B", "B. They were tired", "b) because", "B: yes"}) {
    EXPECT_EQ(chosen_letters(answer), "B") << answer;
  }
  for (const char* answer :
       {"AD", "DA", "A, D", "A and D", "D & A", "A D", "A/D", "a,d", "options A and D", "AAD"}) {
    EXPECT_EQ(chosen_letters(answer), "AD") << answer;
  }
  for (const char* answer : {"", "They were tired", "K", "the first", "1", "?", "because"}) {
    EXPECT_EQ(chosen_letters(answer), "") << answer;
  }
  EXPECT_EQ(score_of("qa_toefl", "AD", "<answer>D, A</answer>"), 1.0);
  EXPECT_EQ(score_of("qa_toefl", "AD", "<answer>A</answer>"), 0.0);
  EXPECT_EQ(score_of("qa_quality", "B", "<answer>B. They</answer>"), 1.0);
}

TEST(Niah, MatchesKeysBeforePlaces) {
  const Json gold = {{{"key", "k1-aa"}, {"value", "v1-bb"}}, {{"key", "k2-aa"}, {"value", "v2-bb"}}};
  const auto score = [&](const std::string& text) {
    return score_of("ruler_niah", gold, "<answer>" + text + "</answer>");
  };
  EXPECT_EQ(score("1. k1-aa is v1-bb\n2. k2-aa is v2-bb"), 1.0);
  EXPECT_EQ(score("2. k2-aa is v2-bb\n1. k1-aa is v1-bb"), 1.0);  // another order, but by its key
  EXPECT_EQ(score("k1-aa: v1-bb, k2-aa: v2-bb"), 1.0);
  EXPECT_EQ(score("v1-bb, v2-bb"), 1.0);
  EXPECT_EQ(score("`V1-BB`\n**v2-bb**."), 1.0);
  EXPECT_EQ(score("v2-bb, v1-bb"), 0.0);
  EXPECT_EQ(score("k1-aa is v1-bb"), 0.5);
  EXPECT_EQ(score("v1-bb"), 0.5);
  EXPECT_EQ(score("k1-aa is v2-bb\nk2-aa is v1-bb"), 0.0);
  EXPECT_EQ(score("v1-b, v2-bbb"), 0.0);
  EXPECT_EQ(score("v1-bb v2-bb v1-bb v2-bb, v2-bb"), 1.0);
}

TEST(Sets, Iou) {
  const Json names = {"ABC", "DEF"};
  const auto vt = [&](const std::string& text) {
    return score_of("ruler_vt", names, "<answer>" + text + "</answer>");
  };
  EXPECT_EQ(vt("ABC, DEF"), 1.0);
  EXPECT_EQ(vt("VAR DEF and VAR ABC, ABC"), 1.0);  // order and repetition do not matter
  EXPECT_DOUBLE_EQ(vt("ABC, DEF, XYZ"), 2.0 / 3.0);
  EXPECT_EQ(vt("abc, def"), 0.0);  // names are case-sensitive
  const auto cwe = [&](const std::string& text) {
    return score_of("ruler_cwe", {"and", "tree"}, "<answer>" + text + "</answer>");
  };
  EXPECT_EQ(cwe("1. Tree\n2. and"), 1.0);
  EXPECT_EQ(cwe("1) **tree**"), 0.5);
  EXPECT_EQ(score_of("ruler_cwe", {"house", "tree"}, "<answer>tree and house</answer>"), 1.0);
  const auto filtering = [&](const std::string& text) {
    return score_of("story_filtering", {3, 12, 40}, "<answer>" + text + "</answer>");
  };
  EXPECT_EQ(filtering("40, 3, 12"), 1.0);
  EXPECT_EQ(filtering("Chapters 03, 12 and 40."), 1.0);
  EXPECT_DOUBLE_EQ(filtering("3, 12"), 2.0 / 3.0);
  EXPECT_EQ(filtering("none"), 0.0);
}

TEST(Story, ExactAnswers) {
  const Json gold = {"Bramwick", "small copper lamp"};
  const auto retrieval = [&](const std::string& text) {
    return score_of("story_retrieval", gold, "<answer>" + text + "</answer>");
  };
  EXPECT_EQ(retrieval("\n1. Bramwick\n2. small copper lamp\n"), 1.0);
  EXPECT_EQ(retrieval("bramwick, a small copper lamp"), 1.0);
  EXPECT_EQ(retrieval("1) **Bramwick**.\n\n2) The small copper  lamp"), 1.0);
  EXPECT_EQ(retrieval("small copper lamp, Bramwick"), 0.0);
  EXPECT_EQ(retrieval("Bramwick"), 0.5);
  EXPECT_EQ(retrieval("Bramwick\nsmall copper ring"), 0.5);
  EXPECT_EQ(score_of("story_multihop", "small copper lamp", "<answer>the Small Copper Lamp.</answer>"), 1.0);
  EXPECT_EQ(score_of("story_multihop", "small copper lamp", "<answer>small copper</answer>"), 0.0);
}

TEST(Scores, GoldOfAnotherFormIsAnError) {
  for (const auto& info : tasks()) {
    for (const Json& gold : {Json(), Json(3.5), Json{{"x", 1}}, Json{Json{1}}}) {
      try {
        const double value = score_of(info.name, gold, "<answer>x</answer>");
        EXPECT_EQ(value, 0.0) << info.name << " " << gold.dump();
      } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::kUsage) << info.name << " " << gold.dump();
      }
    }
  }
}

/// Outputs made to break a scorer. None may throw, and none may score.
TEST(Scores, AnyOutputIsScored) {
  const std::pair<const char*, Json> golds[] = {{"qa_squad", {"Rollo"}},
                                                {"qa_quality", "B"},
                                                {"qa_toefl", "AD"},
                                                {"ruler_vt", {"ABCDE"}},
                                                {"ruler_cwe", {"tree"}},
                                                {"ruler_niah", {{{"key", "aa-bb"}, {"value", "cc-dd"}}}},
                                                {"story_filtering", {3, 400}},
                                                {"story_multihop", "red"},
                                                {"story_retrieval", {"Bramwick"}}};
  std::vector<std::string> outputs = {std::string(10'000'000, 'x'),
                                      "<answer>" + std::string(10'000'000, '\n') + "</answer>",
                                      "<answer>\xff\xfe\x80 \xc3(\xe2\x82</answer>",
                                      std::string("<answer>\0\0</answer>", 19),
                                      "<answer>99999999999999999999999999999999999999</answer>",
                                      "<answer>-1</answer>",
                                      "</answer><answer>",
                                      "<answer",
                                      "answer:",
                                      "<answer>1.</answer>",
                                      "<answer>,,,;;;,</answer>"};
  std::string nested, entries;
  for (int i = 0; i < 100'000; ++i) nested += "<answer>";
  for (int i = 0; i < 100'000; ++i) nested += "</answer>";
  for (int i = 0; i < 200'000; ++i) entries += "1. zzz, \n";
  outputs.push_back(nested);
  outputs.push_back("<answer>" + entries + "</answer>");
  Rng rng(3);
  for (int i = 0; i < 200; ++i) {
    std::string random = "<answer>";
    for (int j = 0; j < 200; ++j) random += static_cast<char>(128 + rng.below(128));
    outputs.push_back(random + "</answer>");
  }
  for (const auto& [task, gold] : golds) {
    for (const auto& output : outputs) {
      EXPECT_EQ(score_of(task, gold, output), 0.0) << task << ": " << output.substr(0, 40);
    }
  }
}

TEST(Scores, FullMarksSurviveMarkup) {
  EXPECT_EQ(score_of("ruler_vt", {"ABCDE"}, "<answer>**ABCDE**</answer>"), 1.0);
  EXPECT_EQ(score_of("qa_squad", {"Rollo"},
                     "<think>Is it <answer>William</answer>?</think> <answer>*Rollo*</answer>"),
            1.0);
}

}  // namespace
}  // namespace lacuna

// Chat formats: recognised, rendered as transformers renders the template, refused where they would differ.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "corpus.h"
#include "model/chat.h"

namespace lacuna::test {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

Json cases() { return read_json_file(std::string(kGolden) + "chat.json"); }

std::string template_of(const std::string& format) {
  for (const Json& c : cases()) {
    if (c["format"] == format) return c["template"].get<std::string>();
  }
  return "";
}

std::string refusal(const std::string& jinja) {
  try {
    return "recognised as " + std::string(name_of(recognise_chat_template(jinja, "here")));
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage);
    EXPECT_THAT(e.what(), testing::AllOf(HasSubstr("here"), HasSubstr("name a format explicitly")));
    return e.what();
  }
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.rfind(from);
  EXPECT_NE(at, text.npos) << from;
  return text.replace(at, from.size(), to);
}

/// A tokenizer with the tokens of all formats, whose ids are easy to read.
Tokenizer all_tokens() {
  Json file = read_json_file(std::string(kGolden) + "qwen.json");
  int id = 1505;
  for (const char* content : {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
                              "<bos>", "<start_of_turn>", "<end_of_turn>"}) {
    file["added_tokens"].push_back({{"id", id++},
                                    {"content", content},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", true}});
  }
  return Tokenizer::parse(file.dump(), "all");
}

TEST(ChatTest, RendersWhatTheTemplateRenders) {
  const Tokenizer tokenizer = all_tokens();
  int compared = 0;
  for (const Json& c : cases()) {
    const ChatFormat format = recognise_chat_template(c["template"].get<std::string>(), "here");
    EXPECT_EQ(name_of(format), c["format"].get<std::string>());
    for (std::size_t i = 0; i < c["messages"].size(); ++i) {
      const auto message = c["messages"][i].get<std::string>();
      const auto rendered = c["rendered"][i].get<std::string>();
      EXPECT_EQ(tokenizer.decode(encode_chat(tokenizer, format, message), false), rendered) << c["format"];
      EXPECT_EQ(encode_chat(tokenizer, format, message), tokenizer.encode(rendered)) << c["format"];
      const ChatFrame frame = chat_frame(format);
      if (message == "Hello") {
        EXPECT_EQ(frame.prefix + message + frame.suffix, rendered);
      }
      ++compared;
    }
  }
  EXPECT_EQ(compared, 35);
}

TEST(ChatTest, RefusesTemplatesThatWouldDiffer) {
  EXPECT_EQ(refusal(template_of("qwen2.5")), "recognised as qwen2.5");
  EXPECT_THAT(refusal(replaced(template_of("qwen2"), "You are a helpful assistant.", "You are a pirate.")),
              HasSubstr("\"You are a pirate.\""));
  EXPECT_THAT(refusal(replaced(template_of("chatml"), "<|im_start|>assistant\\n",
                               "<|im_start|>assistant\\n<think>\\n")),
              HasSubstr("opens the answer with"));
  EXPECT_THAT(refusal(replaced(template_of("qwen2"), "{% if add_generation_prompt %}", "{% if true %}")),
              HasSubstr("add_generation_prompt"));
  EXPECT_THAT(refusal(replaced(template_of("qwen2"), "message['content']", "message['content'] | trim")),
              HasSubstr("trims the message"));
  EXPECT_THAT(refusal("{{ bos_token }}" + template_of("qwen2")), HasSubstr("BOS"));
  EXPECT_THAT(refusal(replaced(template_of("llama3"), " | trim", "")), HasSubstr("does not trim"));
  EXPECT_THAT(refusal(replaced(template_of("llama3.1"), "December 2023", "May 2031")),
              HasSubstr("other dates"));
  EXPECT_THAT(refusal(replaced(template_of("gemma"), " | trim", "")), HasSubstr("does not trim"));
  EXPECT_THAT(refusal("{{ '[INST] ' + messages[0].content + ' [/INST]' }}"), HasSubstr("[INST] format"));
  EXPECT_THAT(refusal("{{ '<|user|>\\n' }}"), HasSubstr("<|user|> format"));
  EXPECT_THAT(refusal(""), HasSubstr("none of ChatML"));
  EXPECT_THAT(refusal("{{ '<|im_start|>"), HasSubstr("none of ChatML"));
}

class FolderTest : public testing::Test {
 protected:
  FolderTest() { fs::create_directories(folder_); }
  ~FolderTest() override { fs::remove_all(folder_); }
  void write(const char* name, const std::string& text) { std::ofstream(folder_ / name) << text; }
  ChatFormat detect() const { return detect_chat_format(folder_.string()); }
  fs::path folder_ =
      fs::temp_directory_path() /
      (std::string("lacuna_chat_") + testing::UnitTest::GetInstance()->current_test_info()->name());
};

TEST_F(FolderTest, DetectsStringListAndFile) {
  EXPECT_EQ(detect(), ChatFormat::kNone);
  write("tokenizer_config.json", "{}");
  EXPECT_EQ(detect(), ChatFormat::kNone);
  write("tokenizer_config.json", Json{{"chat_template", template_of("llama3")}}.dump());
  EXPECT_EQ(detect(), ChatFormat::kLlama3);
  const Json list = Json::array(
      {{{"name", "rag"}, {"template", "x"}}, {{"name", "default"}, {"template", template_of("gemma")}}});
  write("tokenizer_config.json", Json{{"chat_template", list}}.dump());
  EXPECT_EQ(detect(), ChatFormat::kGemma);
  write("chat_template.jinja", template_of("qwen2.5"));
  EXPECT_EQ(detect(), ChatFormat::kQwen25);
}

TEST_F(FolderTest, RefusesBrokenFolders) {
  EXPECT_THROW(detect_chat_format("/no/such/folder"), Error);
  write("tokenizer_config.json", "{\"chat_template\": 3}");
  EXPECT_THROW(detect(), Error);
  write("tokenizer_config.json", "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"x\"}]}");
  EXPECT_THROW(detect(), Error);
  write("tokenizer_config.json", "{");
  EXPECT_THROW(detect(), Error);
}

TEST(ChatTest, NamesGoBothWays) {
  for (const char* name : {"none", "chatml", "llama3", "gemma", "qwen2", "qwen2.5", "llama3.1"}) {
    EXPECT_EQ(name_of(parse_chat_format(name, "x")), name);
  }
  try {
    parse_chat_format("chatlm", "sweep.yaml:3");
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), testing::AllOf(HasSubstr("sweep.yaml:3"), HasSubstr("did you mean 'chatml'")));
  }
}

TEST(ChatTest, ExactlyOneBos) {
  const Tokenizer llama = Tokenizer::parse(read_file(std::string(kGolden) + "llama3.json"), "llama3");
  const TokenId bos = llama.token_id("<|begin_of_text|>");
  for (const ChatFormat format : {ChatFormat::kNone, ChatFormat::kLlama3, ChatFormat::kLlama31}) {
    const auto ids = encode_chat(llama, format, "Hello");
    EXPECT_EQ(ids.front(), bos);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), bos), 1);
  }
  const auto spelled = encode_chat(llama, ChatFormat::kNone, "<|begin_of_text|>Hello");
  EXPECT_EQ(std::count(spelled.begin(), spelled.end(), bos), 1);
  EXPECT_EQ(encode_chat(llama, ChatFormat::kNone, "").size(), 1u);
}

TEST(ChatTest, RefusesATokenizerWithoutTheTokens) {
  const Tokenizer qwen = Tokenizer::parse(read_file(std::string(kGolden) + "qwen.json"), "qwen");
  try {
    (void)encode_chat(qwen, ChatFormat::kGemma, "x");
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("needs the token '<bos>'"));
  }
}

}  // namespace
}  // namespace lacuna::test

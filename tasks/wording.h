// The words of every generated prompt. {names} are filled in by the task. A prompt is intro, question, open,
// context, close, question, format: the question stands before and after the context.
//
// Fragments between placeholders begin with a space, punctuation or the start of a line (see Draft), and what
// fills a placeholder begins with the space, so that a key or name has the same tokens wherever it stands.
#pragma once

#include <string_view>

#include "tasks/presets.h"

namespace lacuna {

struct Wording {
  std::string_view intro, question, open, close, format;
};

inline const Wording& choose(Style style, const Wording& explain, const Wording& direct) {
  return style == Style::kDirect ? direct : explain;
}

namespace wording {

// In the direct wordings the answer's form is shown before the question's second statement, so that the
// question is the last thing a small model reads.
inline constexpr Wording kNiahExplain = {
    .intro =
        "You will read a long list of records. Each record ties one key to one value. Find the values of a "
        "few keys "
        "and copy them without any change.\n\n",
    .question = "Find the values of these keys:\n{numbered_keys}\n\n",
    .open = "Here are the records:\n",
    .close = "That was the last record.\n\n",
    .format =
        "First explain in one or two sentences where you found the values. Then give the answer between "
        "tags, one line "
        "per key in the order asked:\n<answer>\n1. key is value\n2. key is value\n</answer>"};
inline constexpr Wording kNiahDirect = {.intro = "",
                                        .question = "Find the value of{keys}.\n",
                                        .open = "",
                                        .close = "Answer as\n<answer>\n1. key is value\n</answer>\n",
                                        .format = ""};
inline constexpr std::string_view kNiahRecord = "The value of key{key} is{value}.\n";
inline constexpr std::string_view kNiahRecordDirect = "Key{key} is{value}.\n";

inline constexpr Wording kVtExplain = {
    .intro =
        "You will read a long text in which variables get values. A variable gets either a number or the "
        "value of another "
        "variable. The lines are in no particular order, and some of them are just noise.\n\n",
    .question = "Find every variable whose value is{value}, directly or through other variables.\n\n",
    .open = "Here is the text:\n",
    .close = "That was the end of the text.\n\n",
    .format =
        "First explain in one or two sentences how the variables follow from each other. Then give their "
        "names between "
        "tags, separated by commas:\n<answer> NAME, NAME, NAME </answer>"};
inline constexpr Wording kVtDirect = {.intro = "",
                                      .question = "Find every variable equal to{value}.\n",
                                      .open = "",
                                      .close = "Answer as\n<answer> NAME, NAME </answer>\n",
                                      .format = ""};
inline constexpr std::string_view kVtRoot = "VAR{name} ={value}\n";
inline constexpr std::string_view kVtHop = "VAR{name} = VAR{from}\n";
// The same assignments in reading order: a small model can follow them from left to right.
inline constexpr std::string_view kVtRootDirect = "Copy{value} to{name}.\n";
inline constexpr std::string_view kVtHopDirect = "Copy{from} to{name}.\n";

inline constexpr Wording kCweExplain = {.intro =
                                            "You will read a long list of words. Most words come up only a "
                                            "few times; a small number of words come up much more "
                                            "often than all others.\n\n",
                                        .question = "Find the{count} words that come up most often.\n\n",
                                        .open = "Here is the list:\n",
                                        .close = "That was the end of the list.\n\n",
                                        .format =
                                            "First explain in one or two sentences how you found them. Then "
                                            "give the words between tags, separated by "
                                            "commas:\n<answer> word, word, word </answer>"};
inline constexpr Wording kCweDirect = {.intro = "",
                                       .question = "Find the{count} most frequent words.\n",
                                       .open = "",
                                       .close = "Answer as\n<answer> word, word </answer>\n",
                                       .format = ""};

inline constexpr std::string_view kCweOpenPlain = "Words:";

inline constexpr std::string_view kStoryIntro =
    "You will read the travel diary of a merchant. Each chapter tells of one place, one person met there, "
    "and the things bought "
    "and sold.\n\n";

inline constexpr Wording kRetrievalExplain = {.intro = kStoryIntro,
                                              .question = "Find these things in the diary:\n{questions}\n\n",
                                              .open = "Here is the diary:\n",
                                              .close = "That was the end of the diary.\n\n",
                                              .format =
                                                  "First explain in one or two sentences how you found them. "
                                                  "Then give the answers between tags, one line per "
                                                  "question in the order asked, each just the name of the "
                                                  "place, the person or the item:\n<answer>\n1. name\n2. "
                                                  "name\n</answer>"};
inline constexpr Wording kRetrievalDirect = {.intro = "",
                                             .question = "Find:\n{questions}\n",
                                             .open = "",
                                             .close = "Answer as\n<answer>\n1. name\n</answer>\n",
                                             .format = ""};
inline constexpr std::string_view kRetrievalAsk[] = {
    " the place that chapter{chapter} tells of", " the person whom the merchant met in chapter{chapter}",
    " the item that the merchant bought in chapter{chapter}"};
inline constexpr std::string_view kRetrievalAskDirect[] = {
    " place in chapter{chapter}", " person in chapter{chapter}", " item in chapter{chapter}"};

inline constexpr Wording kFilteringExplain = {
    .intro = kStoryIntro,
    .question =
        "In exactly{count} chapters the merchant buys nothing. Find the numbers of these chapters.\n\n",
    .open = "Here is the diary:\n",
    .close = "That was the end of the diary.\n\n",
    .format =
        "First explain in one or two sentences how you found them. Then give the chapter numbers between "
        "tags, separated by "
        "commas:\n<answer> number, number, number </answer>"};
inline constexpr Wording kFilteringDirect = {.intro = "",
                                             .question = "Find the{count} chapters without a purchase.\n",
                                             .open = "",
                                             .close = "Answer as\n<answer> number, number </answer>\n",
                                             .format = ""};

inline constexpr Wording kMultihopExplain = {
    .intro = kStoryIntro,
    .question = "Which item did the merchant buy last before buying the{item}?\n\n",
    .open = "Here is the diary:\n",
    .close = "That was the end of the diary.\n\n",
    .format =
        "First explain in one or two sentences how you found it. Then give the name of the item between "
        "tags:\n<answer> item "
        "</answer>"};
inline constexpr Wording kMultihopDirect = {.intro = "",
                                            .question = "Find the item bought last before the{item}.\n",
                                            .open = "",
                                            .close = "Answer as\n<answer> item </answer>\n",
                                            .format = ""};

inline constexpr Wording kSquadExplain = {.intro =
                                              "You will read a number of documents and answer a question "
                                              "about one of them. The answer is a short phrase that stands "
                                              "in that document.\n\n",
                                          .question = "The question is about document{number}:{question}",
                                          .open = "Here are the documents:\n\n",
                                          .close = "That was the last document.\n\n",
                                          .format =
                                              "First explain in one or two sentences where the answer "
                                              "stands. Then give the answer between tags, in as few words as "
                                              "possible:\n<answer> answer </answer>"};
inline constexpr Wording kSquadDirect = {
    .intro = "",
    .question = "Question about document{number}:{question}",
    .open = "",
    .close = "",
    .format = "Answer in as few words as possible, as\n<answer> answer </answer>"};

inline constexpr Wording kChoiceExplain = {
    .intro =
        "You will read a number of documents and answer a multiple-choice question about one of them. There "
        "may be more than "
        "one right option.\n\n",
    .question = "The question is about document{number}:{question}",
    .open = "Here are the documents:\n\n",
    .close = "That was the last document.\n\n",
    .format =
        "First explain in one or two sentences what the document says about it. Then give the letter of the "
        "right option (or the "
        "letters, if several are right) between tags:\n<answer> letter </answer>"};
inline constexpr Wording kChoiceDirect = {
    .intro = "",
    .question = "Question about document{number}:{question}",
    .open = "",
    .close = "",
    .format =
        "Answer with the letter of the right option (or letters), as\n<answer> letter "
        "</answer>"};

/// Sentences that say nothing: they fill ruler_vt and top up what whole records leave open.
inline constexpr std::string_view kNoise[] = {
    "The river runs slowly past the mill.\n", "A cold wind came down from the hills.\n",
    "Somebody left the gate open again.\n",   "The bread was still warm at noon.\n",
    "Two boats lay on the sand.\n",           "It rained for most of the week.\n",
    "The clock on the wall stood still.\n",   "Children played behind the barn.\n",
    "The road bends at the old oak.\n",       "Nobody had seen the cat for days.\n"};
inline constexpr std::string_view kNoiseShort[] = {"The rain fell.\n", "Time went by.\n", "The wind blew.\n"};
inline constexpr std::string_view kNoiseInline[] = {" The rain fell.", " Time went by.", " The wind blew."};

}  // namespace wording
}  // namespace lacuna

// The prose of docs/tasks.md.
#pragma once

#include <string_view>

namespace lacuna::document_text {

inline constexpr std::string_view kIntro = R"(# Tasks

<!-- Written by `lacuna tasks --markdown --model tests/tasks/golden > docs/tasks.md`; a test compares. -->

Nine benchmark tasks, each a generator and a scorer. All wording is our own.

```
lacuna tasks                                                              # the list
lacuna tasks ruler_vt --params                                            # its parameters
lacuna tasks ruler_vt --model tests/tasks/golden --length 4K --index 3    # a sample, with its tokens per section
```

## Overview

*Scope* is how much of the context is needed for the answer, *dispersion* how hard it is to find.

)";

inline constexpr std::string_view kPrompt = R"(
## The prompt

Instruction, question, context, question again. The question stands before and after the context, so a method that looks
at the last queries of the prompt (the *approximation window*) sees it. With `style: explain` the model is asked for a short
explanation and then the answer between `<answer>` tags; with `style: direct`, meant for small models, for the answer alone.

A prompt fills 95 to 100 % of the length asked for, chat frame included, as the model's own tokenizer counts it: it is
composed of pieces that are tokenised one by one (repeated ones once), and checked by tokenising the whole once. What cannot
be filled to 90 % is refused with the reason. Sample *i* depends on the seed, *i*, the parameters and the data file alone; it is
the same on every machine, for any number of threads and whatever else is asked for. tests/tasks/golden/hashes.json holds
a hash per task, so that no change of a generator goes unnoticed.

`preset: paper` (the default) takes the paper's counts. `preset: mini` takes small ones, for small models and 256 to 8192
tokens: fewer and shorter keys, names and chapters, a short vocabulary, and counts that shrink where the context is too short
for them. A count that is set by hand goes before the preset's; in the mini preset `num_queries`, `num_chains` and
`chapters_in_question` are upper bounds.

## Tokens after the context

Tokens from the question's second statement to the end of the prompt (chat frame included), over 20 samples. The approximation
window of a method should not be smaller. For another tokenizer: `lacuna tasks --markdown --model FOLDER`. In the direct style
the form of the answer is shown between context and question and counts as context.

)";

inline constexpr std::string_view kScoring = R"(
## Scoring

**The answer** is, in this order: the text of the last `<answer>`...`</answer>` pair; the text after the last `<answer>` where
none is closed (an output cut off); the rest of the line after the last `answer:`. Otherwise there is none. A missing or empty
answer scores 0, is counted as `no_answer`, and stays in the mean. Tags are found in any case; any bytes are accepted.

- **token_f1** (qa_squad): F1 over bags of words after SQuAD's normalisation (lower case, no ASCII punctuation, no a/an/the),
  best over the references. Equal to the published evaluation's rules (tests/tasks/golden/make_squad_scores.py).
- **exact_match** (qa_quality, qa_toefl): the set of letters. `AD`, `D, A`, `A and D`, `(b)`, `Option B` and `B. because ...` are
  understood.
- **exact_match** (ruler_niah, story_retrieval): the fraction of the questions with the exact answer. ruler_niah: an entry that
  names an asked key answers for that key; where none is named, entries count in the order asked. story_retrieval: entries count
  in the order asked. Entries are lines, or separated by commas when there is one line; numbers in front are dropped.
- **exact_match** (story_multihop): the item's three words; case, markup, a leading article and a full stop do not matter.
- **iou** (ruler_vt, ruler_cwe, story_filtering): size of the intersection over size of the union of the two sets: names
  (case-sensitive, without `VAR`), words (without list numbers), chapter numbers. Order and repetition do not matter.

Predictions of any other system are scored from JSON lines that hold `task`, `gold` and `prediction` (and `index`, if you like):

```
lacuna tasks ruler_vt --model tests/tasks/golden --length 4K --count 100 --jsonl samples.jsonl
sed 's/"answer_text"/"prediction"/' samples.jsonl > predictions.jsonl  # a system that is always right
lacuna tasks --score predictions.jsonl                      # a table: task, n, mean score, standard error, no answer
lacuna tasks --score predictions.jsonl --jsonl scores.jsonl # one line per prediction
```

A line of `--jsonl` holds `task`, `params`, `seed`, `index`, `length`, `tokens`, `sections`, `prompt` (the user's message, without
chat frame), `gold`, `answer_text` (the right answer as a model should write it) and `description` (facts about the sample, for
programs).

## Data files of the QA tasks

`--data FILE` (parameter `data`).

- qa_squad: SQuAD v1.1 and v2 JSON.
- qa_quality, qa_toefl: one JSON object per line, `{"context": "...", "questions": ["Why? A. x B. y"], "answer": ["B"]}`, several
  letters where several options are right; or the QuALITY release (`article`, `questions[].{question, options, gold_label}`).

White space around documents is trimmed. Left out, and counted in `description.left_out`: unanswerable questions (`is_impossible`,
no answers, no gold label), a second (document, question) pair, empty documents, questions and answers, and questions whose own
document makes a prompt of more than `own_prompt_limit` tokens, so that all lengths share the same questions. Everything
malformed is refused with file, line (or path) and field. The questions are asked in an order drawn once per seed. The document
asked about stands among others of the file, shuffled and numbered; the last one is cut at a word to fill the prompt.

## Training records

`--export FILE` (or `-`, to a pipe) writes samples with their right answers as token ids, without end unless `--count` is given,
for one task, several (they take turns), or the jobs of a JSON file:

```
lacuna tasks ruler_niah,ruler_vt --model tests/tasks/golden --length 1024 -p preset=mini -p style=direct --count 1000 --export train.bin
```

`--spec FILE` takes `[{"task": "ruler_vt", "length": 512, "params": {"preset": "mini"}, "weight": 2}, ...]`; the record's job is drawn by
weight. Records follow each other without padding, all numbers little-endian:

| bytes | meaning |
|---|---|
| u32 | total: number of ids |
| u32 | index of the first id of the answer |
| u16 | job: position in the list of tasks, or in the specification |
| u16 | 0 |
| u16 x total | the prompt as the model gets it, the answer text, the end-of-turn token of the chat format |

The length is that of the prompt; the answer comes on top. The stream does not depend on `--threads`, and record *i* is
sample *i* (`--index` begins elsewhere).

## Where the words come from

)";

inline constexpr std::string_view kWords = R"(
Names, items, sentences and all wording of the other tasks are our own (tasks/story_words.h, tasks/wording.h).
)";

}  // namespace lacuna::document_text

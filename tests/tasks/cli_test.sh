#!/bin/bash
# `lacuna tasks` from the outside: every documented use, and errors that say what was wrong with exit code 2.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=tests/tasks/golden
failures=0

check() {  # check TEXT COMMAND...: the command succeeds and prints TEXT
  local text=$1; shift
  local output; output=$("$@" 2>&1); local code=$?
  if [ $code -ne 0 ] || ! grep -qF -- "$text" <<<"$output"; then
    echo "FAILED (exit $code): $*"; echo "  expected: $text"; head -5 <<<"$output" | cut -c1-300; failures=$((failures + 1))
  fi
}
refuse() {  # refuse TEXT COMMAND...: the command exits 2 and prints TEXT
  local text=$1; shift
  local output; output=$("$@" 2>&1 </dev/null); local code=$?
  if [ $code -ne 2 ] || ! grep -qF -- "$text" <<<"$output"; then
    echo "FAILED (exit $code, expected 2): $*"; echo "  expected: $text"; head -5 <<<"$output" | cut -c1-300; failures=$((failures + 1))
  fi
}
tasks() { "$LACUNA_BIN" tasks "$@"; }

check "ruler_niah" tasks
check "story_multihop" tasks
check "num_hops" tasks ruler_vt --params
check "question again" tasks ruler_niah --model $model --length 2K --index 3
check "right answer: <answer>" tasks story_filtering --model $model --length 1024 -p preset=mini -p style=direct
check "tokens: 2" tasks qa_squad --data tests/tasks/data/squad_v2.json --model $model --length 3000 -p repeat_documents=true
tasks --markdown --model $model | cmp - docs/tasks.md || { echo "FAILED: docs/tasks.md is out of date: lacuna tasks --markdown --model $model > docs/tasks.md"; failures=$((failures + 1)); }

# Export, answer, score: the loop that any other system can close.
tasks ruler_vt --model $model --length 2048 --count 8 --jsonl "$work/vt.jsonl" || failures=$((failures + 1))
[ "$(wc -l <"$work/vt.jsonl")" = 8 ] || { echo "FAILED: 8 lines expected"; failures=$((failures + 1)); }
sed 's/"answer_text":\("[^"]*"\)/"prediction":\1/' "$work/vt.jsonl" >"$work/right.jsonl"
check "ruler_vt               8   1.0000   0.0000          0" tasks --score "$work/right.jsonl"
sed 's/"answer_text":\("[^"]*"\)/"prediction":"none"/' "$work/vt.jsonl" >"$work/none.jsonl"
check "ruler_vt               8   0.0000   0.0000          8" tasks --score "$work/none.jsonl"
check '"no_answer":true' tasks --score "$work/none.jsonl" --jsonl -
check "ruler_vt              16   0.5000" tasks --score <(cat "$work/right.jsonl" "$work/none.jsonl")

# Training records: the stream is the same for any number of threads; a reader may leave.
tasks ruler_niah,story_retrieval --model $model --length 512 -p preset=mini -p style=direct --count 40 --threads 1 --export "$work/1.bin" &&
  tasks ruler_niah,story_retrieval --model $model --length 512 -p preset=mini -p style=direct --count 40 --threads 2 --export "$work/2.bin" &&
  cmp "$work/1.bin" "$work/2.bin" || failures=$((failures + 1))
echo '[{"task": "ruler_vt", "length": 300, "params": {"preset": "mini"}}, {"task": "ruler_cwe", "length": 600, "params": {"preset": "mini"}, "weight": 2}]' >"$work/spec.json"
tasks --spec "$work/spec.json" --model $model --threads 1 --export - | head -c 100000 | wc -c | grep -qx 100000 || { echo "FAILED: endless stream"; failures=$((failures + 1)); }

refuse "did you mean 'ruler_niah'" tasks ruler_nih --model $model
refuse "did you mean 'num_queries'" tasks ruler_niah --model $model -p num_querys=3
refuse "expected name=value" tasks ruler_niah --model $model -p num_queries
refuse "--model FOLDER is needed" tasks ruler_niah
refuse "/nowhere" tasks ruler_niah --model /nowhere
refuse "'data' is required" tasks qa_squad --model $model
refuse "--length" tasks ruler_niah --model $model --length many
refuse "too few for 4 keys" tasks ruler_niah --model $model --length 500
refuse "squad_v2.json" tasks qa_toefl --data tests/tasks/data/squad_v2.json --model $model
refuse "gives 16 samples; 20 from index 0 on were asked for" tasks qa_squad --data tests/tasks/data/squad_v2.json --model $model --count 20
refuse "'none'" tasks ruler_vt --model $model --chat non
refuse "NAME is missing" tasks --model $model
refuse "needs --count" tasks ruler_vt --model $model --export "$work/x.bin"
refuse "leave out NAME" tasks ruler_vt --spec "$work/spec.json" --model $model --export -
refuse "cannot be written" tasks ruler_vt --model $model --jsonl /nowhere/x.jsonl
refuse ":1: field 'gold' is missing" tasks ruler_vt --score <(echo '{"prediction": "x"}')
refuse ":2: not valid JSON" tasks ruler_vt --score <(echo '{"prediction": "x", "gold": ["A"]}'; echo '{')
refuse "field 'gold' is not of the form that ruler_vt writes" tasks ruler_vt --score <(echo '{"prediction": "<answer>x</answer>", "gold": 3}')
refuse "no predictions" tasks --score /dev/null
refuse "not expected" tasks ruler_vt --modle x

[ $failures -eq 0 ] && echo "all passed"
exit $((failures > 0))

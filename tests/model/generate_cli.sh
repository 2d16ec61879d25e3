#!/usr/bin/env bash
# lacuna generate from outside: tokens equal the golden ones alone and under mpirun, logits files, and every refusal.
# usage: generate_cli.sh TINY_MODEL_PROGRAM   (writes a golden case's model folder)
set -uo pipefail
make_model=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
check() {  # check WHAT EXPECTED ACTUAL
  if [[ "$2" != "$3" ]]; then
    echo "FAILED: $1: expected '$2', got '$3'"
    failures=$((failures + 1))
  fi
}
refused() {  # refused WHAT PATTERN COMMAND...: exit code 2 and one line of ours that matches
  local what=$1 pattern=$2
  shift 2
  local text code
  text=$("$@" 2>&1 >/dev/null)
  code=$?
  check "$what: exit code" 2 "$code"
  check "$what: lines of ours" 1 "$(grep -c 'error: ' <<<"$text")"
  grep -q -- "$pattern" <<<"$text" || check "$what" "$pattern" "$text"
}

"$make_model" qwen2 "$work/qwen2" "$work/prompt.txt" "$work/expected.txt" || exit 1
generate=("$LACUNA_BIN" generate --model "$work/qwen2" --ids "@$work/prompt.txt" --max-tokens 64)
expected=$(cat "$work/expected.txt")
check "one rank" "$expected" "$("${generate[@]}")"
for ranks in 2 4; do
  check "$ranks ranks" "$expected" "$(scripts/mpirun "$ranks" "${generate[@]}" --dump-logits "$work/logits$ranks.npy")"
done
"${generate[@]}" --dump-logits "$work/logits1.npy" >/dev/null
check "logits file size" "$(stat -c %s "$work/logits1.npy")" "$(stat -c %s "$work/logits4.npy")"
check "same seed, same text" "$("${generate[@]}" --temperature 0.8 --seed 3)" "$("${generate[@]}" --temperature 0.8 --seed 3 --threads 1)"
check "one token" "${expected%%,*}" "$("$LACUNA_BIN" generate --model "$work/qwen2" --ids "@$work/prompt.txt" --max-tokens 1 --strategy '{decode: quest}')"

refused "rank count" "3 ranks cannot share 4 query heads.*: 1, 2, 4" scripts/mpirun 3 "${generate[@]}"
refused "no such folder" "no such model folder" "$LACUNA_BIN" generate --model "$work/none" --ids 1
refused "no tokenizer" "no tokenizer.json" "$LACUNA_BIN" generate --model "$work/qwen2" --prompt hello
refused "bad id" "'x' is not a token id" "$LACUNA_BIN" generate --model "$work/qwen2" --ids 1,x
refused "id out of range" "outside the vocabulary" "$LACUNA_BIN" generate --model "$work/qwen2" --ids 1,300
refused "unknown method" "qest" "$LACUNA_BIN" generate --model "$work/qwen2" --ids 1 --strategy '{decode: qest}'
refused "rope type" "rope_type 'magic'" "$LACUNA_BIN" generate --model "$work/qwen2" --ids 1 --rope '{"rope_type": "magic"}'
refused "neither prompt nor ids" "either --prompt or --ids" "$LACUNA_BIN" generate --model "$work/qwen2"
head -c 20000 "$work/qwen2/model.safetensors" >"$work/cut" && mv "$work/cut" "$work/qwen2/model.safetensors"
refused "truncated weights" "model.safetensors: tensor '.*outside the file" "$LACUNA_BIN" generate --model "$work/qwen2" --ids 1

"$LACUNA_BIN" doctor >"$work/doctor.txt" || check "doctor" 0 $?
for word in cores memory mpi hdf5 gpus nccl allows; do grep -q "^$word" "$work/doctor.txt" || check "doctor" "$word" missing; done
exit $((failures > 0))

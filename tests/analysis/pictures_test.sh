#!/bin/bash
# Pictures from a real model: generate --picture, and the report's gallery from a sweep of its own.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }

draw() { # NAME STRATEGY EXPECTED-TEXT
  "$LACUNA_BIN" generate --model assets/mini/nano --prompt "$prompt" --max-tokens 1 --strategy "$2" --picture "$work/$1.svg" \
    --picture-layer 2 --picture-head 1 >/dev/null 2>"$work/error" || fail "$1: $(cat "$work/error")"
  grep -qF "$3" "$work/$1.svg" || fail "$1: no '$3' in the picture"
}
prompt=$(printf 'The fox and the owl counted to %d. ' $(seq 1 40))
draw dense '{}' '100.0 % of the visible cells kept (sparsity 0.000)'
draw streaming '{prefill: {streaming: {sinks: 4, window: 64}}}' 'streaming, layer 2, query head 1'
draw snapkv '{evict: {snapkv: {capacity: 200, window: 32}}}' 'snapkv, layer 2'
draw quest '{decode: {quest: {budget: 64}}}' 'quest, layer 2'
"$LACUNA_BIN" generate --model assets/mini/nano --prompt hi --max-tokens 1 --picture "$work/x.svg" --picture-layer 99 >"$work/out" 2>&1
[ $? = 2 ] && grep -q "picture-layer 99" "$work/out" || fail "a layer that is not there: $(cat "$work/out")"

if command -v gnuplot >/dev/null; then
  "$LACUNA_BIN" run sweeps/smoke.yaml --out "$work/smoke" >"$work/log" 2>&1 || fail "run: $(tail -3 "$work/log")"
  "$LACUNA_BIN" report "$work/smoke" --gallery >"$work/log" 2>&1 || fail "report: $(tail -3 "$work/log")"
  [ "$(ls "$work"/smoke/patterns/*.svg | wc -l)" = 4 ] || fail "the gallery has not 4 pictures"
  grep -q 'id="patterns"' "$work/smoke/report.html" || fail "the report has no gallery"
fi
[ "$failures" = 0 ] && echo "all pictures are right"
exit $((failures > 0))

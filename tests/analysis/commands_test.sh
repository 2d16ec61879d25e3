#!/bin/bash
# lacuna analyze and lacuna report as a user calls them: exit codes, files, messages. $1: make_synthetic_results.
set -u
make_results=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }
# expect CODE TEXT COMMAND...: the exit code and a part of the output
expect() {
  local code=$1 text=$2 output got
  shift 2
  output=$("$@" 2>&1)
  got=$?
  [ "$got" = "$code" ] || fail "exit $got, expected $code: $*: $output"
  grep -qF -- "$text" <<<"$output" || fail "no '$text' in the output of $*: $output"
}

"$make_results" "$work/sweep" tiny >/dev/null || { echo "cannot make results"; exit 1; }
expect 0 "Largest sparsity without a significant loss" "$LACUNA_BIN" analyze "$work/sweep"
expect 0 "Careful, it extrapolates" "$LACUNA_BIN" analyze "$work/sweep" --predict model=72B,length=256K,compression=20
expect 0 "sign-flip permutation test, one-sided, alpha 0.01" "$LACUNA_BIN" analyze "$work/sweep" --test permutation --alpha 0.01 --resamples 200
expect 0 "s per token" "$LACUNA_BIN" analyze "$work/sweep" --cost seconds --no-write
for table in largest_sparsity best_for_budget scaling_fit counts; do
  [ -s "$work/sweep/analysis/$table.csv" ] || fail "no analysis/$table.csv"
done
expect 2 "no such folder" "$LACUNA_BIN" analyze "$work/nowhere"
expect 2 "did you mean 'permutation'" "$LACUNA_BIN" analyze "$work/sweep" --test permutaton
expect 2 "did you mean 'quest'" "$LACUNA_BIN" analyze "$work/sweep" --method qest
expect 2 "length=... is missing" "$LACUNA_BIN" analyze "$work/sweep" --predict model=72B
expect 2 "--alpha" "$LACUNA_BIN" analyze "$work/sweep" --alpha 2
head -c 5000 "$work/sweep/results.h5" >"$work/torn.h5"
expect 2 "torn.h5" "$LACUNA_BIN" analyze "$work/torn.h5"
mkdir "$work/empty"
expect 2 "lacuna merge" "$LACUNA_BIN" analyze "$work/empty"
if command -v gnuplot >/dev/null; then
  expect 0 "report.html" "$LACUNA_BIN" report "$work/sweep"
  [ -s "$work/sweep/report.html" ] || fail "no report.html"
fi
# The size of the published study (7065 configurations) and more: 7920 cells of 100 samples, in less than 30 s.
"$make_results" "$work/paper" paper >/dev/null || fail "cannot make the large results"
SECONDS=0
expect 0 "7920 of 7920 cells" "$LACUNA_BIN" analyze "$work/paper"
[ "$SECONDS" -lt 30 ] || fail "7920 cells took $SECONDS s"
ls "$work"/sweep/*.tmp* >/dev/null 2>&1 && fail "temporary files stay behind"
[ "$failures" = 0 ] && echo "all commands behave"
exit $((failures > 0))

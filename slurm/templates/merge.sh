# --- How it runs ---------------------------------------------------------------------------------------------------
# Starts when the last of the $shards jobs has ended, in whatever way. What is there is merged in any case; the
# analysis needs all of it.

say() { printf '%(%F %T)T lacuna: %s\n' -1 "$*"; }
note() {
  say "$*"
  printf '%(%F %T)T %s\n' -1 "$*" >"$state_folder/$job.note" || true
}

mkdir -p "$state_folder" || { say "cannot write below $out"; exit 1; }
missing=()
for ((shard = 0; shard < shards; shard++)); do
  if [ ! -e "$out/COMPLETE" ] && [ ! -e "$out/COMPLETE.$shard-of-$shards" ]; then missing+=("$shard"); fi
done
code=0
"${merge[@]}" || code=$?
if [ "$code" -ne 0 ] && [ "$code" -ne 3 ]; then
  note "merging failed (exit code $code); see the log of this job"
  exit 1
fi
if [ ${#missing[@]} -gt 0 ]; then
  note "merged, but shards ${missing[*]} of $shards are not finished: submit again to continue"
  exit 1
fi
if ! "${analyze[@]}"; then
  note "merged; the analysis failed: see the log of this job"
  exit 1
fi
if [ "$code" -eq 3 ]; then
  note "merged and analysed; some samples failed: see lacuna status"
  exit 3
fi
note "merged and analysed"

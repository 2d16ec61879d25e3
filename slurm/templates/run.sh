# --- How it runs ---------------------------------------------------------------------------------------------------
# The journal in $out holds every finished sample, so a start always continues where the last one ended. Whether the
# study is finished is told by Lacuna's own marker ($marker), never by the exit code of $launcher: it can be 0
# after a node died. Work left over puts the job back into the queue, under the same job id.

say() { printf '%(%F %T)T lacuna: %s\n' -1 "$*"; }

# Also the last line for `lacuna status`.
note() {
  say "$*"
  printf '%(%F %T)T %s\n' -1 "$*" >"$state_folder/$job.note" || true
}

# A field of the job as Slurm sees it now: job_field JobState, job_field Reason.
job_field() {
  local try value
  for try in 1 2 3 4 5; do
    value=$(scontrol -o show job "$job" 2>/dev/null | grep -oE -m 1 " $1=[^ ]*")
    value=${value%%$'\n'*}
    if [ -n "$value" ]; then
      echo "${value#*=}"
      return
    fi
    sleep "$try"
  done
  echo unknown
}

# Samples that the journals of this job have acknowledged: the measure of progress.
journal_lines() { find "$out/journal" -name "$journals" -exec cat {} + 2>/dev/null | wc -l; }

# Slurm warns before the time limit (see --signal); on preemption, cancellation and at the limit itself it sends TERM.
# Both reach the ranks as USR2: they finish the sample in hand and leave. (mpirun would answer TERM by killing them.)
launched=
warned=
# shellcheck disable=SC2317  # called by the traps below
forward() {
  warned=$1
  say "got SIG$1: asking the ranks to finish their samples and stop"
  if [ -n "$launched" ]; then kill -USR2 "$launched" 2>/dev/null || true; fi
}

mkdir -p "$out" "$log_folder" "$state_folder" || { say "cannot write below $out"; exit 1; }
say "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $((SLURM_JOB_NUM_NODES * ranks_per_node)) ranks"
if [ -e "$marker" ]; then
  note "nothing left to do: $marker exists"
  exit 0
fi
# A full disk is told now, not after hours. (The space is given back at once.)
if ! head -c 1048576 /dev/zero >"$state_folder/$job.space" 2>/dev/null; then
  rm -f "$state_folder/$job.space"
  note "cannot write to $out: no space left, or over quota"
  exit 1
fi
rm -f "$state_folder/$job.space"

before=$(journal_lines)
export LACUNA_RANK_LOGS=$log_folder LACUNA_RANKS_PER_NODE=$ranks_per_node
trap 'forward USR2' USR2
trap 'forward TERM' TERM
"${launch[@]}" bash "$rank_script" "${run[@]}" &
launched=$!
# A trapped signal ends `wait` early: wait again until the launcher is really gone. Only a few seconds are left once the
# limit has struck: a sample that takes longer than the warning is given up then, and runs again in the next start.
code=0
while :; do
  code=0
  wait "$launched" || code=$?
  kill -0 "$launched" 2>/dev/null || break
  if [ "$warned" = TERM ] && [ "$(job_field Reason)" = TimeLimit ]; then break; fi
done
launched=
after=$(journal_lines)
say "$launcher ended with exit code $code; $((after - before)) samples in this start, $after in all"

if [ -e "$marker" ]; then
  note "finished"
  if [ "$code" -eq 3 ]; then
    note "finished; some samples failed: see lacuna status"
    exit 3
  fi
  exit 0
fi
# Wrong input does not mend itself. (Later starts can also meet the lock of an old rank that is still on its way out.)
if [ "$code" -eq 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ]; then
  note "stopped: wrong input (exit code 2), starting again would not help; see $log_folder"
  tail -n 3 "$log_folder"/rank-*.log 2>/dev/null
  exit 2
fi
if [ "$code" -ne 0 ] && [ "$code" -ne 75 ]; then
  say "the last lines of the ranks:"
  tail -qn 2 "$log_folder"/rank-*.log 2>/dev/null | tail -n 20
fi

# --- Work is left: back into the queue, unless somebody cancelled the job or nothing moves -----------------------------
job_state=$(job_field JobState)
reason=$(job_field Reason)
if [ "$warned" = TERM ] && [ "$job_state" != RUNNING ] && [ "$reason" != TimeLimit ]; then
  # Cancelled by somebody (stays down), or preempted (Slurm starts it again by itself).
  note "ended by Slurm (state $job_state, reason $reason)"
  exit 75
fi
stalls=0
if [ -e "$state_folder/$job.stalls" ]; then stalls=$(cat "$state_folder/$job.stalls"); fi
if [ "$after" -gt "$before" ]; then stalls=0; else stalls=$((stalls + 1)); fi
echo "$stalls" >"$state_folder/$job.stalls"
if [ "$stalls" -ge "$max_stalls" ]; then
  note "gave up: $stalls starts in a row finished no sample (exit code $code); see $log_folder"
  exit 1
fi
why="exit code $code"
if [ -n "$warned" ]; then why="SIG$warned"; fi
note "work is left (after $why, $after samples): back in the queue"
if ! scontrol requeue "$job"; then
  note "work is left, but Slurm does not allow a requeue; continue with: sbatch $script"
  exit 75
fi
# Slurm ends this script now; should it take its time, do not report an end of our own.
sleep 120 &
wait $!
exit 75

#!/usr/bin/env bash
# The batch script on a real Slurm: a test cluster is started, scenarios run side by side on it, and it is stopped again.
#
#   tests/slurm/cluster_test.sh [--lacuna FILE] [--keep] [SCENARIO ...]
#
# Without names, those of the quick set run; "slow" adds the long ones. What runs inside the jobs is stand_in.sh; in the
# scenarios called real_* it is lacuna itself over the fake engine of tests/runner (FAKE_LACUNA).
# Exit code 77: no cluster can be started here.
# shellcheck disable=SC2317,SC2016  # scenarios are called by name, the rest from a trap; text for other shells stays as it is
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
lacuna=${LACUNA_BIN:-}
keep=no
quick=(mpirun srun odd_path container limit term_limit preempted_and_node_down rank_killed some_failed wrong_input stuck stuck_shard
  cancel_and_resume array refusals real_study real_array real_cancel docs)
slow=(hard_limit real_survives)
chosen=()
while [ $# -gt 0 ]; do
  case $1 in
    --lacuna) lacuna=$2; shift ;;
    --keep) keep=yes ;;
    slow) chosen+=("${slow[@]}") ;;
    quick) chosen+=("${quick[@]}") ;;
    *) chosen+=("$1") ;;
  esac
  shift
done
if [ ${#chosen[@]} -eq 0 ]; then chosen=("${quick[@]}"); fi
if [ ! -x "$lacuna" ]; then echo "cluster_test.sh: no program: set LACUNA_BIN or give --lacuna FILE" >&2; exit 2; fi
lacuna=$(realpath "$lacuna")
export LACUNA_BIN=$lacuna FAKE_LACUNA=${FAKE_LACUNA:-$(dirname "$lacuna")/tests/runner/fake_lacuna}

work=$(mktemp -d /tmp/lacuna-slurm-test.XXXXXX)
cluster=$work/cluster
stop_cluster() {
  if [ -e "$cluster/slurm.conf" ]; then "$root/slurm/testbed/stop.sh" "$cluster"; fi
  mountpoint -q "$work/small" && umount "$work/small"
  if [ "$keep" = no ]; then rm -rf "$work"; fi
}
"$root/slurm/testbed/start.sh" --nodes 6 --cpus 32 --gpus 16 --memory 16384 "$cluster"
code=$?
if [ $code -ne 0 ]; then
  rm -rf "$work"
  exit $code
fi
trap stop_cluster EXIT
# shellcheck source=/dev/null
source "$cluster/env.sh"
export LACUNA_SLURM_SITE=$work/no-site-file
cd "$work" || exit 1

# --- a sweep that `lacuna sbatch` can read; the stand-in does not look into it ----------------------------------------
mkdir model
cat >model/config.json <<'EOF'
{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
 "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
 "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu"}
EOF
cat >sweep.yaml <<'EOF'
name: stand-in
models: [{name: tiny, path: model, tp: 1}]
tasks: [ruler_niah]
lengths: [1024]
strategies: [dense]
samples: 40
EOF
# For lacuna over the fake engine: two models of different tensor-parallel degree, 480 samples in 160 jobs.
mkdir slow ok
cp model/config.json slow
cp model/config.json ok
cat >real.yaml <<EOF
name: real
models: [{name: one, path: $work/slow, tp: 1}, {name: two, path: $work/ok, tp: 2}]
tasks: [ruler_niah, ruler_vt]
lengths: [1024, 2048]
strategies: [dense, {decode: {quest: {}}, sparsity: [0.5, 0.9]}]
samples: 20
max_new_tokens: 8
EOF

# --- tools ------------------------------------------------------------------------------------------------------------
# check WHAT GOT WANTED
check() {
  if [ "$2" = "$3" ]; then
    echo "ok   $name: $1"
  else
    echo "FAIL $name: $1: '$2' instead of '$3'"
    touch "$work/failed.$name"
  fi
}
field() { scontrol -o show job "$1" 2>/dev/null | head -n 1 | grep -oE "(^| )$2=[^ ]*" | head -n 1 | cut -d= -f2; }
# await SECONDS COMMAND...: until it succeeds
await() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    if [ "$SECONDS" -ge "$end" ]; then
      echo "     $name: gave up waiting for: $*"
      return 1
    fi
    sleep 0.3
  done
}
has_ended() { case $(field "$1" JobState) in COMPLETED | FAILED | CANCELLED | TIMEOUT | NODE_FAIL) return 0 ;; *) return 1 ;; esac; }
lines() { cat "$1"/journal/*.jsonl 2>/dev/null | wc -l; }
has_lines() { [ "$(lines "$1")" -ge "$2" ]; }
is_running() { [ "$(field "$1" JobState)" = RUNNING ]; }
# Every sample once: "40 samples, 0 twice"
samples_of() {
  cat "$1"/journal/*.jsonl | grep -oE '"sample":[0-9]+' | sort | uniq -c | awk '{ n++; if ($1 > 1) twice++ } END { printf "%d samples, %d twice", n, twice }'
}
# submit OUT [ARG ...]: the stand-in on 2 nodes of pair 1 with 2 ranks each, unless told otherwise
submit() {
  local out=$1
  shift
  "$lacuna" sbatch sweep.yaml --out "$out" --program "$here/stand_in.sh" --nodes 2 --gpus-per-node 2 --cpus-per-gpu 1 \
    --constraint pair1 --time 5 --env STAND_IN_SAMPLES=40 --submit "$@" 2>>"$work/$name.err"
}
# The same with lacuna over the fake engine, whose tokenizer wants the source root as working folder.
submit_real() {
  local out=$work/$1
  shift
  (cd "$root" && "$lacuna" sbatch "$work/real.yaml" --out "$out" --program "$here/fake_program.sh" --nodes 2 --gpus-per-node 2 \
    --cpus-per-gpu 1 --constraint pair1 --time 5 --submit "$@" 2>>"$work/$name.err")
}
# Every (cell, sample) once: "480 samples, 0 twice"
real_samples_of() {
  cat "$1"/journal/*.jsonl | grep -oE '^."cell":"[^"]*","sample":[0-9-]+' | sort | uniq -c | awk '{ n++; if ($1 > 1) twice++ } END { printf "%d samples, %d twice", n, twice }'
}
# /samples of a results file: everything that must not depend on who computed it
table_of() {
  "$lacuna" export "$1" --csv "$1.csv" --table samples 2>/dev/null >&2
  cut -d, -f1-15 "$1.csv" | sort
}
# One run outside Slurm, to compare with
reference() {
  if mkdir reference.lock 2>/dev/null; then
    (cd "$root" && LACUNA_FAKE_MS=0 scripts/mpirun 2 "$FAKE_LACUNA" run "$work/real.yaml" --out "$work/reference" >"$work/reference.log" 2>&1)
    table_of reference >reference.table.tmp && mv reference.table.tmp reference.table
  fi
  await 60 test -e reference.table
  cat reference.table
}
check_real() {
  check "samples" "$(real_samples_of "$name.out")" "480 samples, 0 twice"
  check "/samples as one run alone gives" "$(diff <(table_of "$name.out") <(reference) | head -n 4)" ""
  check "rows" "$(table_of "$name.out" | wc -l)" 481
}
starts() { cat "$1"/slurm/*.log | grep -c ', start '; }

# --- scenarios --------------------------------------------------------------------------------------------------------
scenario_mpirun() {
  local job
  job=$(submit "$name.out")
  await 60 has_ended "$job"
  check "state" "$(field "$job" JobState)" COMPLETED
  check "samples" "$(samples_of "$name.out")" "40 samples, 0 twice"
  check "one log per rank" "$(find "$name.out/slurm/logs/$job" -name 'rank-*.log' | wc -l)" 4
  check "each rank its own GPU of its node" "$(cat "$name.out/slurm/logs/$job"/rank-*.log | grep -oE 'on node. gpu [0-9]+' | sort | uniq -c | awk '$1 == 1' | wc -l)" 4
  check "status" "$("$lacuna" status "$name.out" 2>/dev/null | grep -c "Slurm job $job: completed; last: .*finished")" 1
}
scenario_srun() {
  local job
  job=$(submit "$name.out" --launcher srun)
  await 60 has_ended "$job"
  check "state" "$(field "$job" JobState)" COMPLETED
  check "samples" "$(samples_of "$name.out")" "40 samples, 0 twice"
  check "each rank its own GPU of its node" "$(cat "$name.out/slurm/logs/$job"/rank-*.log | grep -oE 'on node. gpu [0-9]+' | sort | uniq -c | awk '$1 == 1' | wc -l)" 4
}
scenario_odd_path() {
  local job out="$work/it's a \"name\" with \$HOME, 100% odd"
  job=$(submit "$out" --env 'ODD=a "b" $c '"'d'" --nodes 1 --sbatch-arg "--mail-user=a b")
  await 60 has_ended "$job"
  check "state" "$(field "$job" JobState)" COMPLETED
  check "samples" "$(samples_of "$out")" "40 samples, 0 twice"
  check "log folder" "$(find "$out/slurm" -maxdepth 1 -name "$job.log" | wc -l)" 1
}
# --module, --setup and --container, with stand-ins for `module` and `apptainer`
scenario_container() {
  local job
  mkdir -p "$name.bin"
  printf '#!/bin/bash\n[ "$1 $2 ${3##*/} $4" = "exec --nv my image.sif lacuna" ] || exit 2\nexec "%s" "${@:5}"\n' "$here/stand_in.sh" >"$name.bin/apptainer"
  chmod +x "$name.bin/apptainer"
  printf 'export PATH=%q:$PATH\n' "$work/$name.bin" >"$name.bin/my setup.sh"
  touch "$name.bin/my image.sif"
  module() { [ "$1 $2" = "load one/1.2" ]; }
  export -f module
  job=$(submit "$name.out" --container "$name.bin/my image.sif" --setup "$name.bin/my setup.sh" --module one/1.2)
  await 60 has_ended "$job"
  check "state" "$(field "$job" JobState)" COMPLETED
  check "samples" "$(samples_of "$name.out")" "40 samples, 0 twice"
  job=$(submit "$name.no_module" --module no_such_module)
  await 60 has_ended "$job"
  check "a missing module ends the job" "$(field "$job" JobState) $(grep -c 'cannot load the module no_such_module' "$name.no_module/slurm/$job.log")" "FAILED 1"
}
# The limit strikes twice: --time 1 with a warning 60 s before means a warning at the first check (within 30 s).
scenario_limit() {
  local job
  job=$(submit "$name.out" --time 1 --signal USR2@60 --env STAND_IN_SECONDS=5.5)
  await 170 has_ended "$job"
  check "state" "$(field "$job" JobState)" COMPLETED
  check "samples" "$(samples_of "$name.out")" "40 samples, 0 twice"
  check "struck at least twice" "$(grep -c 'got SIGUSR2' "$name.out/slurm/$job.log" | sed 's/[2-9]/>1/')" ">1"
  check "the same job id throughout" "$(find "$name.out/slurm" -maxdepth 1 -name '*.log' | wc -l)" 1
}
scenario_term_limit() {
  local job
  job=$(submit "$name.out" --time 1 --signal TERM@60 --env STAND_IN_SECONDS=3.5 --launcher srun)
  await 120 has_ended "$job"
  check "state" "$(field "$job" JobState)" COMPLETED
  check "samples" "$(samples_of "$name.out")" "40 samples, 0 twice"
  check "struck" "$(grep -c 'got SIGTERM' "$name.out/slurm/$job.log" | sed 's/[1-9]/>0/')" ">0"
}
scenario_preempted_and_node_down() {
  local job urgent
  job=$(submit "$name.out" --constraint pair2 --env STAND_IN_SECONDS=0.8)
  await 30 has_lines "$name.out" 4
  urgent=$(sbatch --parsable -p urgent -C pair2 -N 2 --exclusive --mem=1 --output=/dev/null --wrap 'sleep 1')
  await 30 has_ended "$urgent"
  check "preempted" "$(field "$job" Restarts)" 1
  await 30 has_lines "$name.out" 20
  scontrol update nodename=node4 state=down reason=test
  sleep 1
  scontrol update nodename=node4 state=resume 2>/dev/null  # an error when it came back by itself
  await 60 has_ended "$job"
  check "state" "$(field "$job" JobState)" COMPLETED
  check "starts" "$(starts "$name.out")" 3
  check "samples" "$(samples_of "$name.out")" "40 samples, 0 twice"
  check "status" "$("$lacuna" status "$name.out" 2>/dev/null | grep -c 'requeued 2 times')" 1
}
scenario_rank_killed() {
  local job
  job=$(submit "$name.out" --env STAND_IN_KILL_AT=10)
  await 60 has_ended "$job"
  check "state" "$(field "$job" JobState)" COMPLETED
  check "killed" "$(test -d "$name.out/killed" && echo yes)" yes
  check "starts" "$(starts "$name.out")" 2
  check "samples" "$(samples_of "$name.out")" "40 samples, 0 twice"
}
scenario_some_failed() {
  local job
  job=$(submit "$name.out" --env STAND_IN_EXIT=3 --launcher srun)
  await 60 has_ended "$job"
  check "state and exit code" "$(field "$job" JobState) $(field "$job" ExitCode)" "FAILED 3:0"
  check "starts" "$(starts "$name.out")" 1
}
scenario_wrong_input() {
  local job
  job=$(submit "$name.out" --env STAND_IN_EXIT=2)
  await 60 has_ended "$job"
  check "state and exit code" "$(field "$job" JobState) $(field "$job" ExitCode)" "FAILED 2:0"
  check "starts" "$(starts "$name.out")" 1
  check "why" "$("$lacuna" status "$name.out" 2>/dev/null | grep -c 'wrong input')" 1
}
scenario_stuck() {
  local job
  job=$(submit "$name.out" --env STAND_IN_STUCK=yes --env STAND_IN_SECONDS=0.2 --max-stalls 2)
  for start in 1 2; do
    await 30 has_lines_in_log "$name.out" "$start"
    scancel --batch --signal=USR2 "$job"
  done
  await 60 has_ended "$job"
  check "state and exit code" "$(field "$job" JobState) $(field "$job" ExitCode)" "FAILED 1:0"
  check "why" "$("$lacuna" status "$name.out" 2>/dev/null | grep -c 'gave up: 2 starts in a row finished no sample')" 1
}
# One part of an array is stuck while the other goes on: it gives up by its own journals, long before the other has ended.
scenario_stuck_shard() {
  local jobs stuck
  mapfile -t jobs < <(submit "$name.out" --nodes 1 --array 2 --max-stalls 2 --env STAND_IN_STUCK=1 --env STAND_IN_SECONDS=2)
  stuck=${jobs[0]}_1
  for start in 1 2; do
    await 30 has_started "$name.out/slurm/logs/$stuck" "$start"
    await 30 has_lines "$name.out" $(($(lines "$name.out") + 2))  # the other part moves
    scancel --batch --signal=USR2 "$stuck"
  done
  await 30 grep -qs 'gave up' "$name.out/slurm/state/$stuck.note"
  check "gives up by its own journal" "$(grep -c 'gave up: 2 starts in a row finished no sample' "$name.out/slurm/state/$stuck.note")" 1
  check "the other part still runs" "$(field "${jobs[0]}_0" JobState)" RUNNING
  await 90 has_ended "${jobs[1]}"
  check "the other part ends well" "$(field "${jobs[0]}_0" JobState)" COMPLETED
  check "the merge job says what is missing" "$(grep -c 'shards 1 of 2 are not finished' "$name.out/slurm/state/${jobs[1]}.note")" 1
}
has_started() {
  local starts
  starts=$(grep -cs 'rank 0 of' "$1/rank-0000.log")
  [ "${starts:-0}" -ge "$2" ]
}
# The ranks of start N are up (their trap is set once they have said who they are).
has_lines_in_log() { [ "$(cat "$1"/slurm/logs/*/rank-0000.log 2>/dev/null | grep -c 'rank 0 of')" -ge "$2" ]; }
scenario_cancel_and_resume() {
  local job other cancelled again
  # Somebody else's job with the same name must survive.
  other=$(sbatch --parsable --job-name="lacuna-$name.out" --comment=lacuna:other --output=/dev/null -n1 --mem=1 -C pair1 --wrap 'sleep 60')
  job=$(submit "$name.out" --env STAND_IN_SECONDS=1)
  await 30 has_lines "$name.out" 4
  check "a second submission is refused" "$(submit "$name.out" --env STAND_IN_SECONDS=1 || echo refused)" refused
  cancelled=$("$lacuna" sbatch --cancel "$name.out" 2>/dev/null)
  check "cancelled" "$cancelled" "$job"
  await 30 has_ended "$job"
  sleep 4
  check "stays cancelled" "$(field "$job" JobState)" CANCELLED
  check "the other job runs on" "$(field "$other" JobState)" RUNNING
  check "nothing more to cancel" "$("$lacuna" sbatch --cancel "$name.out" 2>/dev/null)" ""
  scancel "$other"
  again=$(submit "$name.out" --nodes 1)
  await 60 has_ended "$again"
  check "resumed" "$(field "$again" JobState)" COMPLETED
  check "samples" "$(samples_of "$name.out")" "40 samples, 0 twice"
}
scenario_array() {
  local jobs run merge
  mapfile -t jobs < <(submit "$name.out" --nodes 1 --array 4 --env STAND_IN_KILL_AT=25)
  run=${jobs[0]:-} merge=${jobs[1]:-}
  await 90 has_ended "$merge"
  check "array" "$(scontrol -o show job "$run" | grep -c JobState=COMPLETED)" 4
  check "merge job after it" "$(field "$merge" JobState) $(cat "$name.out/verbs")" "COMPLETED merge analyze "
  check "samples" "$(samples_of "$name.out")" "40 samples, 0 twice"
  check "each part has its marker" "$(find "$name.out" -name 'COMPLETE.*-of-4' | wc -l)" 4
}
# refused WHAT PATTERN ARG...: exits non-zero, says PATTERN, submits nothing
refused() {
  local what=$1 pattern=$2 code=0
  shift 2
  "$lacuna" sbatch "$@" --program "$here/stand_in.sh" --submit >refused.out 2>refused.err || code=$?
  check "$what: exit code" "$((code > 0))" 1
  check "$what: no job" "$(cat refused.out)" ""
  grep -qE "$pattern" refused.err || check "$what: message" "$(cat refused.err)" "$pattern"
}
scenario_refusals() {
  refused "wrong partition" "unknown partition 'debgu'; did you mean 'debug'" sweep.yaml --out r1 --partition debgu
  refused "impossible GPU count" "gpus-per-node 17.* has 16 GPUs; use --nodes 2 --gpus-per-node 16" sweep.yaml --out r1 --gpus-per-node 17
  refused "too many nodes" "use --nodes 6" sweep.yaml --out r1 --nodes 7 --gpus-per-node 1
  refused "idle GPUs" "busy only .* use --nodes" sweep.yaml --out r1 --nodes 4 --gpus-per-node 16 samples=5
  refused "missing model" "model 'tiny': nowhere has no config.json" sweep.yaml --out r1 models.0.path=nowhere
  refused "tp too large" "needs tp 4, but .* use --nodes [0-9]+ --gpus-per-node 1" sweep.yaml --out r1 models.0.tp=4
  refused "time beyond the partition" "allows at most 7-00:00:00" sweep.yaml --out r1 --time 8-0
  refused "what only Slurm knows" "account|Account|qos|QOS|feature" sweep.yaml --out r1 --constraint no_such_feature
  refused "SIGUSR1" "NCCL" sweep.yaml --out r1 --signal USR1@60
  refused "misspelt key" "sweep.yaml|did you mean" sweep.yaml --out r1 smaples=3
  # A full disk: 64 KiB are gone with the first file.
  mkdir -p small
  if mount -t tmpfs -o size=96k lacuna-small small 2>/dev/null; then
    refused "full disk" "only .* free" sweep.yaml --out small/out
    umount small
  else
    echo "     $name: no tmpfs here, full disk not tried"
  fi
  check "nothing was submitted" "$(squeue -h -t all -n lacuna-r1 -o %i)" ""
}
scenario_real_study() {
  local job
  job=$(submit_real "$name.out" --env LACUNA_FAKE_MS=20)
  check "status before or after the start" "$("$lacuna" status "$name.out" | grep -c "Slurm job $job: ")" 1
  await 90 has_ended "$job"
  check "state" "$(field "$job" JobState)" COMPLETED
  check_real
  check "both nodes worked" "$(grep -l 'on node2' "$name.out/slurm/logs/$job"/*.log | wc -l)" 2
}
scenario_real_array() {
  local jobs
  mapfile -t jobs < <(submit_real "$name.out" --array 4 --nodes 1 --env LACUNA_FAKE_MS=20)
  await 120 has_ended "${jobs[1]}"
  check "array" "$(scontrol -o show job "${jobs[0]}" | grep -c JobState=COMPLETED)" 4
  check "merged and analysed" "$(field "${jobs[1]}" JobState) $(grep -c 'merged and analysed' "$name.out/slurm/state/${jobs[1]}.note")" "COMPLETED 1"
  check_real
}
scenario_real_cancel() {
  local job
  job=$(submit_real "$name.out" --env LACUNA_FAKE_MS=300)
  await 60 has_lines "$name.out" 30
  check "cancelled" "$("$lacuna" sbatch --cancel "$name.out" 2>/dev/null)" "$job"
  await 30 has_ended "$job"
  check "stays cancelled" "$(field "$job" JobState)" CANCELLED
  # Another shape of job goes on where this one ended.
  job=$(submit_real "$name.out" --nodes 1 --gpus-per-node 3 --launcher srun --allow-idle --env LACUNA_FAKE_MS=5)
  await 90 has_ended "$job"
  check "resumed" "$(field "$job" JobState)" COMPLETED
  check_real
}
# The ten lines of docs/slurm.md with the real engine, on the smallest sweep; then the same script by hand.
scenario_docs() {
  local request job out=$work/$name.out
  cd "$root" || return 1
  export PATH=${lacuna%/*}:$PATH
  # What the page shows, with this sweep and folder.
  request=$(grep -m 1 -oE 'lacuna sbatch sweeps/mini.yaml .* --submit' docs/slurm.md)
  check "the page shows a request" "${request:0:32}" "lacuna sbatch sweeps/mini.yaml -"
  request="${request//sweeps\/mini.yaml/sweeps/smoke.yaml} --allow-idle --constraint pair2"
  request=${request//results\/mini/"$out"}
  check "plan" "$(lacuna plan sweeps/smoke.yaml | grep -c 'memory per rank')" 1
  eval "${request/ --submit/}" 2>>"$work/$name.err"
  check "without --submit only the script is written" "$(find "$out/slurm" -maxdepth 1 -name 'run.sbatch' | wc -l) $(squeue -h -n "lacuna-$name.out" | wc -l)" "1 0"
  job=$(eval "$request" 2>>"$work/$name.err")
  await 90 has_ended "$job"
  check "state" "$(field "$job" JobState)" COMPLETED
  check "status" "$(lacuna status "$out" | grep -c "Slurm job $job: completed")" 1
  check "rank logs" "$(tail -qn 1 "$out"/slurm/logs/*/rank-*.log | wc -l)" 8
  lacuna analyze "$out" >>"$work/$name.err" 2>&1
  lacuna report "$out" >>"$work/$name.err" 2>&1
  check "report" "$(test -s "$out/report.html" && echo yes)" yes
  rm "$out/COMPLETE"
  job=$(sbatch --parsable --hold "$out/slurm/run.sbatch")
  check "status shows a job that was submitted by hand" "$(lacuna status "$out" | grep -c "Slurm job $job: queued")" 1
  check "and it is cancelled with the others" "$(lacuna sbatch --cancel "$out" 2>/dev/null)" "$job"
}
# One study through everything: preempted, a node lost, a rank killed, the limit twice.
scenario_real_survives() {
  local job urgent pid
  job=$(submit_real "$name.out" --constraint pair3 --time 1 --signal USR2@60 --env LACUNA_FAKE_MS=700)
  await 60 has_lines "$name.out" 3
  urgent=$(sbatch --parsable -p urgent -C pair3 -N 2 --exclusive --mem=1 --output=/dev/null --wrap 'sleep 1')
  await 30 has_ended "$urgent"
  await 60 has_lines "$name.out" $(($(lines "$name.out") + 6))
  scontrol update nodename=node6 state=down reason=test
  sleep 1
  scontrol update nodename=node6 state=resume 2>/dev/null
  await 60 has_lines "$name.out" $(($(lines "$name.out") + 6))
  for pid in $(pgrep -x fake_lacuna); do
    if tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -cxE "SLURM_JOB_ID=$job|OMPI_COMM_WORLD_RANK=3" | grep -qx 2; then kill -KILL "$pid"; fi
  done
  await 300 has_ended "$job"
  check "state" "$(field "$job" JobState)" COMPLETED
  check "preempted, node lost, rank killed" "$(grep -cE 'PREEMPTION|NODE FAILURE|exit code 137' "$name.out/slurm/$job.log" | sed 's/^[3-9]$/3 or more/')" "3 or more"
  check "limit struck at least twice" "$(grep -c 'got SIGUSR2' "$name.out/slurm/$job.log" | sed 's/^[2-9]$/2 or more/')" "2 or more"
  check_real
}
# A sample longer than the warning: the limit itself strikes (TERM, then KILL); the job still goes back into the queue,
# and gives up when that happens again and again.
scenario_hard_limit() {
  local job
  job=$(submit "$name.out" --time 1 --signal USR2@1 --nodes 1 --gpus-per-node 1 --max-stalls 2 --env STAND_IN_SECONDS=200)
  await 280 has_ended "$job"
  check "restarts" "$(field "$job" Restarts)" 1
  check "why" "$(grep -c 'gave up: 2 starts in a row' "$name.out/slurm/state/$job.note")" 1
}

# --- run them -----------------------------------------------------------------------------------------------------------
for name in "${chosen[@]}"; do
  "scenario_$name" >"$work/$name.result" 2>&1 &
done
for _ in "${chosen[@]}"; do wait -n; done
status=0
for name in "${chosen[@]}"; do
  cat "$work/$name.result"
  if grep -q '^ok ' "$work/$name.result" && [ ! -e "$work/failed.$name" ]; then continue; fi
  status=1
  echo "---- $name: what lacuna sbatch and the batch script said"
  tail -n 5 "$work/$name.err" 2>/dev/null
  tail -n 25 "$work/$name.out"/slurm/*.log 2>/dev/null
done
if [ $status -ne 0 ]; then keep=yes && echo "kept: $work"; fi
echo "${#chosen[@]} scenarios in $SECONDS s"
exit $status

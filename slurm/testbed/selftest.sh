#!/usr/bin/env bash
# Starts a test cluster, uses every feature that the tests rely on once, and stops it again. About a minute.
# Exit code 0: all of it works; 77: it cannot run here.
# shellcheck disable=SC2016  # expanded on the nodes
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d /tmp/lacuna-testbed.XXXXXX)
"$here/start.sh" "$work/cluster"
code=$?
if [ $code -ne 0 ]; then
  rm -rf "$work"
  exit $code
fi
trap '"$here/stop.sh" "$work/cluster"; rm -rf "$work"' EXIT
# shellcheck source=/dev/null
source "$work/cluster/env.sh"
cd "$work" || exit 1
bad=0
check() {
  if [ "$2" = "$3" ]; then echo "ok   $1"; else echo "FAIL $1: '$2' instead of '$3'" && bad=1; fi
}
state() { scontrol -o show job "$1" | grep -oE 'JobState=[A-Z_]+' | cut -d= -f2; }
await() { # JOB STATE
  for _ in $(seq 200); do
    if [ "$(state "$1")" = "$2" ]; then return; fi
    sleep 0.2
  done
}

check "srun reaches both nodes" "$(srun -Q -N2 -n4 --ntasks-per-node=2 bash -c 'echo $SLURMD_NODENAME' | sort | uniq -c | awk '{ print $1 $2 }' | tr '\n' ' ')" "2node1 2node2 "
check "GPUs are counted and named" "$(srun -Q -n1 --gres=gpu:2 bash -c 'echo $CUDA_VISIBLE_DEVICES')" "0,1"
check "srun --mpi=pmix" "$(srun -Q --mpi=pmix -N2 -n2 bash -c 'echo ${PMIX_RANK:-none}' | sort | tr '\n' ' ')" "0 1 "
if command -v mpirun >/dev/null; then
  printf '#!/bin/bash\nmpirun --map-by ppr:1:node bash -c "echo \\$SLURMD_NODENAME"\n' >mpi.sbatch
  sbatch -Q --wait -N2 -n2 --output=mpi.out mpi.sbatch
  check "mpirun over both nodes" "$(sort mpi.out | tr '\n' ' ')" "node1 node2 "
fi
sbatch --test-only --gres=gpu:5 --wrap true 2>/dev/null
check "five GPUs are refused" $? 1

array=$(sbatch --parsable --array=0-3 --output=/dev/null --wrap '[ "$SLURM_ARRAY_TASK_ID" != 2 ]')
sbatch -Q --wait --dependency="afterany:$array" --output=/dev/null --wrap true
check "an array and a job after it" "$(squeue -h -r -t all -j "$array" -o '%K%T' | sort | tr '\n' ' ')" "0COMPLETED 1COMPLETED 2FAILED 3COMPLETED "

job=$(sbatch --parsable --requeue --output=requeue.out --open-mode=append --wrap 'echo start; [ "$SLURM_RESTART_COUNT" ] || { scontrol requeue $SLURM_JOB_ID; sleep 60; }')
await "$job" COMPLETED
check "a job puts itself back into the queue" "$(state "$job") $(grep -c start requeue.out)" "COMPLETED 2"

job=$(sbatch --parsable --requeue -N2 --exclusive --output=/dev/null --wrap 'sleep 3')
await "$job" RUNNING
sbatch -Q --wait -p urgent -N2 --exclusive --output=/dev/null --wrap true
check "preemption puts a job back" "$(scontrol -o show job "$job" | grep -oE 'Restarts=[0-9]+')" "Restarts=1"
await "$job" COMPLETED
check "and it runs again" "$(state "$job")" COMPLETED
exit $bad

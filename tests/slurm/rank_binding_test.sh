#!/usr/bin/env bash
# slurm/templates/rank.sh on a made-up node: 2 sockets with 4 GPUs, 8 cores, 16 hardware threads (thread n+8 is on the
# core of thread n). GPUs 0 and 1 are near socket 0, GPUs 2 and 3 near socket 1.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for cpu in $(seq 0 15); do
  mkdir -p "$work/sys/devices/system/cpu/cpu$cpu/topology"
  echo "$((cpu % 8)),$((cpu % 8 + 8))" >"$work/sys/devices/system/cpu/cpu$cpu/topology/thread_siblings_list"
done
for gpu in 0 1 2 3; do
  mkdir -p "$work/sys/bus/pci/devices/0000:0$gpu:00.0"
  if [ $gpu -lt 2 ]; then echo 0-3,8-11; else echo 4-7,12-15; fi >"$work/sys/bus/pci/devices/0000:0$gpu:00.0/local_cpulist"
done
mkdir "$work/bin"
cat >"$work/bin/nvidia-smi" <<'EOF'
#!/bin/sh
for gpu in 0 1 2 3; do echo "$gpu, GPU-aaaa-$gpu, 00000000:0$gpu:00.0"; done
EOF
# `taskset -cp PID` tells what is allowed; `taskset -c LIST PROGRAM` binds: here it prints what it was asked for.
cat >"$work/bin/taskset" <<'EOF'
#!/bin/bash
if [ "$1" = -cp ]; then echo "pid $2's current affinity list: ${ALLOWED:-0-15}"; else echo "GPU=$CUDA_VISIBLE_DEVICES CORES=$2 RUN=${*:3}"; fi
EOF
chmod +x "$work/bin/nvidia-smi" "$work/bin/taskset"
export PATH=$work/bin:$PATH LACUNA_SYS=$work/sys
unset LACUNA_RANK_LOGS OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_LOCAL_SIZE PMIX_RANK SLURM_PROCID SLURM_LOCALID
bad=0
# bound RANKS GPUS RANK -> the line of that rank, under mpirun's names or srun's
bound() {
  if [ "${launcher:-mpirun}" = mpirun ]; then
    OMPI_COMM_WORLD_RANK=$3 OMPI_COMM_WORLD_LOCAL_RANK=$3 OMPI_COMM_WORLD_LOCAL_SIZE=$1 CUDA_VISIBLE_DEVICES=$2 \
      bash slurm/templates/rank.sh prog 'a b' | tail -n 1
  else
    SLURM_PROCID=$3 SLURM_LOCALID=$3 LACUNA_RANKS_PER_NODE=$1 CUDA_VISIBLE_DEVICES=$2 \
      bash slurm/templates/rank.sh prog 'a b' | tail -n 1
  fi
}
check() {
  if [ "$2" = "$3" ]; then echo "ok   $1"; else echo "FAIL $1: '$2' instead of '$3'" && bad=1; fi
}
for launcher in mpirun srun; do
  check "$launcher: rank 0" "$(bound 4 0,1,2,3 0)" "GPU=0 CORES=0,8,1,9 RUN=prog a b"
  check "$launcher: rank 1 has the rest of socket 0" "$(bound 4 0,1,2,3 1)" "GPU=1 CORES=2,10,3,11 RUN=prog a b"
  check "$launcher: rank 2 is on socket 1" "$(bound 4 0,1,2,3 2)" "GPU=2 CORES=4,12,5,13 RUN=prog a b"
  check "$launcher: rank 3" "$(bound 4 0,1,2,3 3)" "GPU=3 CORES=6,14,7,15 RUN=prog a b"
done
launcher=mpirun
check "GPUs in another order" "$(bound 2 3,0 0) / $(bound 2 3,0 1)" "GPU=3 CORES=4,12,5,13,6,14,7,15 RUN=prog a b / GPU=0 CORES=0,8,1,9,2,10,3,11 RUN=prog a b"
check "GPUs by UUID" "$(bound 2 GPU-aaaa-2,GPU-aaaa-3 1)" "GPU=GPU-aaaa-3 CORES=6,14,7,15 RUN=prog a b"
check "only the cores of the job" "$(ALLOWED=2-5,10-13 bound 2 1,2 0)" "GPU=1 CORES=2,10,3,11 RUN=prog a b"
check "no allowed core near the GPU" "$(ALLOWED=0-1 bound 1 3 0)" "GPU=3 CORES=0,1 RUN=prog a b"
check "more ranks than cores share them" "$(ALLOWED=0-1 bound 4 0,1,2,3 3)" "GPU=3 CORES=0,1 RUN=prog a b"
check "no GPU: cores in equal parts" "$(bound 2 '' 1)" "GPU= CORES=4,12,5,13,6,14,7,15 RUN=prog a b"
rm "$work/bin/nvidia-smi"
printf '#!/bin/sh\nexit 9\n' >"$work/bin/nvidia-smi"
chmod +x "$work/bin/nvidia-smi"
check "no word from the driver: cores in equal parts" "$(bound 4 0,1,2,3 1)" "GPU=1 CORES=2,10,3,11 RUN=prog a b"
mkdir "$work/logs"
LACUNA_RANK_LOGS=$work/logs OMPI_COMM_WORLD_RANK=7 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=1 CUDA_VISIBLE_DEVICES=0 \
  bash slurm/templates/rank.sh prog
check "a log of its own" "$(grep -c 'RUN=prog' "$work/logs/rank-0007.log")" 1
exit $bad

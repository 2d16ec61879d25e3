#!/bin/bash
# Starts one rank: gives it its own GPU, the cores nearest to that GPU, and its own log. Used by the batch script, under
# mpirun and srun alike:  rank.sh PROGRAM [ARG ...]
set -uo pipefail

rank=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${SLURM_PROCID:-0}}}
local_rank=${OMPI_COMM_WORLD_LOCAL_RANK:-${SLURM_LOCALID:-0}}
local_ranks=${OMPI_COMM_WORLD_LOCAL_SIZE:-${LACUNA_RANKS_PER_NODE:-1}}
sys=${LACUNA_SYS:-/sys}

# "0-2,8" -> 0 1 2 8, one a line.
expand() {
  local part
  for part in ${1//,/ }; do
    if [[ $part == *-* ]]; then seq "${part%-*}" "${part#*-}"; else echo "$part"; fi
  done
}

# One GPU a rank. Slurm lists the GPUs of this job on this node; without a list there is nothing to choose.
gpus=()
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  export CUDA_VISIBLE_DEVICES=${gpus[local_rank % ${#gpus[@]}]}
fi

# The cores we may use, core by core: hardware threads of one core stand side by side, so that a slice holds whole cores.
allowed=$(
  for cpu in $(expand "$(taskset -cp $$ | sed 's/.*: //')"); do
    siblings=$(cat "$sys/devices/system/cpu/cpu$cpu/topology/thread_siblings_list" 2>/dev/null || echo "$cpu")
    echo "${siblings%%[,-]*} $cpu"
  done | sort -n -k1,1 -k2,2 | cut -d' ' -f2
)

# near_gpu GPU: those of them on the same NUMA node as the GPU (an index or a UUID); all, where the machine does not say.
bus_ids=
if [ ${#gpus[@]} -gt 0 ]; then
  bus_ids=$(nvidia-smi --query-gpu=index,uuid,pci.bus_id --format=csv,noheader 2>/dev/null || true)
fi
near_gpu() {
  local bus cpus near
  bus=$(awk -F', *' -v gpu="$1" '$1 == gpu || $2 == gpu { print tolower($3) }' <<<"$bus_ids")
  # nvidia-smi writes the PCI domain with eight digits, the kernel with four.
  cpus=$(cat "$sys/bus/pci/devices/${bus#0000}/local_cpulist" 2>/dev/null || true)
  near=$(grep -Fxf <(expand "$cpus") <<<"$allowed" || true)
  echo "${near:-$allowed}"
}

# Ranks near the same cores share them in equal parts.
cores=
position=0 sharing=0
if [ ${#gpus[@]} -gt 0 ]; then
  cores=$(near_gpu "$CUDA_VISIBLE_DEVICES")
  for ((other = 0; other < local_ranks; other++)); do
    if [ "$(near_gpu "${gpus[other % ${#gpus[@]}]}")" = "$cores" ]; then
      if [ "$other" -lt "$local_rank" ]; then position=$((position + 1)); fi
      sharing=$((sharing + 1))
    fi
  done
else
  cores=$allowed
  position=$local_rank sharing=$local_ranks
fi
mapfile -t cores <<<"$cores"
each=$((${#cores[@]} / (sharing > 0 ? sharing : 1)))
# More ranks than cores: no binding, they share.
if [ "$each" -gt 0 ]; then cores=("${cores[@]:position * each:each}"); fi
list=$(IFS=,; echo "${cores[*]}")

if [ -n "${LACUNA_RANK_LOGS:-}" ]; then
  log=$(printf '%s/rank-%04d.log' "$LACUNA_RANK_LOGS" "$rank")
  exec >>"$log" 2>&1
fi
printf '%(%F %T)T rank %s on %s: GPU %s, cores %s\n' -1 "$rank" "${SLURMD_NODENAME:-$(uname -n)}" \
  "${CUDA_VISIBLE_DEVICES:-none}" "$list"
exec taskset -c "$list" "$@"

#!/usr/bin/env bash
# Stops the cluster that start.sh started in DIR and removes DIR. Touches only processes that start.sh wrote down.
#
#   slurm/testbed/stop.sh [--keep] DIR         --keep: leave DIR (logs, job states) for reading
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/testbed/common.sh
source "$here/common.sh"
keep=no
if [ "${1:-}" = --keep ]; then keep=yes; shift; fi
dir=${1:-}
if [ -z "$dir" ]; then sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
if [ ! -e "$dir/slurm.conf" ]; then echo "stop.sh: $dir holds no test cluster" >&2; exit 1; fi
dir=$(cd "$dir" && pwd)
export SLURM_CONF=$dir/slurm.conf

# Jobs first, so that no step outlives its slurmd.
mapfile -t jobs < <(timeout 10 squeue -h -o %A 2>/dev/null | sort -u)
if [ ${#jobs[@]} -gt 0 ]; then
  timeout 10 scancel "${jobs[@]}" 2>/dev/null
  for _ in $(seq 80); do
    if [ -z "$(timeout 10 squeue -h -o %A 2>/dev/null)" ]; then break; fi
    sleep 0.1
  done
fi

# slurmd before slurmctld before munged: the reverse of the start.
mapfile -t lines < <(tac "$dir/pids" 2>/dev/null)
for line in "${lines[@]}"; do
  read -r name pid start <<<"$line"
  if still_ours "$name" "$pid" "$start"; then kill -TERM "$pid"; fi
done
for line in "${lines[@]}"; do
  read -r name pid start <<<"$line"
  for _ in $(seq 60); do
    if ! still_ours "$name" "$pid" "$start"; then continue 2; fi
    sleep 0.05
  done
  echo "stop.sh: $name ($pid) does not end, killing it" >&2
  kill -KILL "$pid"
done

# Steps whose slurmd went away (a node that was made to fail): theirs is the spool folder in the command line.
for pid in $(pgrep -x slurmstepd || true); do
  if tr '\0' ' ' <"/proc/$pid/environ" 2>/dev/null | grep -qF "SLURM_CONF=$dir/slurm.conf"; then kill -KILL "$pid"; fi
done

if [ -e "$dir/added_address" ] && ! pgrep -x slurmctld >/dev/null; then
  ip addr del "$(cat "$dir/added_address")" dev lo 2>/dev/null
fi
if [ $keep = no ]; then rm -rf "$dir"; else rm -f "$dir/pids"; fi
exit 0

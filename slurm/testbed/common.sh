# Shared by start.sh, stop.sh and selftest.sh; sourced, not run.
# shellcheck shell=bash

# Programs the cluster cannot do without; prints the missing ones.
missing_programs() {
  local program
  for program in munged slurmctld slurmd sbatch squeue scontrol scancel sinfo; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || printf '%s ' "$program"
  done
}

# A process is ours only while its command name and its start time are those we wrote down: pids are reused.
process_name() { cat "/proc/$1/comm" 2>/dev/null || true; }
process_start() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20 || true; }

# True while the line "NAME PID START" of the pids file names a living process of ours.
# Debian's executables are slurmd-wlm and slurmctld-wlm, but the command name is slurmd and slurmctld.
still_ours() {
  local name=$1 pid=$2 start=$3
  [ -n "$start" ] && [ "$(process_name "$pid")" = "${name%%.*}" ] && [ "$(process_start "$pid")" = "$start" ]
}

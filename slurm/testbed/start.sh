#!/usr/bin/env bash
# Starts a real Slurm cluster of virtual nodes with fake GPUs on this machine, as root, without systemd.
#
#   slurm/testbed/start.sh [--nodes N] [--cpus C] [--gpus G] [--memory MIB] DIR
#   source DIR/env.sh          # sbatch, squeue, ... now talk to it
#   slurm/testbed/stop.sh DIR
#
# DIR must be new or empty; all of the cluster lies in it. Several clusters may run beside each other and beside a
# real one: ports, sockets and keys are this cluster's own.
# Partitions: debug (default) and urgent, which preempts debug. Nodes 1-2 have the feature pair1, 3-4 pair2, ...
# Exit code 77: it cannot run here; a line says why.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/testbed/common.sh
source "$here/common.sh"
export PATH=$PATH:/usr/sbin:/sbin

nodes=2 cpus=8 gpus=4 memory=8192 dir=
while [ $# -gt 0 ]; do
  case $1 in
    --nodes) nodes=$2; shift 2 ;;
    --cpus) cpus=$2; shift 2 ;;
    --gpus) gpus=$2; shift 2 ;;
    --memory) memory=$2; shift 2 ;;
    -*) echo "start.sh: unknown option $1" >&2; exit 2 ;;
    *) dir=$1; shift ;;
  esac
done
if [ -z "$dir" ]; then sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
if [ "$(id -u)" -ne 0 ]; then echo "test cluster: skipped, it needs root" >&2; exit 77; fi
missing=$(missing_programs)
if [ -n "$missing" ]; then
  echo "test cluster: skipped, not installed: ${missing}(as root: slurm/testbed/install.sh)" >&2
  exit 77
fi
if [ -d "$dir" ] && [ -n "$(ls -A "$dir")" ]; then
  echo "start.sh: $dir is not empty; stop it first: slurm/testbed/stop.sh $dir" >&2
  exit 1
fi
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
case $dir in *[[:space:]%]*) echo "start.sh: no blanks or % in $dir, please: slurm.conf cannot hold them" >&2; exit 2 ;; esac
chmod 755 "$dir"
mkdir "$dir/munge" "$dir/state" "$dir/gpu"

# Whatever fails from here on takes the half-started cluster down again, and shows why.
# shellcheck disable=SC2317  # reached through the trap
failed() {
  trap - EXIT
  echo "test cluster: did not come up in $dir" >&2
  tail -n 5 "$dir"/*.log "$dir"/munge/log >&2 2>/dev/null || true
  "$here/stop.sh" "$dir" >&2 || true
  exit 1
}
trap failed EXIT

# One start at a time: until the daemons listen, another start would choose the same ports.
exec 9>/tmp/lacuna-testbed.lock
flock -w 60 9
port_is_used() { awk -v want="$(printf ':%04X' "$1")" 'FNR > 1 && index($2, want) { found = 1 } END { exit !found }' /proc/net/tcp /proc/net/tcp6 2>/dev/null; }
base=
for candidate in $(seq 16800 50 19800); do
  base=$candidate
  for port in $(seq "$candidate" $((candidate + nodes))); do
    if port_is_used "$port"; then base=; break; fi
  done
  if [ -n "$base" ]; then break; fi
done
if [ -z "$base" ]; then echo "start.sh: no free ports between 16800 and 19850" >&2; exit 1; fi

# --- configuration -------------------------------------------------------------------------------------------------
host=$(hostname -s)
sed -e "s|@DIR@|$dir|g; s|@HOST@|$host|g; s|@CONTROLLER_PORT@|$base|g" "$here/slurm.conf.in" >"$dir/slurm.conf"
for node in $(seq "$nodes"); do
  echo "NodeName=node$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + node)) CPUs=$cpus RealMemory=$memory Feature=pair$(((node + 1) / 2)) $([ "$gpus" -gt 0 ] && echo "Gres=gpu:$gpus") State=UNKNOWN"
  mkdir "$dir/spool.node$node" "$dir/tmp.node$node"
done >>"$dir/slurm.conf"
cat >>"$dir/slurm.conf" <<EOF
PartitionName=debug Nodes=ALL Default=YES DefaultTime=10 MaxTime=7-0 PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=urgent Nodes=ALL DefaultTime=10 MaxTime=7-0 PriorityTier=10 PreemptMode=OFF State=UP
EOF
# A fake GPU must be a character device whose name ends in a number: a link to /dev/null is.
: >"$dir/gres.conf"
if [ "$gpus" -gt 0 ]; then
  for gpu in $(seq 0 $((gpus - 1))); do ln -s /dev/null "$dir/gpu/fake$gpu"; done
  echo "NodeName=node[1-$nodes] Name=gpu File=$dir/gpu/fake[0-$((gpus - 1))]" >"$dir/gres.conf"
fi
# slurmd loads a cgroup plugin even when nothing uses it. The v2 one wants systemd; the v1 one does nothing until it
# is used; 24.05 added "disabled".
version=$(slurmctld -V | grep -oE '[0-9]+\.[0-9]+' | head -n 1)
if [ "$(printf '%s\n' 24.05 "$version" | sort -V | head -n 1)" = 24.05 ]; then
  echo "CgroupPlugin=disabled" >"$dir/cgroup.conf"
else
  echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"
fi
export SLURM_CONF=$dir/slurm.conf
cat >"$dir/env.sh" <<EOF
export SLURM_CONF=$dir/slurm.conf
EOF
cat "$here/openmpi.env" >>"$dir/env.sh"

# --- network: Slurm resolves with AI_ADDRCONFIG, which finds nothing on a machine that has only 127.0.0.1 ------------
if command -v ip >/dev/null && ! ip -4 -o addr | grep -qv ' 127\.'; then
  ip addr add 10.254.254.1/32 dev lo
  echo 10.254.254.1/32 >"$dir/added_address"
fi

# --- daemons. Each pid is written down with its start time, for stop.sh ----------------------------------------------
: >"$dir/pids"
record() { echo "$1 $2 $(process_start "$2")" >>"$dir/pids"; }
(umask 077; head -c 1024 /dev/urandom >"$dir/munge/key")
munged --force --socket="$dir/munge/socket" --key-file="$dir/munge/key" --pid-file="$dir/munge/pid" \
  --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" 9>&-
for _ in $(seq 100); do
  if [ -S "$dir/munge/socket" ] && [ -s "$dir/munge/pid" ]; then break; fi
  sleep 0.05
done
record munged "$(cat "$dir/munge/pid")"
setsid slurmctld -D -i </dev/null >"$dir/slurmctld.out" 2>&1 9>&- &
record slurmctld $!
for node in $(seq "$nodes"); do
  setsid slurmd -D -N "node$node" </dev/null >"$dir/slurmd.node$node.out" 2>&1 9>&- &
  record "slurmd.node$node" $!
done
# setsid has become the daemon by now: the command name is checked when it is stopped, the start time stays the same.

for _ in $(seq 150); do
  idle=$(sinfo -h -N -p debug -t idle -o %N 2>/dev/null | sort -u | wc -l || true)
  if [ "$idle" -eq "$nodes" ]; then
    trap - EXIT
    echo "Slurm $version is up: $nodes nodes, $cpus CPUs and $gpus fake GPUs each. Now: source $dir/env.sh"
    exit 0
  fi
  sleep 0.1
done
exit 1

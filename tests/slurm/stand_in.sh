#!/usr/bin/env bash
# A stand-in for `lacuna run` with the same manners and no models, so that the batch script's rules can be tested in
# seconds:  stand_in.sh run SWEEP --out DIR [--shard i/n]
#   stand_in.sh merge|analyze DIR
#   Ranks share the samples; each finished one is a line in DIR/journal/. USR2 and TERM: finish the sample, exit 75.
#   The marker is written when every sample of this launch is there. Started again, it runs only what is missing.
# Settings come from the environment (lacuna sbatch --env ...):
#   STAND_IN_SAMPLES=20  STAND_IN_SECONDS=0.5   per sample
#   STAND_IN_KILL_AT=5   rank 0 kills itself once, when the journal has so many lines
#   STAND_IN_EXIT=3      exit code of the finished run; 2 exits at once
#   STAND_IN_STUCK=yes   never finishes a sample; a number: only that shard is stuck
set -uo pipefail
if [ "$1" != run ]; then  # merge and analyze only leave word that they were here
  printf '%s ' "$1" >>"$2/verbs"
  exit 0
fi
shift 2
out='' shard=
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2 ;;
    --shard) shard=$2 ;;
    *=*) shift; continue ;;
    *) echo "stand-in: unexpected $1" >&2; exit 2 ;;
  esac
  shift 2
done
samples=${STAND_IN_SAMPLES:-10} seconds=${STAND_IN_SECONDS:-0.2} kill_at=${STAND_IN_KILL_AT:-0}
exit_code=${STAND_IN_EXIT:-0} stuck=${STAND_IN_STUCK:-no}
if [ "$exit_code" = 2 ]; then
  echo "stand-in: wrong input" >&2
  exit 2
fi
rank=${OMPI_COMM_WORLD_RANK:-${SLURM_PROCID:-0}}
ranks=${OMPI_COMM_WORLD_SIZE:-${SLURM_NTASKS:-1}}
first=0 step=1 marker=$out/COMPLETE tag=stand-in
if [ -n "$shard" ]; then
  first=${shard%/*} step=${shard#*/} marker=$out/COMPLETE.${shard%/*}-of-${shard#*/} tag=stand-in-s${shard%/*}of${shard#*/}
fi
if [ -n "$shard" ] && [ "$stuck" = "${shard%/*}" ]; then stuck=yes; fi
mkdir -p "$out/journal"
stop=no
trap 'stop=yes' USR2 TERM
done_lines() { cat "$out"/journal/*.jsonl 2>/dev/null | grep -c . || true; }
is_done() { grep -qs "\"sample\":$1," "$out"/journal/*.jsonl; }
echo "rank $rank of $ranks on ${SLURMD_NODENAME:-?} gpu ${CUDA_VISIBLE_DEVICES:-none} shard ${shard:-none}"
place=0
missing() {
  local sample
  for ((sample = first; sample < samples; sample += step)); do is_done "$sample" || return 0; done
  return 1
}
for ((sample = first; sample < samples; sample += step, place++)); do
  if [ $((place % ranks)) -ne "$rank" ] || is_done "$sample"; then continue; fi
  if [ "$stop" = yes ]; then exit 75; fi
  # Launchers signal the whole process group: the sample in hand must not be cut short by that.
  (trap '' USR2 TERM; exec sleep "$seconds") &
  while kill -0 $! 2>/dev/null; do wait $!; done
  if [ "$stuck" = yes ]; then sample=$((sample - step)) place=$((place - 1)); continue; fi
  echo "{\"sample\":$sample,\"rank\":$rank,\"job\":\"${SLURM_JOB_ID:-}\",\"start\":${SLURM_RESTART_COUNT:-0}}" >>"$out/journal/$tag-r$rank.jsonl"
  if [ "$kill_at" -gt 0 ] && [ "$rank" -eq 0 ] && [ "$(done_lines)" -ge "$kill_at" ] && mkdir "$out/killed" 2>/dev/null; then kill -KILL $$; fi
done
if [ "$stop" = yes ] && missing; then exit 75; fi
# The last rank to find everything there writes the marker; nobody waits for another rank.
if ! missing && mkdir "$marker.lock" 2>/dev/null; then
  echo '{"stand_in": true}' >"$marker.tmp" && mv "$marker.tmp" "$marker"
  rmdir "$marker.lock"
fi
exit "$exit_code"

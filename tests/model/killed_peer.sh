#!/usr/bin/env bash
# One rank of a team is killed, or stands still: all others give up within their time-out, none hangs.
# usage: killed_peer.sh RANKS PROGRAM   (PROGRAM: a build of nccl_communicator_test.cpp)
set -uo pipefail
ranks=$1 program=$2
# --enable-recovery: mpirun lets the others live. It then exits with 0 whatever they do; their lines tell.
output=$(LACUNA_TEST_KILLED_PEER=1 timeout -k 5 40 "${LACUNA_SOURCE_DIR:-.}/scripts/mpirun" "$ranks" --enable-recovery \
  "$program" --gtest_filter='NcclCommunicatorKilled.TheOthers*' 2>&1)
code=$?
echo "$output"
if grep -q '^skipped' <<<"$output"; then
  exit 77
fi
if ((code == 124 || code == 137)); then
  echo "FAILED  killed_peer: a rank hangs"
  exit 1
fi
gave_up=$(grep -c '^gave up in time' <<<"$output")
if ((gave_up != ranks - 1)); then
  echo "FAILED  killed_peer: $gave_up of $((ranks - 1)) ranks gave up in time, mpirun's exit code $code"
  exit 1
fi

# Nobody comes to a barrier: the process says so and ends, and mpirun ends the one that stands still.
output=$(LACUNA_TEST_STOPPED_PEER=1 timeout -k 5 40 "${LACUNA_SOURCE_DIR:-.}/scripts/mpirun" "$ranks" \
  "$program" --gtest_filter='NcclCommunicatorKilled.NobodyWaits*' 2>&1)
code=$?
echo "$output"
if ((code != 1)) || ! grep -q 'in host memory did not return within 3 s' <<<"$output"; then
  echo "FAILED  killed_peer: exit code $code where a rank stands still"
  exit 1
fi

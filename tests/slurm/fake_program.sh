#!/usr/bin/env bash
# lacuna, but that `run` computes with the fake engine of tests/runner: the real scheduler, journal and results in jobs of
# milliseconds. Both programs come from the environment.
if [ "$1" = run ]; then exec "$FAKE_LACUNA" "$@"; fi
exec "$LACUNA_BIN" "$@"

#!/usr/bin/env bash
# Every shell file of this part, and the batch scripts that it writes, without a remark from shellcheck.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
if ! command -v shellcheck >/dev/null; then
  echo "skipped: shellcheck is not installed"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/model"
cat >"$work/model/config.json" <<'EOF'
{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
 "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
 "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu"}
EOF
cat >"$work/sweep.yaml" <<EOF
models: [{name: tiny, path: $work/model}]
tasks: [ruler_niah]
lengths: [1024]
strategies: [dense]
samples: 40
EOF
touch "$work/setup.sh" "$work/image.sif"
write() {
  local out=$1
  shift
  "$LACUNA_BIN" sbatch "$work/sweep.yaml" --out "$out" --no-site "$@" 2>"$work/err" && return
  cat "$work/err"
  exit 1
}
# Without Slurm's commands on PATH nothing is checked against a cluster: the scripts are what is looked at here.
mkdir "$work/bin"
export PATH=$work/bin:$PATH
printf '#!/bin/sh\nexit 127\n' | tee "$work/bin/sbatch" >/dev/null
chmod +x "$work/bin/sbatch"
write "$work/plain"
# shellcheck disable=SC2016  # nothing shall expand
write "$work/odd it's \"x\" \$HOME %" --array 4 --module 'cuda/12 x' --module "it's" --env 'A=b $c' --setup "$work/setup.sh" \
  --launcher srun --sbatch-arg '--mail-user=a b'
write "$work/container" --container "$work/image.sif" --signal TERM@60 --gpu-type h100 --memory 64G 'models.0.tp=1'
files=(slurm/testbed/*.sh slurm/templates/rank.sh tests/slurm/*.sh)
mapfile -t written < <(find "$work" -name '*.sbatch' -o -name rank.sh)
if [ ${#written[@]} -ne 7 ]; then echo "expected 7 written scripts, found: ${written[*]}"; exit 1; fi
for script in "${written[@]}"; do bash -n "$script" || exit 1; done
shellcheck -x -P . "${files[@]}" "${written[@]}" && echo "clean: ${#files[@]} files and ${#written[@]} written scripts"

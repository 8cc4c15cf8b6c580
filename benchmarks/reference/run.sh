#!/usr/bin/env bash
# Benchmark B: ferroclip and open_clip trained from one file, scored on a style that neither has seen.
#
#     PYTHON=venv/bin/python bash benchmarks/reference/run.sh [RECIPE.toml]
#
# Needs the packs in data/ and a Python with open_clip_torch. RECIPE's name NAME gives runs/NAME and
# benchmarks/logs/NAME/, which gets the logs and scores of every seed and the pixel matcher's.
# SEEDS ("0 1 2 3 4"): one pair of trainings each; one seed alone says little, see summary.py.
# THREADS (1): the trainings of a pair run side by side, with so many threads each.
set -euo pipefail
cd "$(dirname "$0")/../.."

recipe=${1:-benchmarks/reference/held-out-style.toml}
name=$(basename "$recipe" .toml)
logs=benchmarks/logs/$name
threads=${THREADS:-1}
python=${PYTHON:-python3}
ferroclip=${CARGO_TARGET_DIR:-target}/release/ferroclip
mkdir -p "$logs" runs

cargo build --release --quiet
# open_clip's optimised BLAS settings are those of the machine.
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
# All labels of the pack, of every style.
unzip -p data/emoji_train.zip labels.tsv | tail -n +2 | cut -f 4 | LC_ALL=C sort -u >"runs/$name-labels.txt"

train_ferroclip() {
    local seed=$1 out=runs/$name-$1
    "$ferroclip" train "$recipe" --set "run.seed=$seed" --set "run.out=\"$out\"" --threads "$threads" --quiet
    "$ferroclip" eval zero-shot --model "$out/final" --data data/emoji_train.zip --label-column label \
        --filter vendor=fluent3d --filter category!=Flags --filter category!=Component \
        --labels "runs/$name-labels.txt" --json >"$logs/ferroclip-$seed.json"
    cp "$out/metrics.jsonl" "$logs/ferroclip-$seed.jsonl"
    cp "$out/config.toml" "$logs/config.toml"
}

train_open_clip() {
    local seed=$1 out=runs/$name-open_clip-$1
    "$python" benchmarks/reference/train_open_clip.py "$recipe" --seed "$seed" --threads "$threads" --out "$out" >"$out.log"
    cp "$out/metrics.jsonl" "$logs/open_clip-$seed.jsonl"
    cp "$out/result.json" "$logs/open_clip-$seed.json"
}

for seed in ${SEEDS:-0 1 2 3 4}; do
    train_open_clip "$seed" &
    open_clip=$!
    train_ferroclip "$seed"
    wait $open_clip
done
"$python" benchmarks/reference/pixel_matcher.py data/emoji_train.zip --json "$logs/pixel_matcher.json" >/dev/null
"$python" benchmarks/reference/summary.py "$logs"

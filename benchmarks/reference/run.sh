#!/usr/bin/env bash
# Benchmark B: ferroclip and open_clip trained from one file, scored on a style that neither has seen.
#
#     PYTHON=venv/bin/python bash benchmarks/reference/run.sh [RECIPE.toml]
#
# Needs the packs in data/ and a Python with open_clip_torch. RECIPE's name NAME gives runs/NAME and
# benchmarks/logs/NAME/, which gets both logs, both scores and the pixel matcher's.
# THREADS (1): both trainings run side by side, with so many threads each.
set -euo pipefail
cd "$(dirname "$0")/../.."

recipe=${1:-benchmarks/reference/held-out-style.toml}
name=$(basename "$recipe" .toml)
logs=benchmarks/logs/$name
threads=${THREADS:-1}
python=${PYTHON:-python3}
ferroclip=${CARGO_TARGET_DIR:-target}/release/ferroclip
mkdir -p "$logs"

cargo build --release --quiet
# open_clip's optimised BLAS settings are those of the machine.
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
"$python" benchmarks/reference/train_open_clip.py "$recipe" --threads "$threads" --out "runs/$name-open_clip" >"runs/$name-open_clip.log" &
open_clip=$!
"$ferroclip" train "$recipe" --threads "$threads" --quiet

# All labels of the pack, of every style.
unzip -p data/emoji_train.zip labels.tsv | tail -n +2 | cut -f 4 | LC_ALL=C sort -u >"runs/$name-labels.txt"
"$ferroclip" eval zero-shot --model "runs/$name/final" --data data/emoji_train.zip --label-column label \
    --filter vendor=fluent3d --filter category!=Flags --filter category!=Component \
    --labels "runs/$name-labels.txt" --json >"$logs/ferroclip.json"
wait $open_clip

cp "runs/$name/config.toml" "$logs/config.toml"
cp "runs/$name/metrics.jsonl" "$logs/ferroclip.jsonl"
cp "runs/$name-open_clip/metrics.jsonl" "$logs/open_clip.jsonl"
cp "runs/$name-open_clip/result.json" "$logs/open_clip.json"
"$python" benchmarks/reference/pixel_matcher.py data/emoji_train.zip --json "$logs/pixel_matcher.json" >/dev/null
"$python" - "$logs" <<'PY'
import json, sys
read = lambda name: json.load(open(f"{sys.argv[1]}/{name}.json"))
ours, theirs, pixels = read("ferroclip"), read("open_clip")["result"], read("pixel_matcher")["best"]
print(f"ferroclip      top-1 {100 * ours['top1']:5.2f}  top-5 {100 * ours['top5']:5.2f}  n {ours['n']}")
print(f"open_clip      top-1 {theirs['top1']:5.2f}  top-5 {theirs['top5']:5.2f}  {theirs['samples']} samples")
for canvas, best in pixels.items():
    print(f"pixels, {canvas:5}  top-1 {best['top1']:5.2f}  top-5 {best['top5']:5.2f}")
PY

"""Benchmark B's table: every seed of both programs, their means, and the bar.

    python benchmarks/reference/summary.py benchmarks/logs/held-out-style

The bar is the mean of open_clip's seeds minus one point; the error is that of the mean over seeds. Only the standard library is needed.
"""

import json
import math
import statistics
import sys
from pathlib import Path

SLACK = 1.0


def ferroclip(path: Path) -> tuple:
    scores = json.loads(path.read_text())
    return 100 * scores["top1"], 100 * scores["top5"]


def open_clip(path: Path) -> tuple:
    scores = json.loads(path.read_text())["result"]
    return scores["top1"], scores["top5"]


def show(name: str, scores: dict) -> tuple:
    """Prints a line a seed and one of means; returns the means."""
    for seed, (top1, top5) in sorted(scores.items()):
        print(f"{name:10} seed {seed}   top-1 {top1:5.2f}          top-5 {top5:5.2f}")
    means, errors = [], []
    for column in zip(*scores.values()):
        means.append(statistics.mean(column))
        errors.append(statistics.stdev(column) / math.sqrt(len(column)) if len(column) > 1 else math.nan)
    print(f"{name:10} mean     top-1 {means[0]:5.2f} +- {errors[0]:4.2f}  top-5 {means[1]:5.2f} +- {errors[1]:4.2f}")
    return tuple(means)


def read(logs: Path, name: str, scores) -> dict:
    paths = logs.glob(f"{name}-*.json")
    return {int(path.stem.rsplit("-", 1)[1]): scores(path) for path in paths}


def main() -> None:
    logs = Path(sys.argv[1])
    ours, theirs = read(logs, "ferroclip", ferroclip), read(logs, "open_clip", open_clip)
    assert ours and ours.keys() == theirs.keys(), f"seeds differ: {sorted(ours)} and {sorted(theirs)}"
    ours, theirs = show("ferroclip", ours), show("open_clip", theirs)
    for name, mine, reference in zip(("top-1", "top-5"), ours, theirs):
        bar = reference - SLACK
        print(f"{name}: {mine:5.2f} against the bar of {bar:5.2f}: {'holds' if mine >= bar else 'MISSED'}")
    for canvas, best in json.loads((logs / "pixel_matcher.json").read_text())["best"].items():
        print(f"pixels, {canvas:5}       top-1 {best['top1']:5.2f}          top-5 {best['top5']:5.2f}")


if __name__ == "__main__":
    main()

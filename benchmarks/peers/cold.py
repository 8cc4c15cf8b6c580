"""Lines K and L: a whole process that embeds one text and one picture, against Python and open_clip doing the same."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pairs import HERE, environment, quartiles

TEXT = "a photo of a cat"
MUST = 10.0


def once(argv: list, threads: int, log) -> tuple:
    """Seconds and peak MB of a process."""
    begin = time.perf_counter()
    process = subprocess.Popen([str(arg) for arg in argv], stdout=log, stderr=log, env=environment(threads))
    # The usage that `wait` would give is the largest of all children so far.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{argv} ended with status {process.returncode}")
    return seconds, usage.ru_maxrss / 1024


def commands(program: Path, model: Path, picture: Path, precision: str, threads: int, out: Path) -> tuple:
    ours = [program, "embed", "--model", model, "--images", picture, "--text", TEXT, "--precision", precision,
            "--threads", threads, "--dtype", "f32", "--out", out / "ours", "--quiet"]
    return ours, [sys.executable, HERE / "cold_open_clip.py", model, picture, TEXT, out / "theirs.npz"]


def compare(program: Path, model: Path, picture: Path, precision: str, threads: int, pairs: int, log) -> dict:
    rows = {"ours": [], "theirs": []}
    for number in range(pairs + 1):
        with tempfile.TemporaryDirectory() as out:
            ours, theirs = commands(program, model, picture, precision, threads, Path(out))
            both = [("ours", ours), ("theirs", theirs)]
            found = {name: once(argv, threads, log) for name, argv in (both if number % 2 == 0 else reversed(both))}
        # The first pair brings the files into memory.
        if number > 0:
            for name, row in found.items():
                rows[name].append(row)
    ratios = [b[0] / a[0] for a, b in zip(rows["ours"], rows["theirs"])]
    weights = (model / "open_clip_model.safetensors").stat().st_size / 1024**2
    memory = {f"{name}_mb": quartiles([mb for _, mb in found]) for name, found in rows.items()}
    seconds = {f"{name}_s": quartiles([s for s, _ in found]) for name, found in rows.items()}
    return {"pairs": pairs, "ratio": quartiles(ratios), "ratios": ratios, **seconds, **memory, "weights_mb": weights}

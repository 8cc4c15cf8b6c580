"""Write the table of results into README.md and the scores into draw-mini's card.

    cargo build --release && python3 benchmarks/results.py [--check]

Runs the program itself on `examples/` and on the rows of `data/` that draw-mini never saw. With
--check nothing is written, and the exit status tells whether the files are up to date. Only the
Python standard library is needed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "examples"))
import draw_examples

PROGRAM = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/ferroclip"
HELD_OUT = "hash%20=0"
# Flags look alike in every drawing style, components are not things.
THINGS = [HELD_OUT, "category!=Flags", "category!=Component"]
SETS = [
    ("emoji drawings", "data/emoji_train.zip", "label", [HELD_OUT]),
    ("emoji without flags and components", "data/emoji_train.zip", "label", THINGS),
    ("clip art", "data/openclipart.zip", "title", [HELD_OUT]),
    ("clothes, photographs", "data/clothing10_fewshot.zip", "label", ["split=test"]),
]


def run(*args: str) -> dict:
    out = subprocess.run([str(PROGRAM), *args, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def examples() -> str:
    begin = time.perf_counter()
    found = run("classify", "examples/pictures", "--labels", "examples/labels.txt")
    seconds = time.perf_counter() - begin
    # A file name cannot hold a colon.
    right = sum(Path(i["path"]).name.startswith(i["scores"][0]["label"].replace(":", "")) for i in found["images"])
    print(f"the first command took {seconds:.2f} s")
    return f"| the first command: 12 pictures, 40 labels | {right} of 12 right | | | |"


def among_all(name: str, path: str, column: str, filters: list) -> str:
    """The same pictures among the labels of all rows, those of training included."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        rows = draw_examples.read_table((ROOT / path).parent, Path(path).stem)
        file.write("\n".join(sorted({row[column] for row in rows})) + "\n")
        file.flush()
        return held_out(name, path, column, filters, "--labels", file.name)


def held_out(name: str, path: str, column: str, filters: list, *more: str) -> str:
    args = [arg for row_filter in filters for arg in ("--filter", row_filter)] + list(more)
    found = {
        precision: run("eval", "zero-shot", "--data", path, "--label-column", column, "--precision", precision, *args)
        for precision in ("f32", "bf16", "int8")
    }
    f32 = found["f32"]
    scores = [f32["top5"], *(each["top1"] for each in found.values())]
    cells = " | ".join(f"{100 * score:.1f} %" for score in scores)
    return f"| {name}: {f32['n']} pictures, {f32['n_labels']} labels | {cells} |"


def replace(path: Path, table: str, name: str = "results") -> tuple[str, str]:
    """The file before and after the lines between its markers give way to the table."""
    before = path.read_text()
    pattern = rf"(<!-- {name}: begin[^\n]*-->\n).*?(<!-- {name}: end -->)"
    after, n = re.subn(pattern, lambda m: m[1] + table + m[2], before, flags=re.DOTALL)
    assert n == 1, f"{path} has no place for {name}"
    return before, after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    rows = [examples()] + [held_out(*each) for each in SETS]
    rows.insert(3, among_all("the same among all labels", "data/emoji_train.zip", "label", THINGS))
    table = "\n".join(["| draw-mini, zero-shot | top-5 | top-1 | top-1 in bf16 | top-1 in int8 |", "|---|---|---|---|---|", *rows]) + "\n"
    print(table, end="")
    stale = False
    for path in (ROOT / "README.md", ROOT / "models/draw-mini/README.md"):
        before, after = replace(path, table)
        stale |= before != after
        if not check:
            path.write_text(after)
    return int(check and stale)


if __name__ == "__main__":
    raise SystemExit(main())

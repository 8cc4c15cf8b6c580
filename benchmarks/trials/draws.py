"""Scores a model as the first command of the README does, on the rows that choose checkpoints.

    python benchmarks/trials/draws.py MODEL_DIRECTORY

12 pictures and 40 labels are drawn 4,000 times by `draw` of `examples/draw_examples.py`, from rows with `hash%20=1` instead of the
test rows. Printed is how often the right label of the 40 comes first. Needs data/, a release build, and numpy.
"""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/ferroclip"
DRAWS, SEED, HASHED, ENOUGH = 4000, 1, 1, 9
sys.path.append(str(ROOT / "examples"))
import draw_examples as examples


def embed(model: str, kind: str, *args: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as out:
        command = [PROGRAM, "embed", *args, "--model", model, "--out", out, "--dtype", "f32", "--quiet"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return np.load(Path(out, kind, f"{kind}_0.npy"))


def embed_pictures(model: str) -> dict:
    """(pack, file) -> embedding."""
    found = {}
    for pack in examples.LABEL_COLUMN:
        files = [row["file"] for row in examples.read_table(ROOT / "data", pack)]
        files = [file for file in files if examples.hash_of(file) == HASHED]
        rows = embed(model, "img_emb", f"data/{pack}.zip", "--filter", f"hash%{examples.HELD_OUT_EVERY}={HASHED}")
        assert len(files) == len(rows), pack
        found |= {(pack, file): row for file, row in zip(files, rows)}
    return found


def embed_labels(model: str, labels: list) -> dict:
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(labels) + "\n")
        file.flush()
        return dict(zip(labels, embed(model, "text_emb", "--texts", file.name)))


def main() -> None:
    model = sys.argv[1]
    pool = examples.read_pool(ROOT / "data", HASHED)
    pictures, texts = embed_pictures(model), embed_labels(model, sorted({row.label for row in pool}))
    n_rows = {pack: sum(row.pack == pack for row in pool) for pack in examples.LABEL_COLUMN}
    rng, answers, enough = random.Random(SEED), {pack: [] for pack in n_rows}, 0
    for _ in range(DRAWS):
        drawn = examples.draw(pool, rng)
        offered = np.stack([texts[row.label] for row in drawn])
        # The right label of picture i is label i.
        right = [int(np.argmax(offered @ pictures[row.pack, row.file])) == i for i, row in enumerate(drawn[: examples.PICTURES])]
        for row, is_right in zip(drawn, right):
            answers[row.pack].append(is_right)
        enough += sum(right) >= ENOUGH
    for pack, found in answers.items():
        print(f"{pack:12} {100 * np.mean(found):5.1f} % right of {len(found)} drawn, {n_rows[pack]} rows")
    mean = sum(map(sum, answers.values())) / DRAWS
    print(f"of {examples.PICTURES}: {mean:.2f} right in the mean, at least {ENOUGH} in {100 * enough / DRAWS:.1f} % of the draws")


if __name__ == "__main__":
    main()

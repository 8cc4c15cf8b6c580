"""Scores a model as the first command of the README does, on rows that no training and no test uses.

    python benchmarks/trials/draws.py MODEL_DIRECTORY

Of the rows with `hash%20=1` of emoji and clip art, which the rules of `examples/draw_examples.py` let through, 12 pictures and 40 labels
are drawn 4,000 times. Printed is how often the right label of the 40 comes first. Needs data/, a release build, and numpy.
"""

import csv
import io
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/ferroclip"
DRAWS, SEED = 4000, 1
sys.path.append(str(ROOT / "examples"))
import draw_examples as examples


def table(pack: str) -> list:
    with zipfile.ZipFile(ROOT / f"data/{pack}.zip") as archive:
        text = archive.read("labels.tsv").decode()
    return list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))


def embed(model: str, kind: str, *args: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as out:
        command = [PROGRAM, "embed", *args, "--model", model, "--out", out, "--dtype", "f32", "--quiet"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return np.load(Path(out, kind, f"{kind}_0.npy"))


def pictures(model: str) -> tuple:
    """Labels, packs and embeddings of the rows that may be drawn."""
    labels, packs, rows = [], [], []
    for pack, column in examples.LABEL_COLUMN.items():
        cells = [row for row in table(pack) if examples.hash_of(row["file"]) == 1]
        embedded = embed(model, "img_emb", f"data/{pack}.zip", "--filter", f"hash%{examples.HELD_OUT_EVERY}=1")
        assert len(cells) == len(embedded), pack
        for row, embedding in zip(cells, embedded):
            if examples.may_be_drawn(pack, row):
                labels.append(row[column])
                packs.append(pack)
                rows.append(embedding)
    return labels, packs, np.stack(rows)


def main() -> None:
    model = sys.argv[1]
    labels, packs, images = pictures(model)
    names = sorted(set(labels))
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(names) + "\n")
        file.flush()
        cosines = images @ embed(model, "text_emb", "--texts", file.name).T
    own = [names.index(label) for label in labels]
    rng, order = random.Random(SEED), list(range(len(labels)))
    right, shown, scores = dict.fromkeys(packs, 0), dict.fromkeys(packs, 0), []
    for _ in range(DRAWS):
        rng.shuffle(order)
        first = {}
        for row in order:
            first.setdefault(labels[row].casefold(), row)
        drawn = list(first.values())[: examples.PICTURES + examples.OTHER_LABELS]
        offered = [own[row] for row in drawn]
        scores.append(0)
        for row in drawn[: examples.PICTURES]:
            is_right = offered[int(np.argmax(cosines[row, offered]))] == own[row]
            scores[-1] += is_right
            right[packs[row]] += is_right
            shown[packs[row]] += 1
    for pack in right:
        print(f"{pack:12} {100 * right[pack] / shown[pack]:5.1f} % right of {shown[pack]} drawn, {packs.count(pack)} rows")
    enough = sum(score >= 9 for score in scores) / DRAWS
    print(f"of 12: {np.mean(scores):.2f} right in the mean, at least 9 in {100 * enough:.1f} % of the draws")


if __name__ == "__main__":
    main()

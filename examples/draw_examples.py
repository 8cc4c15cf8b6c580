"""Draw the example pictures and the label list of this folder.

    python3 examples/draw_examples.py --data ../shared/data

Twelve pictures and 40 labels (theirs and 28 others) are drawn with
`random.Random(0)` from the rows of emoji_train.zip and openclipart.zip that no
training run of ferroclip sees: a row is held out when its file name hashes to
a multiple of 20 (`hash_of`). What may be drawn follows from the text tables
alone, never from a model or from a look at the pictures:

- emoji rows of the categories Flags and Component are left out: the former look
  alike in every drawing style, the latter are not things;
- openclipart rows need a title of at most four words, in ASCII, without digits;
- the 40 labels differ, upper and lower case set aside.

Only the Python standard library is needed. The pictures are copied byte for byte.
"""

import argparse
import csv
import hashlib
import io
import random
import re
import unicodedata
import zipfile
from dataclasses import dataclass
from pathlib import Path

PICTURES = 12
OTHER_LABELS = 28
HELD_OUT_EVERY = 20
HELD_OUT = 0
LABEL_COLUMN = {"emoji_train": "label", "openclipart": "title"}

# pack or vendor -> (licence, credit line), as in the README of the data packs.
CREDITS = {
    "google": ("Apache-2.0", "Noto Emoji (c) Google Inc."),
    "noto_v1": ("Apache-2.0", "Noto Emoji (c) Google Inc."),
    "fxemoji": ("Apache-2.0", "FxEmojis (c) Mozilla"),
    "fluent3d": ("MIT", "Fluent Emoji (c) Microsoft Corporation; 3D set packaged by LobeHub, MIT"),
    "fluent_flat": ("MIT", "Fluent Emoji (c) Microsoft Corporation"),
    "twitter": (
        "CC BY 4.0",
        "Twemoji graphics (c) Twitter, Inc and other contributors, licensed under CC BY 4.0; resized",
    ),
    "emojitwo": (
        "CC BY 4.0",
        "EmojiOne 2 / EmojiTwo graphics (c) Emoji One and the EmojiTwo contributors,"
        " licensed under CC BY 4.0; resized",
    ),
    "openclipart": ("public domain", "Open Clip Art Library (no credit required)"),
}


@dataclass(frozen=True)
class Row:
    """One held-out picture that may be drawn."""

    pack: str
    file: str
    label: str
    source: str  # the key of CREDITS


def hash_of(file: str) -> int:
    """What `--filter hash%20=` compares with."""
    digest = hashlib.sha256(file.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_EVERY


def may_be_drawn(pack: str, cells: dict[str, str]) -> bool:
    """The two constraints that the docstring of this script states."""
    if pack == "emoji_train":
        return cells["category"] not in ("Flags", "Component")
    title = cells["title"]
    return title.isascii() and not re.search(r"\d", title) and 1 <= len(title.split()) <= 4


def read_table(data: Path, pack: str) -> list[dict[str, str]]:
    """The rows of a pack, in its order."""
    with zipfile.ZipFile(data / f"{pack}.zip") as archive:
        text = archive.read("labels.tsv").decode("utf-8")
    return list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))


def read_pool(data: Path, hashed: int = HELD_OUT) -> list[Row]:
    """All rows with that hash that may be drawn, in an order that does not depend on the zip."""
    pool = []
    for pack, label_column in LABEL_COLUMN.items():
        for cells in read_table(data, pack):
            if hash_of(cells["file"]) == hashed and may_be_drawn(pack, cells):
                source = cells.get("vendor", pack)
                pool.append(Row(pack, cells["file"], cells[label_column], source))
    return sorted(pool, key=lambda row: (row.pack, row.file))


def draw(pool: list[Row], rng: random.Random) -> list[Row]:
    """Rows of different labels, first come, first served: those of the pictures are the first."""
    rng.shuffle(pool)
    first_of_label: dict[str, Row] = {}
    for row in pool:
        first_of_label.setdefault(row.label.casefold(), row)
    drawn = list(first_of_label.values())[: PICTURES + OTHER_LABELS]
    if len(drawn) < PICTURES + OTHER_LABELS:
        raise SystemExit(f"the packs hold too few labels to draw from: {len(drawn)}")
    return drawn


def file_stem(label: str) -> str:
    """The label, without the characters that some file system does not like."""
    ascii_label = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    kept = re.sub(r"[^A-Za-z0-9 ()&,.'+-]", " ", ascii_label)
    return " ".join(kept.split()).strip(". ") or "picture"


def name_files(rows: list[Row]) -> dict[str, Row]:
    """File name -> row; a name that is taken (case set aside) gets `--2`, `--3` ..."""
    named: dict[str, Row] = {}
    taken: set[str] = set()
    for row in rows:
        stem, count = file_stem(row.label), 1
        name = f"{stem}.png"
        while name.casefold() in taken:
            count += 1
            name = f"{stem}--{count}.png"
        taken.add(name.casefold())
        named[name] = row
    return dict(sorted(named.items()))


def credits_text(named: dict[str, Row]) -> str:
    """The table of origins, licences and credit lines."""
    lines = [
        "# Credits of the example pictures",
        "",
        "Written by `draw_examples.py`. Each picture is an unchanged copy of a file of a data pack,",
        "which holds the originals below at a smaller size.",
        "",
        "| picture | pack | file in the pack | vendor | licence | credit |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in named.items():
        licence, credit = CREDITS[row.source]
        vendor = row.source if row.source != row.pack else "-"
        lines.append(f"| {name} | {row.pack} | `{row.file}` | {vendor} | {licence} | {credit} |")
    lines += [
        "",
        "Emoji names: emojibase (c) Miles Johnson, MIT; emoji-data (c) Cal Henderson, MIT;",
        "Unicode CLDR (c) Unicode, Inc., Unicode licence.",
        "",
        "Licence texts: <https://creativecommons.org/licenses/by/4.0/> (CC BY 4.0),",
        "<https://www.apache.org/licenses/LICENSE-2.0> (Apache-2.0), <https://opensource.org/license/mit> (MIT).",
    ]
    return "\n".join(lines) + "\n"


def write_examples(data: Path, out: Path) -> None:
    rng = random.Random(0)
    drawn = draw(read_pool(data), rng)
    labels = [row.label for row in drawn]
    rng.shuffle(labels)
    named = name_files(drawn[:PICTURES])
    folder = out / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for name, row in named.items():
        with zipfile.ZipFile(data / f"{row.pack}.zip") as archive:
            (folder / name).write_bytes(archive.read(row.file))
    (folder / "CREDITS.md").write_text(credits_text(named), encoding="utf-8", newline="\n")
    (out / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8", newline="\n")
    print(f"wrote {len(named)} pictures and {len(labels)} labels to {out}")


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=here.parent.parent / "shared" / "data",
                        help="the folder that holds emoji_train.zip and openclipart.zip")
    parser.add_argument("--out", type=Path, default=here)
    args = parser.parse_args()
    write_examples(args.data, args.out)


if __name__ == "__main__":
    main()

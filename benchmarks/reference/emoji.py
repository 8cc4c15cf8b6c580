"""The emoji pack as benchmark B uses it: read `emoji_train.zip`, split it by drawing style.

Train: every style but fluent3d and fluent_flat, which share their designs. Test: fluent3d without the categories Flags and Component.
The classes are the union of all labels in the pack, of every style.
"""

import csv
import io
import zipfile
from dataclasses import dataclass

from PIL import Image

HELD_OUT_STYLES = ("fluent3d", "fluent_flat")
TEST_STYLE = "fluent3d"
EASY_CATEGORIES = ("Flags", "Component")


@dataclass
class Row:
    """One picture of the pack."""

    file: str
    label: str
    keywords: list
    vendor: str
    category: str
    picture: Image.Image  # RGBA


@dataclass
class Pack:
    train: list
    test: list
    classes: list  # sorted


def read(path: str) -> Pack:
    rows = []
    with zipfile.ZipFile(path) as archive:
        table = io.StringIO(archive.read("labels.tsv").decode("utf-8"), newline="")
        for cells in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE):
            with archive.open(cells["file"]) as file:
                picture = Image.open(file).convert("RGBA")
            keywords = [word.strip() for word in cells["keywords"].split(",") if word.strip()]
            rows.append(Row(cells["file"], cells["label"], keywords, cells["vendor"], cells["category"], picture))
    return Pack(
        train=[row for row in rows if row.vendor not in HELD_OUT_STYLES],
        test=[row for row in rows if row.vendor == TEST_STYLE and row.category not in EASY_CATEGORIES],
        classes=sorted({row.label for row in rows}),
    )


def on_background(picture: Image.Image, colour: tuple) -> Image.Image:
    """Composites an RGBA picture on one colour."""
    base = Image.new("RGBA", picture.size, (*colour, 255))
    return Image.alpha_composite(base, picture).convert("RGB")

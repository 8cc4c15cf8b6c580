"""Real captions, pictures and mosaics, made in the work folder from the packs in `data/`.

Most of the packs are for research only: nothing of what is made here may be committed.
"""

import csv
import io
import random
import shutil
import zipfile
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "data/flickr8k_train_dev.zip"
N_CHECKED, N_CALIBRATED = 256, 128


def photo_rows(split: str) -> list:
    with zipfile.ZipFile(PHOTOS) as pack:
        table = io.TextIOWrapper(pack.open("labels.tsv"), encoding="utf-8", newline="")
        return [row for row in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE) if row["split"] == split]


def captions(work: Path, limit: int) -> Path:
    """The 5,000 captions of the 1,000 dev photos, or the first few of them."""
    path = work / f"inputs/captions-{limit}.txt"
    if not path.exists():
        texts = [row[f"caption{n}"] for row in photo_rows("dev") for n in range(1, 6)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(texts[:limit]) + "\n", encoding="utf-8")
    return path


def whole(folder: Path, fill: Callable[[Path], None]) -> Path:
    """The folder, filled under another name first where it is not there: one of a run that failed is not believed."""
    if not folder.exists():
        unfinished = folder.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        fill(unfinished)
        unfinished.rename(folder)
    return folder


def photos(work: Path, name: str, split: str, n: int) -> Path:
    def fill(folder: Path) -> None:
        with zipfile.ZipFile(PHOTOS) as pack:
            for number, row in enumerate(photo_rows(split)[:n]):
                (folder / f"{number:04}.jpg").write_bytes(pack.read(row["file"]))

    return whole(work / "inputs" / name, fill)


def checked_photos(work: Path, n: int = N_CHECKED) -> Path:
    """The pictures that cosines are taken over; as PNG, so that no difference between JPEG decoders gets into them."""
    from PIL import Image

    def fill(folder: Path) -> None:
        for path in photos(work, f"checked-{n}", "dev", n).iterdir():
            Image.open(path).convert("RGB").save(folder / f"{path.stem}.png")

    return whole(work / f"inputs/checked-png-{n}", fill)


def calibration_photos(work: Path) -> Path:
    """Pictures for quantisation, none of them checked."""
    return photos(work, "calibration", "train", N_CALIBRATED)


def mosaics(work: Path, n: int) -> Path:
    """`n` JPEGs of 640 x 480, 4:2:0, quality 90: each 4 x 3 photos, doubled in size."""
    from PIL import Image

    def fill(folder: Path) -> None:
        rng = random.Random(0)
        rows = photo_rows("train")
        with zipfile.ZipFile(PHOTOS) as pack:
            for number in range(n):
                mosaic = Image.new("RGB", (640, 480))
                for place, row in enumerate(rng.sample(rows, 12)):
                    photo = Image.open(io.BytesIO(pack.read(row["file"]))).convert("RGB")
                    mosaic.paste(photo.resize((160, 160)), (place % 4 * 160, place // 4 * 160))
                mosaic.save(folder / f"{number:05}.jpg", quality=90, subsampling="4:2:0")

    return whole(work / f"inputs/mosaics-{n}", fill)

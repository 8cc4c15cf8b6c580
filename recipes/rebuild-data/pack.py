"""Packs: a zip with pictures stored as they are and tab-separated text, the same bytes on every run."""

import csv
import hashlib
import io
import zipfile
from pathlib import Path

from PIL import Image


def read_table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))


def table_text(rows: list[dict[str, str]]) -> str:
    """One header line, tabs between cells, no quoting."""
    lines = ["\t".join(rows[0])] + ["\t".join(row.values()) for row in rows]
    return "\n".join(lines) + "\n"


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def write_pack(path: Path, pictures: dict[str, bytes], tables: dict[str, str]) -> None:
    """Writes to a temporary name first, so that no half a pack is left behind."""
    part = path.with_suffix(".part")
    with zipfile.ZipFile(part, "w") as archive:
        for name, content in pictures.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content)
        for name, text in tables.items():
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, text.encode("utf-8"))
    part.replace(path)


def pixel_digests(path: Path) -> dict[str, str]:
    """Per style (or pack): SHA-256 over the names, sizes and RGBA pixels of its pictures.

    The files may differ in compression; two packs with equal digests teach the same.
    """
    digests = {}
    with zipfile.ZipFile(path) as archive:
        for row in sorted(read_table(archive.read("labels.tsv").decode("utf-8")), key=lambda r: r["file"]):
            picture = Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGBA")
            digest = digests.setdefault(row.get("vendor", path.stem), hashlib.sha256())
            digest.update(f"{row['file']} {picture.width}x{picture.height}\n".encode())
            digest.update(picture.tobytes())
    return {name: digest.hexdigest() for name, digest in sorted(digests.items())}


def table_digests(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".tsv"))
        return {f"{path.stem}/{name}": hashlib.sha256(archive.read(name)).hexdigest() for name in names}

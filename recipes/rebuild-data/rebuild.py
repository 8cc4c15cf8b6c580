"""Rebuild the clean data packs of ferroclip from public npm and Debian packages.

    python3 -m venv venv && venv/bin/pip install -r recipes/rebuild-data/requirements.txt
    venv/bin/python recipes/rebuild-data/rebuild.py --out data

Writes emoji_train.zip, openclipart.zip and CREDITS.md. See README.md for what is and what
is not rebuilt. Needs Python 3.11, `npm` and `apt-get` (or the packages put into the cache by hand).
"""

import argparse
import sys
import tomllib
from pathlib import Path

try:
    import emoji
    import openclipart
    from fetch import FetchError, fetch, open_deb, open_npm
    from pack import pixel_digests, read_table, table_digests, write_pack
except ImportError as error:
    sys.exit(f"{error}; first: pip install -r {Path(__file__).with_name('requirements.txt')}")

HERE = Path(__file__).resolve().parent
PACKS = ("emoji_train", "openclipart")
CLOTHING = ("clothing10_fewshot is skipped: no npm, Debian or PyPI package that carries it is known;"
            " it comes from https://github.com/alexeygrigorev/clothing-dataset-small (CC0)")


def build_emoji(sources: dict, cache: Path) -> tuple[dict, dict]:
    opened: dict[str, dict[str, bytes]] = {}

    def open_package(key: str) -> dict[str, bytes]:
        if key not in opened:
            opened[key] = open_npm(fetch(sources["packages"][key], cache))
        return opened[key]

    rows = read_table((HERE / "emoji_rows.tsv").read_text("utf-8"))
    return emoji.build(rows, sources, open_package)


def build_openclipart(sources: dict, cache: Path) -> tuple[dict, dict]:
    pictures, texts = (fetch(sources["packages"][f"openclipart-{kind}"], cache) for kind in ("png", "svg"))
    rows = read_table((HERE / "openclipart_rows.tsv").read_text("utf-8"))
    return openclipart.build(rows, open_deb(pictures), open_deb(texts))


def credits_text(sources: dict) -> str:
    lines = ["# Credits", "", "Ship these lines with weights trained on the packs.", "",
             "| pictures or texts | licence | credit |", "|---|---|---|"]
    for vendor, source in sources["vendors"].items():
        lines.append(f"| emoji_train: {vendor} | {source['licence']} | {source['credit']} |")
    lines.append("| emoji names and keywords | MIT, Unicode licence | emojibase (c) Miles Johnson;"
                 " emoji-data (c) Cal Henderson; Unicode CLDR (c) Unicode, Inc. |")
    lines.append("| openclipart | public domain | none required (Open Clip Art Library) |")
    return "\n".join(lines) + "\n"


def report(path: Path) -> bool:
    """Compares the rebuilt pack with the digests of the original one, style by style."""
    pinned = tomllib.loads((HERE / "digests.toml").read_text("utf-8"))
    equal = True
    for what, digest in {**pixel_digests(path), **table_digests(path)}.items():
        same = digest == pinned["sha256"].get(what)
        equal &= same
        kind = "text" if what.endswith(".tsv") else "pixels"
        print(f"  {what}: {kind} {'equal to' if same else 'DIFFERENT from'} the original pack's")
    return equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where the packs are written")
    parser.add_argument("--cache", type=Path, help="downloads (about 320 MB; default: OUT/cache)")
    parser.add_argument("--pack", choices=PACKS, action="append", help="only this pack (may be repeated)")
    args = parser.parse_args()
    sources = tomllib.loads((HERE / "sources.toml").read_text("utf-8"))
    args.out.mkdir(parents=True, exist_ok=True)
    builders = {"emoji_train": build_emoji, "openclipart": build_openclipart}
    equal = True
    for name in args.pack or PACKS:
        try:
            pictures, tables = builders[name](sources, args.cache or args.out / "cache")
        except FetchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        path = args.out / f"{name}.zip"
        write_pack(path, pictures, tables)
        print(f"{path}: {len(pictures)} pictures", flush=True)
        equal &= report(path)
    (args.out / "CREDITS.md").write_text(credits_text(sources), encoding="utf-8")
    print(CLOTHING)
    return 0 if equal else 2


if __name__ == "__main__":
    sys.exit(main())

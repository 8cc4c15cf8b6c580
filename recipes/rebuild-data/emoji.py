"""emoji_train: the same concepts in seven drawing styles, from eight npm packages."""

import io
import json
import re
from collections.abc import Iterator

import resvg_py
from PIL import Image

from pack import png, table_text

SIZE = 64
LANGUAGES = ("de", "es", "fr", "ja", "zh")
BY_RULE = "="  # a cell of emoji_rows.tsv: the picture is found by the rule of its vendor


def hex_key(name: str) -> str:
    """Code points in lower case without the variation selector, in which the packages differ."""
    return "-".join(part for part in name.lower().split("-") if part != "fe0f")


def slug(label: str) -> str:
    """The name that the icon sets give to most labels."""
    plain = label.lower().replace("’", "").replace("'", "").replace("ñ", "n")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def build(rows: list[dict[str, str]], sources: dict, open_package) -> tuple[dict, dict]:
    """Pictures and tables of the pack. `rows` says which concept is there in which style."""
    classes = {c["hex"]: c for c in class_table([row["hex"] for row in rows], open_package)}
    pictures, labels = {}, []
    for vendor, source in sources["vendors"].items():
        find = FINDERS[source["kind"]](source, open_package(source["package"]))
        for row in rows:
            if row[vendor]:
                concept = classes[row["hex"]]
                file = f"{vendor}/{row['hex']}.png"
                pictures[file] = find(concept, row[vendor])
                labels.append(label_row(file, vendor, concept))
    return pictures, {"labels.tsv": table_text(labels), "classes.tsv": table_text(list(classes.values()))}


def label_row(file: str, vendor: str, concept: dict[str, str]) -> dict[str, str]:
    return {
        "file": file, "hex": concept["hex"], "vendor": vendor, "label": concept["label"],
        "category": concept["category"], "subcategory": concept["subcategory"],
        "keywords": concept["tags"].replace(",", ", "),
    }


def class_table(hexes: list[str], open_package) -> Iterator[dict[str, str]]:
    """Names and tags from emojibase, short names and categories from emoji-datasource."""
    files = open_package("emojibase-data")
    words = {language: {hex_key(e["hexcode"]): e for e in json.loads(files[f"package/{language}/data.json"])}
             for language in ("en", *LANGUAGES)}
    listed = json.loads(open_package("emoji-datasource-google")["package/emoji.json"])
    data = {hex_key(e["unified"]): e for e in listed}
    for key in hexes:
        english = words["en"][key]
        yield {
            "hex": key, "label": english["label"],
            "short_names": ",".join(data[key]["short_names"]), "tags": ",".join(english.get("tags", [])),
            "category": data[key]["category"], "subcategory": data[key]["subcategory"],
            **{language: " ".join(words[language][key]["label"].split()) for language in LANGUAGES},
        }


def files_by_hex(source: dict, files: dict[str, bytes]) -> dict[str, bytes]:
    """The folder's pictures; of two names for the same code points the first one counts."""
    prefix = source["folder"] + "/"
    by_hex: dict[str, bytes] = {}
    for name in sorted(name for name in files if name.startswith(prefix)):
        by_hex.setdefault(hex_key(name.removeprefix(prefix).rsplit(".", 1)[0]), files[name])
    return by_hex


def file_finder(source: dict, files: dict[str, bytes]):
    """Pictures that are 64x64 PNG already: copied byte for byte."""
    by_hex = files_by_hex(source, files)
    return lambda concept, _cell: by_hex[concept["hex"]]


def webp_finder(source: dict, files: dict[str, bytes]):
    """256x256 WebP, made smaller with PIL's Lanczos filter."""
    by_hex = files_by_hex(source, files)

    def find(concept: dict[str, str], _cell: str) -> bytes:
        large = Image.open(io.BytesIO(by_hex[concept["hex"]])).convert("RGBA")
        return png(large.resize((SIZE, SIZE), Image.Resampling.LANCZOS))

    return find


def icon_finder(_source: dict, files: dict[str, bytes]):
    """Iconify's SVG icons: by code point, else by the label's slug, else as the row's cell says."""
    icons = json.loads(files["package/icons.json"])
    by_hex = {hex_key(k): v for k, v in json.loads(files.get("package/chars.json", b"{}")).items()}

    def find(concept: dict[str, str], cell: str) -> bytes:
        name = cell if cell != BY_RULE else by_hex.get(concept["hex"]) or slug(concept["label"])
        drawn = bytes(resvg_py.svg_to_bytes(svg_string=icon_svg(icons, name)))
        return png(Image.open(io.BytesIO(drawn)).convert("RGBA"))

    return find


def icon_svg(icons: dict, name: str) -> str:
    """The icon as an SVG of 64x64, centred where it is not square."""
    icon = icons["icons"].get(name)
    if icon is None:
        alias = icons["aliases"][name]
        icon = {**icons["icons"][alias["parent"]], **alias}
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' width="{SIZE}" height="{SIZE}" viewBox="{box}">{icon["body"]}</svg>')


FINDERS = {"file": file_finder, "webp": webp_finder, "icons": icon_finder}

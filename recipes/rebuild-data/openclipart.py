"""openclipart: public domain clip art from two Debian packages, cropped to its content."""

import re
import xml.etree.ElementTree as ElementTree

from PIL import Image

from pack import png, table_text

LONGEST_SIDE = 128
BY_RULE = "="  # a cell of openclipart_rows.tsv: the text is that of the SVG, tidied by the rules below
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
NO_KEYWORD = re.compile(r"hash.*|\(?0x[0-9a-f]+\)?|unsorted|architetto francesco rollandin")

# Three pictures of the package (a stop sign of 20990x29700 is there twice) have more pixels than Pillow's
# guard against hostile files lets pass. The packages are pinned by checksum: no guard is needed here.
Image.MAX_IMAGE_PIXELS = None


def build(rows: list[dict[str, str]], png_package, svg_package) -> tuple[dict, dict]:
    """Pictures and tables of the pack. `rows` lists the files and the texts that differ from the SVG's."""
    pictures, labels = {}, []
    for row in rows:
        stem = row["file"].removesuffix(".png")
        with png_package.extractfile(f"./usr/share/openclipart/png/{stem}.png") as file:
            pictures[row["file"]] = cropped(Image.open(file))
        with svg_package.extractfile(f"./usr/share/openclipart/svg/{stem}.svg") as file:
            texts = svg_texts(file.read())
        labels.append({key: texts[key] if cell == BY_RULE else cell for key, cell in row.items()})
    return pictures, {"labels.tsv": table_text(labels)}


def cropped(picture: Image.Image) -> bytes:
    """Cut to what is not transparent, then at most 128 pixels long (PIL's Lanczos filter)."""
    picture = picture.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").getbbox())
    scale = min(1, LONGEST_SIDE / max(picture.size))
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    opaque = picture.getchannel("A").getextrema() == (255, 255)
    return png(picture.convert("RGB") if opaque else picture)


def svg_texts(svg: bytes) -> dict[str, str]:
    """Title, keywords and description from the metadata of the SVG."""
    root = ElementTree.fromstring(svg)
    titles, descriptions = (elements_text(root, tag) for tag in ("title", "description"))
    return {
        "title": titles[0] if titles else "",
        "keywords": ",".join(keywords(root)),
        "description": next((text for text in descriptions if text), ""),
    }


def elements_text(root: ElementTree.Element, tag: str) -> list[str]:
    return [" ".join((element.text or "").split()) for element in root.iter(DUBLIN_CORE + tag)]


def keywords(root: ElementTree.Element) -> list[str]:
    """Each keyword once, in lower case, without the traces of a faulty upload form."""
    found = [(item.text or "") for subject in root.iter(DUBLIN_CORE + "subject")
             for item in subject.iter() if item.tag.endswith("}li")]
    tidy = (" ".join(word.replace("_", " ").lower().split()) for word in found)
    return list(dict.fromkeys(word for word in tidy if word and not NO_KEYWORD.fullmatch(word)))

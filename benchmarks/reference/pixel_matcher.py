"""The floor of benchmark B: nearest neighbour on 16x16 pixels, which knows nothing but pixels.

    python benchmarks/reference/pixel_matcher.py DATA/emoji_train.zip [--json OUT] [--size 16]

A class's score is that of its nearest training picture; a class without one comes last, so it can never be right.
Tried are backgrounds (one colour, or black and white side by side, which shows the alpha), distances, and the picture as it comes
("whole") or cut to its visible box and centred on a square ("cut"). All are printed. No augmentation, no choice on other data:
the best figure is picked on the test rows themselves, which flatters it.
"""

import argparse
import itertools
import json

import numpy as np
from PIL import Image

import emoji

BACKGROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
VIEWS = {"white": ["white"], "grey": ["grey"], "black": ["black"], "black+white": ["black", "white"]}
VISIBLE_ALPHA = 16


def cut_out(picture: Image.Image) -> Image.Image:
    """The visible box of a picture, centred on the smallest transparent square."""
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > VISIBLE_ALPHA)).getbbox()
    part = picture.crop(box or (0, 0, *picture.size))
    side = max(part.size)
    square = Image.new("RGBA", (side, side))
    square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return square


def pixels(pictures: list, size: int, view: str) -> np.ndarray:
    """One row a picture: its small versions on each background of the view, in 0 .. 1."""
    rows = []
    for picture in pictures:
        versions = [emoji.on_background(picture, BACKGROUNDS[name]) for name in VIEWS[view]]
        small = [version.resize((size, size), Image.Resampling.BILINEAR) for version in versions]
        rows.append(np.concatenate([np.asarray(x, dtype=np.float32).ravel() / 255 for x in small]))
    return np.stack(rows)


def similarity(test: np.ndarray, train: np.ndarray, distance: str) -> np.ndarray:
    """Larger is nearer: minus the squared L2 distance, or the cosine about the mean training picture or about each picture's own mean."""
    if distance == "l2":
        return 2 * test @ train.T - (train**2).sum(1) - (test**2).sum(1)[:, None]
    if distance == "cosine":
        mean = train.mean(0)
        test, train = test - mean, train - mean
    else:
        test, train = (x - x.mean(1, keepdims=True) for x in (test, train))
    test, train = (x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-6) for x in (test, train))
    return test @ train.T


def class_scores(scores: np.ndarray, train_class: np.ndarray, classes: int) -> np.ndarray:
    """The best picture of each class; minus infinity for a class without pictures."""
    out = np.full((scores.shape[0], classes), -np.inf, dtype=np.float32)
    for column, owner in enumerate(train_class):
        np.maximum(out[:, owner], scores[:, column], out=out[:, owner])
    return out


def top_k(scores: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Share of rows with fewer than k classes at or above the right one; ties count against."""
    right = scores[np.arange(len(truth)), truth]
    ahead = (scores >= right[:, None]).sum(1) - 1
    return float(100 * ((ahead < k) & np.isfinite(right)).mean())


def run(pack: emoji.Pack, size: int) -> list:
    """Every combination, printed as it comes."""
    number = {label: index for index, label in enumerate(pack.classes)}
    train_class = np.array([number[row.label] for row in pack.train])
    truth = np.array([number[row.label] for row in pack.test])
    results = []
    for canvas, prepare in (("whole", lambda picture: picture), ("cut", cut_out)):
        test_pictures, train_pictures = ([prepare(row.picture) for row in rows] for rows in (pack.test, pack.train))
        for view, distance in itertools.product(VIEWS, ("l2", "cosine", "correlation")):
            test, train = pixels(test_pictures, size, view), pixels(train_pictures, size, view)
            scores = class_scores(similarity(test, train, distance), train_class, len(pack.classes))
            result = {"canvas": canvas, "background": view, "distance": distance}
            result |= {"top1": top_k(scores, truth, 1), "top5": top_k(scores, truth, 5)}
            results.append(result)
            print(describe(result), flush=True)
    return results


def describe(result: dict) -> str:
    return "{canvas:6} {background:12} {distance:12} top-1 {top1:5.1f}  top-5 {top5:5.1f}".format(**result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zip")
    parser.add_argument("--json")
    parser.add_argument("--size", type=int, default=16)
    args = parser.parse_args()

    pack = emoji.read(args.zip)
    seen = {row.label for row in pack.train}
    known = sum(row.label in seen for row in pack.test)
    print(f"train {len(pack.train)}, test {len(pack.test)} ({known} with a label seen in train), classes {len(pack.classes)}")
    results = run(pack, args.size)
    best = {c: max((r for r in results if r["canvas"] == c), key=lambda r: (r["top1"], r["top5"])) for c in ("whole", "cut")}
    for result in best.values():
        print("best:", describe(result))
    if args.json:
        document = {"size": args.size, "n": len(pack.test), "classes": len(pack.classes), "best": best, "all": results}
        with open(args.json, "w") as file:
            json.dump(document, file, indent=1)


if __name__ == "__main__":
    main()

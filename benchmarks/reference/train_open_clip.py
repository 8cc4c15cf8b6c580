"""Benchmark B: pip's open_clip trained from the same training file as ferroclip.

    python benchmarks/reference/train_open_clip.py benchmarks/reference/held-out-style.toml --out OUT
        [--seed N] [--multi-positive] [--threads 1] [--eval-every STEPS]

From the file come the model's config, the data, the captions, the augmentation, the optimiser's settings, the batch and the number of
samples seen; a field that this script does not know is refused. The model is `open_clip.model.CLIP`, the loss
`open_clip.loss.ClipLoss`, texts are padded to the context length, the optimiser is `torch.optim.AdamW`: what a user of open_clip gets.
Of the column `keywords` one to three are drawn, in random order, joined by ", ". Vocabularies below 49,408 entries keep the first
merges of OpenAI's.

Scored are the fluent 3-D drawings without Flags and Component over the union of all labels, with the template "{}": with alpha
dropped as open_clip's own preprocessing does ("plain", the figure that counts), and on white.

OUT gets `metrics.jsonl` (steps and evaluations), `result.json`, and the model in open_clip's directory layout.
"""

import argparse
import gzip
import json
import math
import random
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

import emoji
from augment import Augment

MAX_KEYWORDS = 3
BYTE_SYMBOLS, SPECIALS = 512, 2
PREPROCESS = PreprocessCfg()
PRESETS = Path(__file__).resolve().parents[2] / "crates/ferroclip/src/presets"
# Drawings of the five styles that train.
EPOCH_LEN = 6213


def tokenizer_of(text_cfg: dict) -> SimpleTokenizer:
    """open_clip's tokenizer, with the first merges only where the vocabulary is shorter than OpenAI's."""
    context, vocab = text_cfg.get("context_length", 77), text_cfg.get("vocab_size", 49408)
    if vocab == 49408:
        return SimpleTokenizer(context_length=context)
    lines = gzip.open(default_bpe()).read().decode("utf-8").split("\n")
    short = "\n".join(lines[: 1 + vocab - BYTE_SYMBOLS - SPECIALS])
    with tempfile.NamedTemporaryFile(suffix=".txt.gz") as file:
        file.write(gzip.compress(short.encode("utf-8")))
        file.flush()
        tokenizer = SimpleTokenizer(file.name, context_length=context)
    assert tokenizer.vocab_size == vocab, tokenizer.vocab_size
    return tokenizer


@dataclass
class Recipe:
    """What both programs read from a ferroclip training file."""

    zip: str
    captions: list
    model_cfg: dict
    augment: Augment
    batch_size: int
    steps: int
    seed: int
    lr: float
    weight_decay: float
    warmup: int
    clip_norm: float

    @staticmethod
    def read(path: Path) -> "Recipe":
        file = tomllib.loads(path.read_text())
        (data,), model, run, optimizer = file["data"]["train"], file["model"], file["run"], file["optimizer"]
        check("data.train", data, {"path", "captions", "label", "filter"})
        check("model", model, {"config", "templates"})
        check("run", run, {"epochs", "batch_size", "seed", "log_every", "eval_every", "checkpoint_every", "keep_last", "out"})
        check("optimizer", optimizer, {"lr", "weight_decay", "warmup_steps", "clip_norm"})
        assert data["filter"] == [f"vendor!={style}" for style in emoji.HELD_OUT_STYLES], data["filter"]
        config = Path(model["config"])
        config = config if config.suffix == ".json" else PRESETS / f"{config}.json"
        # ferroclip takes whole batches of all visits.
        steps = int(run["epochs"] * EPOCH_LEN / run["batch_size"])
        sizes = {"batch_size": run["batch_size"], "steps": steps, "seed": run["seed"]}
        rates = {"lr": optimizer["lr"], "weight_decay": optimizer["weight_decay"]}
        rates |= {"warmup": optimizer["warmup_steps"], "clip_norm": optimizer["clip_norm"]}
        model_cfg = json.loads(config.read_text())
        return Recipe(data["path"], data["captions"], model_cfg, Augment.of(file.get("image", {})), **sizes, **rates)


def check(section: str, found: dict, known: set) -> None:
    assert not found.keys() - known, f"[{section}]: {found.keys() - known} is not understood here"


def draw_caption(row: emoji.Row, captions: list, rng: random.Random) -> str:
    column = rng.choice(captions if row.keywords else [c for c in captions if c != "keywords"])
    if column != "keywords":
        return getattr(row, column)
    most = min(MAX_KEYWORDS, len(row.keywords))
    return ", ".join(rng.sample(row.keywords, rng.randint(1, most)))


class Batches:
    """Endless shuffled batches; an epoch's last pictures share a batch with the next epoch's first."""

    def __init__(self, rows: list, recipe: Recipe, tokenizer: SimpleTokenizer):
        self.rows, self.recipe, self.tokenizer = rows, recipe, tokenizer
        self.size = recipe.model_cfg["vision_cfg"]["image_size"]
        self.rng = random.Random(recipe.seed)
        self.order = []

    def next(self) -> tuple:
        chosen = []
        while len(chosen) < self.recipe.batch_size:
            if not self.order:
                self.order = self.rng.sample(range(len(self.rows)), len(self.rows))
            chosen.append(self.rows[self.order.pop()])
        views = [normalise(self.recipe.augment.view(row.picture, self.size, self.rng)) for row in chosen]
        return torch.stack(views), self.tokenizer([draw_caption(row, self.recipe.captions, self.rng) for row in chosen])


def normalise(picture: Image.Image) -> torch.Tensor:
    """A picture of the right size to a tensor: the end of open_clip's own transform."""
    return TF.normalize(TF.to_tensor(picture), PREPROCESS.mean, PREPROCESS.std)


def multi_positive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows with equal texts are positives of each other."""
    logits = scale * image @ text.T
    equal = (ids[:, None] == ids[None]).all(-1).to(logits.dtype)
    target = equal / equal.sum(1, keepdim=True)  # symmetric equality: the same for columns
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def optimiser(model: CLIP, recipe: Recipe) -> torch.optim.AdamW:
    """ferroclip's groups: decay on weights of rank 2 and more but for position tables and the class embedding."""

    def decays(name: str, tensor: torch.Tensor) -> bool:
        return tensor.ndim >= 2 and not name.endswith(("positional_embedding", "class_embedding"))

    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": recipe.weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6)


def learning_rate(step: int, total: int, recipe: Recipe) -> float:
    """open_clip's `cosine_lr`."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    return 0.5 * recipe.lr * (1 + math.cos(math.pi * (step - recipe.warmup) / max(total - recipe.warmup, 1)))


class Evaluation:
    """The held-out style over all labels."""

    def __init__(self, pack: emoji.Pack, size: int, tokenizer: SimpleTokenizer, limit: int | None):
        rows = pack.test[:limit]
        transform = image_transform_v2(PreprocessCfg(size=size), is_train=False)
        white = (255, 255, 255)
        self.pictures = {
            "plain": torch.stack([transform(row.picture) for row in rows]),
            "white": torch.stack([transform(emoji.on_background(row.picture, white)) for row in rows]),
        }
        number = {label: index for index, label in enumerate(pack.classes)}
        self.truth = torch.tensor([number[row.label] for row in rows])
        self.ids = tokenizer(pack.classes)

    @torch.no_grad()
    def score(self, model: CLIP) -> dict:
        model.eval()
        texts = torch.cat([model.encode_text(ids, normalize=True) for ids in self.ids.split(256)])
        scores = {name: self._top(model, pictures, texts) for name, pictures in self.pictures.items()}
        model.train()
        return {**scores.pop("plain"), **scores}

    def _top(self, model: CLIP, pictures: torch.Tensor, texts: torch.Tensor) -> dict:
        images = torch.cat([model.encode_image(part, normalize=True) for part in pictures.split(256)])
        cosines = images @ texts.T
        right = cosines.gather(1, self.truth[:, None])
        ahead = (cosines >= right).sum(1) - 1  # ties count against
        return {f"top{k}": round((ahead < k).float().mean().item() * 100, 2) for k in (1, 5)}


def train(model: CLIP, batches: Batches, evaluation: Evaluation, args: argparse.Namespace) -> dict:
    recipe = batches.recipe
    total = recipe.steps
    steps, plain_loss = optimiser(model, recipe), ClipLoss()
    start, data_time, eval_time, eval_cpu = time.perf_counter(), 0.0, 0.0, 0.0
    cpu_start = time.process_time()
    with open(args.out / "metrics.jsonl", "w") as log:
        for step in range(total):
            for group in steps.param_groups:
                group["lr"] = learning_rate(step, total, recipe)
            before = time.perf_counter()
            images, ids = batches.next()
            data_time += time.perf_counter() - before
            image, text, scale = model(images, ids)
            loss = multi_positive_loss(image, text, scale, ids) if args.multi_positive else plain_loss(image, text, scale)
            steps.zero_grad()
            loss.backward()
            if recipe.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            steps.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            done, seconds = step + 1, time.perf_counter() - start - eval_time
            record = {"step": done, "samples": done * recipe.batch_size, "seconds": round(seconds, 2), "loss": round(loss.item(), 5)}
            if done % args.log_every == 0 or done == total:
                rates = {"data_seconds": round(data_time, 2), "samples_per_s": round(record["samples"] / seconds, 2)}
                # Free of what else runs on the machine; the sum over threads.
                rates["cpu_seconds"] = round(time.process_time() - cpu_start - eval_cpu, 2)
                report(log, record | {"logit_scale": round(model.logit_scale.item(), 4)} | rates)
            if done == total or (args.eval_every and done % args.eval_every == 0):
                before, cpu_before = time.perf_counter(), time.process_time()
                scores = evaluation.score(model)
                eval_time += time.perf_counter() - before
                eval_cpu += time.process_time() - cpu_before
                report(log, {"step": done, "samples": record["samples"], "seconds": record["seconds"], "eval": scores})
    return {"steps": total, **record, **rates, "eval_seconds": round(eval_time, 2), **scores}


def report(log, record: dict) -> None:
    line = json.dumps(record)
    log.write(line + "\n")
    log.flush()
    print(line, flush=True)


def save_model(model: CLIP, model_cfg: dict, size: int, out: Path) -> None:
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"size": size, "mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "open_clip_model.safetensors")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("recipe", type=Path, help="a ferroclip training file")
    add("--out", type=Path, required=True)
    add("--seed", type=int, help="in place of the file's")
    add("--multi-positive", action="store_true", help="equal texts are positives of each other, as in ferroclip; open_clip has no such loss")
    add("--eval-every", type=int, default=0, help="steps; 0 for the end only")
    add("--eval-limit", type=int, help="score the first rows only, for trials")
    add("--log-every", type=int, default=10)
    add("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = parse()
    recipe = Recipe.read(args.recipe)
    if args.seed is not None:
        recipe.seed = args.seed
    torch.set_num_threads(args.threads)
    torch.manual_seed(recipe.seed)
    model_cfg = recipe.model_cfg
    size = model_cfg["vision_cfg"]["image_size"]
    args.out.mkdir(parents=True, exist_ok=True)

    pack = emoji.read(recipe.zip)
    assert len(pack.train) == EPOCH_LEN, len(pack.train)
    tokenizer = tokenizer_of(model_cfg["text_cfg"])
    model = CLIP(**model_cfg).train()
    batches = Batches(pack.train, recipe, tokenizer)
    evaluation = Evaluation(pack, size, tokenizer, args.eval_limit)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(pack.train)} training pictures, {len(evaluation.truth)} test pictures, {len(pack.classes)} classes, {n_parameters:,} parameters")

    result = train(model, batches, evaluation, args)
    save_model(model, model_cfg, size, args.out)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    document = {"result": result, "parameters": n_parameters, "settings": settings, "augment": vars(recipe.augment), "model_cfg": model_cfg}
    (args.out / "result.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

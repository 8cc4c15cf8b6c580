"""The lines of the comparison: what ferroclip runs, and the settings of each peer that the best is taken of."""

from dataclasses import dataclass, field

# Least cosine to PyTorch in f32. OpenCV resamples otherwise than PIL, whence the wider one of pictures from files.
BARS = {"f32": 0.99999, "bf16": 0.9999, "int8": 0.999, "jpegs": 0.99}
HINTS = ("LATENCY", "THROUGHPUT")
CAPTIONS = 5000
# A peer that runs 77 rows whatever the caption needs not run all of them.
PADDED_CAPTIONS = 320
FULL_CONTEXT, SHORT_CONTEXT = 77, 32


@dataclass
class Case:
    """One comparison. `peers` maps a peer to its settings; `trial` is laid over them while the best is found."""

    line: str
    title: str
    model: str
    what: str
    batch: int
    precision: str
    must: float
    peers: dict
    trial: dict = field(default_factory=dict)
    captions: int = 0

    @property
    def name(self) -> str:
        return f"{self.line}: {self.title}"


def settings(peer: str, *grids: dict) -> list:
    """Every combination of the options of each grid."""
    out = []
    for grid in grids:
        rows = [{"peer": peer}]
        for key, values in grid.items():
            rows = [row | {key: value} for row in rows for value in values]
        out += rows
    return out


def image(line: str, model: str, batch: int, precision: str, must: float) -> Case:
    chunk = [None, 8] if batch > 8 else [None]
    common = {"what": ["image"], "batch": [batch], "chunk": chunk}
    float_onnx = common | {"file": ["image.onnx"]}
    peers = {
        # Its best bf16 misses the cosine on some models: f32 counts as well then.
        "pytorch": settings("pytorch", common | {
            "precision": ["bf16", "autocast", "f32"] if precision == "bf16" else ["f32"], "compiled": [False, True]}),
        "onnxruntime": settings("onnxruntime", float_onnx),
        "openvino": settings("openvino", float_onnx | {"precision": [precision], "hint": HINTS}),
    }
    if precision == "int8":
        # The hint is for what is not quantised.
        openvino = common | {"file": ["image-int8.xml"], "precision": ["f32", "bf16"], "hint": HINTS}
        peers = {
            "onnxruntime": settings("onnxruntime", common | {"file": ["image-int8.onnx"]}),
            "openvino": settings("openvino", openvino),
        }
    return Case(line, f"{model} image {precision}, batch {batch}", model, "image", batch, precision, must, peers)


# A caption has about a quarter of the rows that a picture has: ferroclip is at its best with as many of them together.
OUR_TEXTS = 128


def text_padded(line: str, precision: str, must: float) -> Case:
    common = {"what": ["text"], "batch": [32], "captions": [PADDED_CAPTIONS], "chunk": [8, 32], "warm_up": [1]}
    onnx = common | {"file": ["text.onnx"]}
    peers = {
        "pytorch": settings("pytorch", common | {"precision": ["bf16", "autocast", "f32"] if precision == "bf16" else ["f32"]}),
        "onnxruntime": settings("onnxruntime", onnx),
        "openvino": settings("openvino", onnx | {"precision": [precision], "hint": HINTS}),
    }
    title = f"ViT-B-32 text {precision}, captions, peer at 77 rows"
    return Case(line, title, "ViT-B-32", "text", OUR_TEXTS, precision, must, peers, {"captions": 64}, CAPTIONS)


def text_dynamic(line: str, precision: str, must: float) -> Case:
    common = {"what": ["text"], "batch": [32], "captions": [CAPTIONS], "dynamic": [True], "warm_up": [1],
              "file": ["text-dynamic.onnx"], "chunk": [16, 32, 64, 128]}
    peers = {
        "onnxruntime": settings("onnxruntime", common),
        "openvino": settings("openvino", common | {"precision": [precision], "hint": HINTS}),
    }
    title = f"ViT-B-32 text {precision}, captions, peer sorted and trimmed"
    # The best batch is found on all captions: of fewer, a large batch has to be filled up with longer texts.
    return Case(line, title, "ViT-B-32", "text", OUR_TEXTS, precision, must, peers, {}, CAPTIONS)


def training(line: str, precision: str, context_length: int, must: float) -> Case:
    grid = {"precision": [precision], "what": ["train"], "batch": [32], "captions": [CAPTIONS], "warm_up": [1],
            "context_length": [context_length], "fused": [True, False], "compiled": [False, True]}
    title = f"ViT-B-32 training step {precision}, batch 32, peer with {context_length} rows"
    peers = {"pytorch": settings("pytorch-training", grid)}
    return Case(line, title, "ViT-B-32", "train", 32, precision, must, peers, {}, CAPTIONS)


def jpegs(line: str, n: int, must: float) -> Case:
    grid = {"what": ["image"], "batch": [32], "file": ["image.onnx"], "precision": ["f32"], "hint": HINTS, "chunk": [None],
            "n": [n], "loaders": [0, 1, 2], "decoder": ["PIL", "OpenCV"], "warm_up": [0]}
    title = f"ViT-B-32, {n} JPEGs of 640 x 480 to embeddings on disk, f32"
    return Case(line, title, "ViT-B-32", "jpegs", 32, "f32", must, {"openvino": settings("jpegs", grid)}, {"n": min(n, 192)})


def cases(n_jpegs: int) -> list:
    return [
        image("A", "ViT-B-32", 32, "f32", 1.05),
        image("A", "ViT-B-32", 8, "f32", 1.05),
        image("B", "ViT-B-32", 1, "f32", 1.10),
        image("C", "ViT-B-32", 32, "bf16", 1.10),
        image("D", "ViT-B-32", 32, "int8", 1.0),
        text_padded("E1", "f32", 5.0),
        text_dynamic("E2", "f32", 1.15),
        text_padded("F", "bf16", 4.0),
        text_dynamic("F", "bf16", 1.1),
        training("G", "f32", FULL_CONTEXT, 3.0),
        training("G", "f32", SHORT_CONTEXT, 2.0),
        training("H", "bf16", FULL_CONTEXT, 2.0),
        training("H", "bf16", SHORT_CONTEXT, 1.5),
        jpegs("I", n_jpegs, 1.1),
        image("J", "ViT-B-16", 8, "f32", 1.03),
        image("J", "ViT-L-14", 8, "f32", 1.03),
        image("R", "RN50", 16, "f32", 0.9),
        image("S", "ViT-B-16-SigLIP", 8, "f32", 1.03),
    ]


def image_gflop(config: dict) -> float | None:
    """Multiplications and additions of a Vision Transformer for one picture, 1e9; none where the config is another tower's."""
    vision = config["vision_cfg"]
    if "patch_size" not in vision or isinstance(vision["layers"], list):
        return None
    width, layers, patch = vision["width"], vision["layers"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    rows = patches + 1
    block = 2 * rows * 12 * width**2 + 4 * rows**2 * width
    return (layers * block + 2 * patches * 3 * patch**2 * width + 2 * width * config["embed_dim"]) / 1e9

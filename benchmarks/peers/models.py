"""The models in the forms that the peers read, each made once in the work folder.

    python models.py MODEL_DIR FORM...      (run.py calls it)
"""

import os
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn.functional import normalize

import inputs


def load(folder: Path, context_length: int | None = None):
    model = open_clip.create_model(
        f"local-dir:{folder}", require_pretrained=True, force_context_length=context_length
    )
    return model.float().eval()


def config(folder: Path) -> dict:
    return open_clip.get_model_config(folder.name)


def transform(folder: Path):
    return image_transform_v2(PreprocessCfg(size=config(folder)["vision_cfg"]["image_size"]), is_train=False)


def pixels(folder: Path, pictures: Path) -> np.ndarray:
    step = transform(folder)
    return torch.stack([step(Image.open(path)) for path in sorted(pictures.iterdir())]).numpy()


class ImageTower(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.encode_image(x, normalize=True)


class TextTower(ImageTower):
    def forward(self, x):
        return self.model.encode_text(x, normalize=True)


class DynamicTextTower(torch.nn.Module):
    """transformers' text tower with the weights of an open_clip model: it takes any length."""

    def __init__(self, model, cfg: dict):
        super().__init__()
        self.model = hugging_face_text(model, cfg)

    def forward(self, x):
        return normalize(self.model(input_ids=x).text_embeds, dim=-1)


def hugging_face_text(model, cfg: dict):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    text = cfg["text_cfg"]
    tower = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=text["vocab_size"], hidden_size=text["width"], intermediate_size=4 * text["width"],
        projection_dim=cfg["embed_dim"], num_hidden_layers=text["layers"], num_attention_heads=text["heads"],
        max_position_embeddings=text["context_length"], bos_token_id=49406, eos_token_id=49407,
        hidden_act="quick_gelu" if cfg.get("quick_gelu") else "gelu",
    ))
    missing, left = tower.load_state_dict(renamed(model.state_dict(), text["layers"]), strict=False)
    assert not left and all("position_ids" in name for name in missing), (missing, left)
    return tower.eval()


def renamed(weights: dict, layers: int) -> dict:
    """The text tower's tensors under the names of transformers."""
    out = {
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
        "text_projection.weight": weights["text_projection"].T,
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
             "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for kind in ("weight", "bias"):
        out[f"text_model.final_layer_norm.{kind}"] = weights[f"ln_final.{kind}"]
        for i in range(layers):
            ours, theirs = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
            for name, new in parts.items():
                out[f"{theirs}.{new}.{kind}"] = weights[f"{ours}.{name}.{kind}"]
            for name, part in zip("qkv", weights[f"{ours}.attn.in_proj_{kind}"].chunk(3)):
                out[f"{theirs}.self_attn.{name}_proj.{kind}"] = part
    return out


def save_onnx(module, example: torch.Tensor, path: Path, dynamic: dict) -> None:
    shapes = {"x": {axis: torch.export.Dim(name, min=1, max=most) for axis, (name, most) in dynamic.items()}}
    with torch.no_grad():
        torch.onnx.export(module.eval(), (example,), path, dynamo=True, input_names=["x"], output_names=["y"],
                          dynamic_shapes=shapes, verbose=False)


def image_onnx(folder: Path, path: Path) -> None:
    size = config(folder)["vision_cfg"]["image_size"]
    save_onnx(ImageTower(load(folder)), torch.zeros(2, 3, size, size), path, {0: ("batch", 4096)})


def text_onnx(folder: Path, path: Path) -> None:
    ids = open_clip.get_tokenizer(folder.name)(["a cat", "a dog"])
    save_onnx(TextTower(load(folder)), ids, path, {0: ("batch", 4096)})


def dynamic_text_onnx(folder: Path, path: Path) -> None:
    ids = open_clip.get_tokenizer(folder.name)(["a cat", "a dog"])[:, :8]
    tower = DynamicTextTower(load(folder), config(folder))
    save_onnx(tower, ids, path, {0: ("batch", 4096), 1: ("length", 77)})


def image_int8_openvino(folder: Path, path: Path) -> None:
    """Post-training quantisation as NNCF does it for transformers."""
    import nncf
    import openvino as ov

    rows = pixels(folder, inputs.calibration_photos(folder.parents[1]))
    dataset = nncf.Dataset([row[None] for row in rows])
    model = ov.Core().read_model(form(folder, "image.onnx"))
    found = nncf.quantize(model, dataset, subset_size=len(rows), model_type=nncf.ModelType.TRANSFORMER)
    ov.save_model(found, path, compress_to_fp16=False)


def image_int8_onnx(folder: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Without VNNI, sums of products of full 8-bit weights would saturate.
    vnni = "vnni" in Path("/proc/cpuinfo").read_text()
    quantize_dynamic(form(folder, "image.onnx"), path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=not vnni)


@torch.inference_mode()
def image_reference(folder: Path, path: Path) -> None:
    """What PyTorch makes of the checked pictures in f32."""
    rows = torch.from_numpy(np.load(form(folder, "checked.npy")))
    model = load(folder)
    np.save(path, torch.cat([model.encode_image(part, normalize=True) for part in rows.split(32)]).numpy())


@torch.inference_mode()
def text_reference(folder: Path, path: Path) -> None:
    texts = inputs.captions(folder.parents[1], 5000).read_text(encoding="utf-8").splitlines()[: inputs.N_CHECKED]
    ids = open_clip.get_tokenizer(folder.name)(texts)
    model = load(folder)
    np.save(path, torch.cat([model.encode_text(part, normalize=True) for part in ids.split(32)]).numpy())


def checked_pixels(folder: Path, path: Path) -> None:
    np.save(path, pixels(folder, inputs.checked_photos(folder.parents[1])))


FORMS = {
    "image.onnx": image_onnx,
    "text.onnx": text_onnx,
    "text-dynamic.onnx": dynamic_text_onnx,
    "image-int8.xml": image_int8_openvino,
    "image-int8.onnx": image_int8_onnx,
    "checked.npy": checked_pixels,
    "image-reference.npy": image_reference,
    "text-reference.npy": text_reference,
}


def form(folder: Path, name: str) -> Path:
    """Where a form lies; makes it first where it is missing."""
    path = folder / "peers" / name
    if not path.exists():
        # In a folder of its own until it is whole: some forms are several files.
        part = folder / "peers" / f"{name}.part"
        part.mkdir(parents=True, exist_ok=True)
        FORMS[name](folder, part / name)
        for file in sorted(part.iterdir(), key=lambda file: file.name == name):
            os.replace(file, path.parent / file.name)
        part.rmdir()
        print(f"made {path}", file=sys.stderr, flush=True)
    return path


def main() -> None:
    for name in sys.argv[2:]:
        form(Path(sys.argv[1]), name)


if __name__ == "__main__":
    main()

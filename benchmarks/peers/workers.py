"""The peers, one class each, as processes that run rounds on demand.

    python workers.py '{"peer": "openvino", "model": ..., ...}'      (pairs.py calls it)

Prints {"ready": true} after warm-up; then answers each line of standard input: `round` with {"ms", "per_s"},
`check PATH` by writing the embeddings of the checked inputs to PATH.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

import inputs


class Peer:
    """A tower behind one library. `batches` is what a round runs, `run` embeds one batch or several."""

    def __init__(self, job: dict):
        self.job = job
        self.folder = Path(job["model"])
        self.work = self.folder.parents[1]
        self.load()
        self.batches = self.make_batches()
        self.count = sum(len(batch) for batch in self.batches)

    def round(self) -> float:
        begin = time.perf_counter()
        self.run(self.batches)
        return time.perf_counter() - begin

    def make_batches(self) -> list:
        job = self.job
        if job["what"] == "image":
            rows = self.checked()[: job["batch"]]
            return chunks(rows, job.get("chunk") or job["batch"])
        rows = self.ids(job["captions"])
        if job.get("dynamic"):
            return trimmed(rows, job["chunk"])
        return chunks(rows, job.get("chunk") or job["batch"])

    def ids(self, n: int) -> np.ndarray:
        import open_clip

        texts = inputs.captions(self.work, n).read_text(encoding="utf-8").splitlines()
        return open_clip.get_tokenizer(self.folder.name)(texts).numpy()

    def checked(self) -> np.ndarray:
        if self.job["what"] == "image":
            return np.load(self.folder / "peers/checked.npy")
        return self.ids(5000)[: inputs.N_CHECKED]

    def embed_checked(self) -> np.ndarray:
        """In batches of the shape that the rounds run; short texts are never sorted here."""
        size = max(len(batch) for batch in self.batches)
        parts = chunks(self.checked()[: self.job["checked"]], size)
        if self.job.get("dynamic"):
            parts = [part[:, : lengths(part).max()] for part in parts]
        filled = [np.concatenate([part, part[:1].repeat(size - len(part), 0)]) for part in parts]
        rows = self.run(filled)
        return np.concatenate([out[: len(part)] for out, part in zip(rows, parts)])


class Torch(Peer):
    def load(self) -> None:
        import models
        import torch

        torch.set_num_threads(self.job["threads"])
        self.torch = torch
        model = models.load(self.folder)
        self.autocast = self.job["precision"] == "autocast"
        self.dtype = torch.bfloat16 if self.job["precision"] == "bf16" else torch.float32
        model = model.to(self.dtype)
        self.tower = model.encode_image if self.job["what"] == "image" else model.encode_text
        if self.job.get("compiled"):
            self.tower = torch.compile(self.tower)

    def make_batches(self) -> list:
        batches = [self.torch.from_numpy(batch) for batch in super().make_batches()]
        return [batch.to(self.dtype) for batch in batches] if self.job["what"] == "image" else batches

    def run(self, batches: list) -> list:
        with self.torch.inference_mode(), self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.autocast):
            return [self.tower(batch, normalize=True) for batch in batches]

    def embed_checked(self) -> np.ndarray:
        rows = self.torch.from_numpy(self.checked()[: self.job["checked"]])
        parts = rows.to(self.dtype).split(32) if self.job["what"] == "image" else rows.split(32)
        return self.torch.cat(self.run(list(parts))).float().numpy()


class OnnxRuntime(Peer):
    def load(self) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.job["threads"]
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        if not self.job.get("dynamic"):
            options.add_free_dimension_override_by_name("batch", self.job.get("chunk") or self.job["batch"])
        path = self.folder / "peers" / self.job["file"]
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, batches: list) -> list:
        return [self.session.run(None, {"x": batch})[0] for batch in batches]


class OpenVino(Peer):
    def load(self) -> None:
        import openvino as ov

        self.core, self.ov = ov.Core(), ov
        self.network = self.core.read_model(self.folder / "peers" / self.job["file"])
        self.options = {
            "PERFORMANCE_HINT": self.job["hint"],
            "INFERENCE_PRECISION_HINT": self.job["precision"],
            "INFERENCE_NUM_THREADS": self.job["threads"],
        }
        self.compiled = self.core.compile_model(self.network, "CPU", self.options)
        self.chunk = self.job.get("chunk") or self.whole_chunk()
        if not self.job.get("dynamic"):
            shape = self.network.inputs[0].get_partial_shape()
            shape[0] = self.chunk
            self.network.reshape(shape)
            self.compiled = self.core.compile_model(self.network, "CPU", self.options)
        self.in_use = str(self.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        self.queue = ov.AsyncInferQueue(self.compiled, self.requests())
        self.queue.set_callback(self.keep)

    def requests(self) -> int:
        if self.job["hint"] == "LATENCY":
            return 1
        return self.compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")

    def whole_chunk(self) -> int:
        """The batch, cut so that every stream has a part."""
        return max(1, self.job["batch"] // self.requests())

    def make_batches(self) -> list:
        if not self.job.get("dynamic"):
            self.job["chunk"] = self.chunk
        # A short last batch would be another shape.
        batches = super().make_batches()
        return batches if self.job.get("dynamic") else [batch for batch in batches if len(batch) == self.chunk]

    def keep(self, request, place: int) -> None:
        self.results[place] = request.get_output_tensor(0).data.copy()

    def run(self, batches: list) -> list:
        self.results = [None] * len(batches)
        if len(batches) == 1 or self.job["hint"] == "LATENCY":
            return [self.compiled(batch)[0] for batch in batches]
        for place, batch in enumerate(batches):
            self.queue.start_async({0: batch}, place)
        self.queue.wait_all()
        return self.results


class TorchTraining(Peer):
    """Forward, backward and AdamW of the open_clip model on the next batch of captions."""

    def load(self) -> None:
        import models
        import torch
        from open_clip.loss import ClipLoss

        torch.set_num_threads(self.job["threads"])
        self.torch, self.loss = torch, ClipLoss()
        self.model = models.load(self.folder, self.job["context_length"]).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=self.job["fused"])
        if self.job["compiled"]:
            self.model = torch.compile(self.model)

    def make_batches(self) -> list:
        import open_clip

        batch, context = self.job["batch"], self.job["context_length"]
        texts = inputs.captions(self.work, self.job["captions"]).read_text(encoding="utf-8").splitlines()
        self.texts = open_clip.get_tokenizer(self.folder.name)(texts, context_length=context).split(batch)
        self.pixels = self.torch.from_numpy(self.checked()[:batch])
        self.step = 0
        return [self.pixels]

    def run(self, batches: list) -> list:
        # A short last batch would be another amount of work.
        texts = self.texts[self.step % (self.job["captions"] // self.job["batch"])]
        self.step += 1
        self.optimizer.zero_grad()
        with self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.job["precision"] == "bf16"):
            image, text, scale = self.model(self.pixels, texts)
            loss = self.loss(image, text, scale)
        loss.backward()
        self.optimizer.step()
        return []

    def checked(self) -> np.ndarray:
        return np.load(self.folder / "peers/checked.npy")


def lengths(rows: np.ndarray) -> np.ndarray:
    """Ids of each text: the end has the largest one."""
    return rows.argmax(1) + 1


def trimmed(rows: np.ndarray, size: int) -> list:
    """Batches of texts of like length, each as long as its longest."""
    rows = rows[np.argsort(lengths(rows), kind="stable")]
    return [np.ascontiguousarray(part[:, : lengths(part).max()]) for part in chunks(rows, size)]


def chunks(rows: np.ndarray, size: int) -> list:
    return [rows[first : first + size] for first in range(0, len(rows), size)]


PEERS = {"pytorch": Torch, "onnxruntime": OnnxRuntime, "openvino": OpenVino, "pytorch-training": TorchTraining}


def answer(value: dict) -> None:
    print(json.dumps(value), file=ANSWERS, flush=True)


def main() -> None:
    job = json.loads(sys.argv[1])
    if job["peer"] in ("jpegs", "ferroclip-embed"):
        import jpegs

        peer = {"jpegs": jpegs.Jpegs, "ferroclip-embed": jpegs.FerroclipEmbed}[job["peer"]](job)
    else:
        peer = PEERS[job["peer"]](job)
    for _ in range(job.get("warm_up", 2)):
        peer.round()
    answer({"ready": True, "in_use": getattr(peer, "in_use", None)})
    for line in sys.stdin:
        word, _, path = line.strip().partition(" ")
        if word == "check":
            np.save(path, peer.embed_checked())
            answer({"checked": True})
        else:
            seconds = peer.round()
            answer({"ms": 1000 * seconds, "per_s": peer.count / seconds})


if __name__ == "__main__":
    # Libraries and helpers print what they like to standard output; the answers go where they cannot.
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main()

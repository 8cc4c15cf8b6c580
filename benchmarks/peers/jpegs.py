"""Line I's peer: JPEGs through a PyTorch loader and OpenVINO into a file."""

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import inputs
import models
from workers import OpenVino


def open_cv(size: int):
    """open_clip's pipeline as users of OpenCV write it; INTER_AREA is its resampling without aliasing."""
    import cv2

    cv2.setNumThreads(1)
    mean, std = np.float32([0.48145466, 0.4578275, 0.40821073]), np.float32([0.26862954, 0.26130258, 0.27577711])

    def step(path: Path) -> torch.Tensor:
        picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        height, width = picture.shape[:2]
        scale = size / min(height, width)
        # OpenCV averages areas only where it makes pictures smaller.
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        picture = cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=how)
        top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
        cut = picture[top : top + size, left : left + size]
        return torch.from_numpy(((cut.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1).copy())

    return step


def pil(folder: Path):
    step = models.transform(folder)
    return lambda path: step(Image.open(path))


class Pictures(torch.utils.data.Dataset):
    def __init__(self, paths: list, step):
        self.paths, self.step = paths, step

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        return self.step(self.paths[place])


class Jpegs(OpenVino):
    def make_batches(self) -> list:
        # With workers the main process only collects; without, it decodes as well.
        torch.set_num_threads(1)
        self.folder_of_jpegs = inputs.mosaics(self.work, self.job["n"])
        size = models.config(self.folder)["vision_cfg"]["image_size"]
        self.step = pil(self.folder) if self.job["decoder"] == "PIL" else open_cv(size)
        return [sorted(self.folder_of_jpegs.iterdir())]

    def round(self) -> float:
        begin = time.perf_counter()
        rows = self.embed(self.batches[0])
        np.save(self.work / "jpegs-peer.npy", rows)
        return time.perf_counter() - begin

    def embed(self, paths: list) -> np.ndarray:
        loader = torch.utils.data.DataLoader(
            Pictures(paths, self.step), batch_size=self.chunk, num_workers=self.job["loaders"])
        self.results = [None] * len(loader)
        for place, batch in enumerate(loader):
            batch, n = batch.numpy(), len(batch)
            if n < self.chunk:
                batch = np.concatenate([batch, batch[:1].repeat(self.chunk - n, 0)])
            # Also with one request: the next batch is loaded meanwhile.
            self.queue.start_async({0: batch}, place)
        self.queue.wait_all()
        return np.concatenate(self.results)[: len(paths)]

    def embed_checked(self) -> np.ndarray:
        return self.embed(sorted(inputs.checked_photos(self.work, self.job["checked"]).iterdir()))


class FerroclipEmbed:
    """Our side: a whole process each round, the loading of the model included."""

    def __init__(self, job: dict):
        work = Path(job["model"]).parents[1]
        self.out, self.count = work / "jpegs-ours", job["n"]
        self.argv = [job["program"], "embed", "--images", str(inputs.mosaics(work, job["n"])), "--model", job["model"],
                     "--threads", str(job["threads"]), "--dtype", "f32", "--out", str(self.out), "--quiet"]

    def round(self) -> float:
        shutil.rmtree(self.out, ignore_errors=True)
        begin = time.perf_counter()
        subprocess.run(self.argv, check=True)
        return time.perf_counter() - begin

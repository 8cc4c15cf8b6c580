"""Compare ferroclip with its peers on this processor and record it.

    python benchmarks/peers/run.py --work DIR [--lines A,B] [--pairs 15] [--threads 2] [--records DIR]

README.md beside this file says more. The program is `target/release/ferroclip`, or below CARGO_TARGET_DIR.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import cold
import inputs
import lines
import numpy as np
import pairs
import record
from results import PROGRAM, ROOT  # record has put it on the path


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Bench:
    """The options of a run and what all comparisons share."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.work = args.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.log = open(self.work / "log.txt", "a")
        threads = ["--threads", args.threads]
        self.fma = pairs.Side([PROGRAM, "bench", "--paced", "--what", "fma", *threads], args.threads, self.log)

    def model(self, name: str, forms: set) -> Path:
        """A model of full size and its forms for peers, made where they are missing."""
        folder = self.work / "models" / name
        if not (folder / "inputs_outputs.safetensors").exists():
            say(f"making {folder}")
            self.python([ROOT / "fixtures/towers/full_size.py", name, folder], ROOT / "fixtures/towers")
        if missing := sorted(each for each in forms if not (folder / "peers" / each).exists()):
            say(f"making {', '.join(missing)} of {name}")
            self.python([pairs.HERE / "models.py", folder, *missing], pairs.HERE)
        return folder

    def python(self, argv: list, folder: Path) -> None:
        """In a process of its own: this one stays small and still."""
        env = pairs.environment(self.args.threads)
        subprocess.run([sys.executable, *map(str, argv)], cwd=folder, env=env, stdout=self.log, stderr=self.log, check=True)

    def conditions(self) -> dict:
        return {"time": datetime.datetime.now().isoformat(timespec="seconds"), "load": os.getloadavg(),
                "pairs": self.args.pairs, "threads": self.args.threads, "versions": record.versions()}


def forms_of(case: lines.Case) -> set:
    files = {job["file"] for jobs in case.peers.values() for job in jobs if "file" in job}
    tower = "text" if case.what == "text" else "image"
    return files | {"checked.npy"} | ({f"{tower}-reference.npy"} if case.what != "train" else set())


def our_side(bench: Bench, case: lines.Case, model: Path) -> pairs.Side:
    args = bench.args
    if case.what == "jpegs":
        job = {"peer": "ferroclip-embed", "model": str(model), "program": str(PROGRAM), "n": args.jpegs, "warm_up": 0}
        return pairs.peer_side(job, args.threads, bench.log)
    texts = ["--texts", inputs.captions(bench.work, min(case.captions, args.captions))] if case.captions else []
    argv = [PROGRAM, "bench", "--paced", "--what", case.what, "--batch", case.batch, "--threads", args.threads,
            "--precision", case.precision, "--model", model, *texts]
    return pairs.Side(argv, args.threads, bench.log)


def our_cosine(bench: Bench, case: lines.Case, model: Path) -> float | None:
    """The least cosine of `ferroclip embed` to PyTorch, over the checked inputs."""
    if case.what == "train":
        return None
    is_text = case.what == "text"
    given = ["--texts", inputs.captions(bench.work, bench.args.checked)] if is_text else ["--images", inputs.checked_photos(bench.work, bench.args.checked)]
    with tempfile.TemporaryDirectory() as out:
        argv = [PROGRAM, "embed", *given, "--model", model, "--precision", case.precision, "--threads", bench.args.threads,
                "--dtype", "f32", "--out", out, "--quiet"]
        found = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True)
        if found.returncode:
            raise RuntimeError(f"ferroclip: {found.stderr.splitlines()[0].removeprefix('error: ')}")
        kind = "text" if is_text else "img"
        return least_cosine(Path(out) / f"{kind}_emb/{kind}_emb_0.npy", case, model, bench.args.checked)


def least_cosine(path: Path, case: lines.Case, model: Path, n: int) -> float:
    tower = "text" if case.what == "text" else "image"
    reference = np.load(model / f"peers/{tower}-reference.npy")[:n].astype(np.float64)
    rows = np.load(path).astype(np.float64)
    assert rows.shape == reference.shape, (rows.shape, reference.shape)
    rows, reference = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, reference))
    return float((rows * reference).sum(1).min())


def limited(bench: Bench, job: dict) -> dict:
    """The job with no more captions than asked for."""
    job = job | {"checked": bench.args.checked}
    return job | {"captions": min(job["captions"], bench.args.captions)} if "captions" in job else job


def tried(bench: Bench, case: lines.Case, jobs: list) -> list:
    """All settings of a peer with their rates, the fastest first."""
    out = []
    for job in jobs:
        try:
            with pairs.peer_side(limited(bench, job | case.trial), bench.args.threads, bench.log) as side:
                side.calibrate(bench.args.seconds)
                rate = max(side.rate() for _ in range(bench.args.trials))
        except RuntimeError as error:
            say(f"  {setting(job)}: {error}")
            continue
        say(f"  {job['peer']}, {setting(job)}: {rate:.2f} a second")
        out.append({"job": job, "per_s": rate})
    return sorted(out, key=lambda each: -each["per_s"])


def setting(job: dict) -> str:
    words = [job.get("hint"), job.get("precision"), job.get("decoder")]
    words += [job.get("file", "").replace("image-int8.xml", "NNCF").replace("image-int8.onnx", "dynamic") if "int8" in job.get("file", "") else None]
    words += [f"in parts of {job['chunk']}" if job.get("chunk") else None]
    words += [f"{job['loaders']} workers" if "loaders" in job else None, "fused AdamW" if job.get("fused") else None, "compiled" if job.get("compiled") else None]
    return ", ".join(word for word in words if word) or "default"


def with_best(bench: Bench, case: lines.Case, model: Path, ours: pairs.Side, jobs: list) -> dict:
    """Pairs with the fastest setting that meets the cosine; where none does, with the fastest, which does not count."""
    found = tried(bench, case, [job | {"model": str(model)} for job in jobs])
    if not found:
        raise RuntimeError("no setting of the peer runs; see log.txt in the work folder")
    for each in found:
        with pairs.peer_side(limited(bench, each["job"]), bench.args.threads, bench.log) as theirs:
            each["cosine"] = peer_cosine(bench, case, model, theirs)
        if meets(case, each["cosine"]):
            break
        say(f"  {setting(each['job'])}: cosine {each['cosine']:.6f}, does not count")
    best = each if meets(case, each["cosine"]) else found[0]
    with pairs.peer_side(limited(bench, best["job"]), bench.args.threads, bench.log) as theirs:
        theirs.calibrate(bench.args.seconds)
        rates = pairs.compare(ours, theirs, bench.fma, bench.args.pairs)
    return {"setting": setting(best["job"]), "in_use": theirs.ready["in_use"], "cosine": best["cosine"],
            "counts": meets(case, best["cosine"]), **rates, "tried": found}


def meets(case: lines.Case, cosine: float | None) -> bool:
    return cosine is None or cosine >= bar(case)


def peer_cosine(bench: Bench, case: lines.Case, model: Path, side: pairs.Side) -> float | None:
    if case.what == "train":
        return None
    path = bench.work / "peer-rows.npy"
    side.ask(f"check {path}")
    return least_cosine(path, case, model, bench.args.checked)


def bar(case: lines.Case) -> float | None:
    return None if case.what == "train" else lines.BARS["jpegs" if case.what == "jpegs" else case.precision]


def measure(bench: Bench, case: lines.Case) -> dict:
    say(case.name)
    out = {"must": case.must, "run": bench.conditions(), "bar": bar(case), "peers": {}}
    model = bench.model(case.model, forms_of(case))
    if case.what == "jpegs":
        inputs.mosaics(bench.work, bench.args.jpegs)
        inputs.mosaics(bench.work, case.trial["n"])
    if case.what == "image":
        out["gflop"] = lines.image_gflop(json.loads((model / "open_clip_config.json").read_text())["model_cfg"])
    try:
        out["cosine"] = our_cosine(bench, case, model)
        with our_side(bench, case, model) as ours:
            ours.calibrate(bench.args.seconds)
            for peer, jobs in case.peers.items():
                if not bench.args.peers or peer in bench.args.peers:
                    out["peers"][peer] = with_best(bench, case, model, ours, jobs[: bench.args.settings])
                    say(f"  against {peer}: {record.rows(case.name, out | {'peers': {peer: out['peers'][peer]}})[0]}")
    except RuntimeError as error:
        say(f"  not measured: {error}")
        out["error"] = str(error)
    return out


def measure_cold(bench: Bench, precision: str) -> dict:
    model = bench.model("ViT-B-32", set())
    picture = sorted(inputs.checked_photos(bench.work).iterdir())[0]
    out = {"must": cold.MUST, "run": bench.conditions(), "peers": {}}
    try:
        found = cold.compare(PROGRAM, model, picture, precision, bench.args.threads, bench.args.pairs, bench.log)
        out["peers"]["pytorch"] = {"setting": "open_clip", **found}
    except RuntimeError as error:
        out["error"] = str(error)
    return out


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="models, pictures and captions; used again")
    parser.add_argument("--lines", default="A,B,C,D,E1,E2,F,G,H,I,J,R,S,K,L")
    parser.add_argument("--peers", type=lambda text: text.split(","), help="of pytorch,onnxruntime,openvino")
    parser.add_argument("--records", type=Path, default=record.RECORDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--trials", type=int, default=3, help="rounds that the best setting is found by")
    parser.add_argument("--seconds", type=float, default=1.0, help="what a round takes at least")
    parser.add_argument("--captions", type=int, default=lines.CAPTIONS)
    parser.add_argument("--checked", type=int, default=inputs.N_CHECKED, help="inputs that cosines are taken over")
    parser.add_argument("--settings", type=int, help="only the first few of each peer: for a look at whether all runs")
    parser.add_argument("--jpegs", type=int, default=2000)
    return parser.parse_args()


def main() -> None:
    args = parse()
    wanted = args.lines.split(",")
    cases = lines.cases(args.jpegs)
    if unknown := set(wanted) - {case.line for case in cases} - {"K", "L"}:
        raise SystemExit(f"no such lines: {', '.join(sorted(unknown))}")
    for pin in record.pins_missed():
        say(f"note: not the pinned version: {pin}")
    # A stopped side would stay for ever: let every `with` close its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bench = Bench(args)
    path = record.new_path(args.records)
    with bench.fma:
        for case in cases:
            if case.line in wanted:
                record.merge(path, case.name, measure(bench, case))
        for line, precision in (("K", "f32"), ("L", "int8")):
            if line in wanted:
                record.merge(path, f"{line}: ViT-B-32 cold start, {precision}, whole process", measure_cold(bench, precision))
    print(path.with_suffix(".md").read_text(), end="")


if __name__ == "__main__":
    main()

"""Line M: one training step of a large batch by exact gradient caching, against steps of batch 64.

    python benchmarks/peers/large_batch.py --work DIR [--batch 4096] [--micro-batch 32] [--precision bf16] [--rounds 1]

Prints the peak memory of the process and the time per pair, and writes both into the record. With `--rounds 0` the warm-up
step itself is what counts, model loading included: half the time, where a step takes most of an hour.
"""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

import inputs
import lines
import pairs
import record
from run import PROGRAM, Bench, say

MUST = 1.4
SMALL = 64


def steps(model: Path, texts: Path, args: argparse.Namespace, batch: int, rounds: int, log) -> dict:
    """Seconds of a step of this batch, the median of rounds, and the peak MB of the process."""
    argv = [PROGRAM, "bench", "--paced", "--what", "train", "--batch", batch, "--micro-batch", args.micro_batch_of(batch),
            "--threads", args.threads, "--precision", args.precision, "--model", model, "--texts", texts]
    begin = time.perf_counter()
    process = subprocess.Popen([str(arg) for arg in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                               env=pairs.environment(args.threads))
    assert json.loads(process.stdout.readline())["ready"]
    seconds = [time.perf_counter() - begin]
    for _ in range(rounds):
        print(file=process.stdin, flush=True)
        seconds.append(json.loads(process.stdout.readline())["ms"] / 1000)
    process.stdin.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{argv} ended with status {process.returncode}")
    measured = seconds[1:] or seconds
    return {"s": pairs.quartiles(measured)[1], "mb": usage.ru_maxrss / 1024}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="models and captions; used again")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--precision", default="bf16", choices=["f32", "bf16"])
    parser.add_argument("--rounds", type=int, default=1, help="steps after the warm-up step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--records", type=Path, default=record.RECORDS)
    args = parser.parse_args()
    # The small batch is one micro-batch: no second forward pass.
    args.micro_batch_of = lambda batch: args.micro_batch if batch == args.batch else batch
    return args


def main() -> None:
    args = parse()
    args.pairs = args.rounds
    bench = Bench(args)
    bench.fma.close()
    model = bench.model("ViT-B-32", set())
    texts = inputs.captions(bench.work, lines.CAPTIONS)
    out = {"must": MUST, "run": bench.conditions()}
    small = [steps(model, texts, args, SMALL, 3, bench.log)]
    say(f"  batch {SMALL}: {small[0]['s'] / SMALL * 1000:.1f} ms a pair, peak {small[0]['mb']:.0f} MB")
    large = steps(model, texts, args, args.batch, args.rounds, bench.log)
    small.append(steps(model, texts, args, SMALL, 3, bench.log))
    before, after = (each["s"] / SMALL for each in small)
    per_pair = large["s"] / args.batch
    ratios = [per_pair / before, per_pair / after]
    out["large_batch"] = {"batch": args.batch, "micro_batch": args.micro_batch, "s": large["s"], "mb": large["mb"], "small_s": [each["s"] for each in small],
                          "small_mb": [each["mb"] for each in small], "ratios": ratios, "warmed_up": args.rounds > 0}
    say(json.dumps(out["large_batch"]))
    record.merge(record.new_path(args.records), f"M: ViT-B-32 training step {args.precision}, batch {args.batch} in parts of {args.micro_batch}", out)


if __name__ == "__main__":
    main()

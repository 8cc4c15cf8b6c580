"""Two processes that take turns, and what their turns say."""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# They choose kernels of numpy's BLAS by hand; no side should depend on what the shell holds.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def environment(threads: int) -> dict:
    env = {name: value for name, value in os.environ.items() if name not in UNSET}
    return env | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


class Side:
    """A process that runs a round when it is told to, and is stopped between rounds: the spinning threads of the
    one would take time from the other."""

    def __init__(self, argv: list, threads: int, log):
        self.process = subprocess.Popen(
            [str(arg) for arg in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env=environment(threads), start_new_session=True, bufsize=1,
        )
        self.calls = 1
        try:
            self.ready = self.answer()
        except BaseException:
            # No `with` closes what never came to be.
            self.signal(signal.SIGKILL)
            raise
        self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        # The session has the process's id: its helpers stop and go with it.
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with status {self.process.wait()}: {self.process.args}")
        return json.loads(line)

    def ask(self, word: str) -> dict:
        self.signal(signal.SIGCONT)
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.signal(signal.SIGSTOP)
        return answer

    def calibrate(self, seconds: float) -> None:
        """So many calls a round that it takes at least these seconds."""
        self.calls = max(1, math.ceil(1000 * seconds / self.ask("round")["ms"]))

    def rate(self) -> float:
        """Inputs per second over the calls of a round."""
        found = [self.ask("round") for _ in range(self.calls)]
        ms = sum(each["ms"] for each in found)
        return sum(each["ms"] * each["per_s"] for each in found) / ms

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        try:
            self.process.stdin.close()
            self.process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self.signal(signal.SIGKILL)
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def peer_side(job: dict, threads: int, log) -> Side:
    return Side([sys.executable, HERE / "workers.py", json.dumps(job | {"threads": threads})], threads, log)


def quartiles(values: list) -> list:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def compare(ours: Side, theirs: Side, fma: Side, pairs: int) -> dict:
    """Rounds in turn; who begins changes from pair to pair, so that a drift of the clock hits both."""
    rates = {"ours": [], "theirs": [], "fma": []}
    for number in range(pairs):
        both = [("ours", ours), ("theirs", theirs)]
        for name, side in both if number % 2 == 0 else reversed(both):
            rates[name].append(side.rate())
        rates["fma"].append(fma.rate())
    ratios = [a / b for a, b in zip(rates["ours"], rates["theirs"])]
    return {"pairs": pairs, "ratio": quartiles(ratios), "ratios": ratios} | {
        name: quartiles(values) for name, values in rates.items()
    }

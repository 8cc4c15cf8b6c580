"""Records of the comparison, and README's table of the newest.

    python3 benchmarks/peers/record.py [--check]

With --check nothing is written, and the exit status tells whether README is up to date. Needs only the standard library.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import results

RECORDS = ROOT / "benchmarks/records"
SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
# Bars beside the ratio: per cent of the multiply-adds (line A), seconds (K), MB in int8 and parts of the weights in f32
# (L), GB (M); records hold MiB. And pairs of every line.
SHARE, SECONDS, INT8_MB, F32_WEIGHTS, LARGE_GB, MIB, PAIRS = 83, 0.6, 300, 1.35, 8, 1.048576, 15
HEADER = ["| line | work | peer at its best setting | ferroclip, a second | peer, a second | ratio (quartiles) | must |",
          "|---|---|---|---|---|---|---|"]


def processor() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    flags = fields.get("flags", "").split()
    return {"model": fields.get("model name", platform.processor()),
            "family": f"{fields.get('cpu family')}/{fields.get('model')}",
            "cores": len(os.sched_getaffinity(0)), "sets": [name for name in SETS if name in flags]}


def commit() -> str:
    """The commit of the work tree. A record that was just written beside it does not make it another."""
    git = lambda *args: subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/records", ":!README.md")
    return git("describe", "--always") + ("-dirty" if changed else "")


def versions() -> dict:
    required = (Path(__file__).parent / "requirements.txt").read_text().split()
    names = [line.split("==")[0] for line in required]
    return {"ferroclip": commit(), "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }


def pins_missed() -> list:
    """Pinned versions that are not the installed ones."""
    pins = (Path(__file__).parent / "requirements.txt").read_text().split()
    found = versions()
    return [f"{pin} (installed: {found[pin.split('==')[0]]})" for pin in pins if found[pin.split("==")[0]].split("+")[0] != pin.split("==")[1]]


def new_path(folder: Path) -> Path:
    found = processor()
    name = re.sub(r"[^a-z0-9]+", "-", f"{found['model']} {found['family']}".lower()).strip("-")
    return folder / f"{datetime.date.today()}-{name}.json"


def merge(path: Path, name: str, case: dict) -> None:
    """Writes a case into the record; the one of an earlier run goes."""
    record = json.loads(path.read_text()) if path.exists() else {"processor": processor(), "cases": {}}
    record["cases"][name] = case
    record["cases"] = dict(sorted(record["cases"].items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(path))


def spread(values: list) -> str:
    low, middle, high = values
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def rows(name: str, case: dict) -> list:
    line, title = name.split(": ", 1)
    if "error" in case:
        return [f"| {line} | {title} | - | - | - | not measured: {case['error']} | {case['must']:g} |"]
    if large := case.get("large_batch"):
        parts = f"{large['s'] / large['batch'] * 1000:.0f} ms a pair, peak {large['mb'] / 1024:.1f} GiB"
        cold = "" if large["warmed_up"] else "; without a warm-up step"
        ratios = " and ".join(f"{ratio:.2f}" for ratio in large["ratios"])
        missed = "; **missed**" if max(large["ratios"]) > case["must"] or large["mb"] * MIB > LARGE_GB * 1000 else ""
        return [f"| {line} | {title} | - | {parts} | - | time per pair over that of batch 64, measured before and after: {ratios}{cold}{missed} | {case['must']:g}; {LARGE_GB} GB |"]
    out = []
    for peer, found in case["peers"].items():
        note = verdict(line, case, found) + (f"; does not count: {case['note']}" if "note" in case else "")
        ours, theirs = (1 / found[f"{side}_s"][1] if f"{side}_s" in found else found[side][1] for side in ("ours", "theirs"))
        out.append(f"| {line} | {title} | {peer}, {found['setting']} | {ours:.2f} | {theirs:.2f} | {spread(found['ratio'])}{note} | {case['must']:g} |")
    return out


def verdict(line: str, case: dict, found: dict) -> str:
    """What the figures say of their bars."""
    pairs = case["run"]["pairs"]
    notes = [f"{pairs} pairs" + (f", must {PAIRS}" if pairs < PAIRS else "")]
    counts = found.get("counts", True)
    if not counts:
        notes.append(f"does not count: cosine {found['cosine']:.4f}")
    in_time = line in ("K", "L") and found["ours_s"][1] <= SECONDS
    if counts and found["ratio"][1] < case["must"] and not in_time:
        notes.append("**missed**")
    if case.get("bar") is not None and case.get("cosine") is not None and case["cosine"] < case["bar"]:
        notes.append(f"**missed**: cosine {case['cosine']:.6f}")
    if line == "A":
        percent = share_percent(case, found)
        notes.append(f"{percent:.0f} % of the multiply-adds, must {SHARE}" + ("" if percent >= SHARE else ": **missed**"))
    if line in ("K", "L"):
        notes.append(f"{found['ours_s'][1]:.2f} s, must a tenth of the peer's or {SECONDS}; peak {found['ours_mb'][1] * MIB:.0f} MB of {found['weights_mb'] * MIB:.0f} MB of weights")
    if line == "K" and found["ours_mb"][1] > F32_WEIGHTS * found["weights_mb"]:
        notes.append(f"**missed**: {F32_WEIGHTS} times the weights")
    if line == "L" and found["ours_mb"][1] * MIB > INT8_MB:
        notes.append(f"**missed**: {INT8_MB} MB")
    return "; " + "; ".join(notes)


def table(record: dict) -> list:
    return HEADER + [row for name, case in record["cases"].items() for row in rows(name, case)]


def details(name: str, case: dict) -> list:
    """What the table has no room for."""
    run = case["run"]
    load = ", ".join(f"{each:.2f}" for each in run["load"])
    out = [f"- {name}: {run['pairs']} pairs, {run['threads']} threads, {run['time']}, ferroclip {run['versions']['ferroclip']}, load {load} before"]
    if case.get("cosine") is not None:
        out.append(f"  - least cosine to PyTorch f32: ferroclip {case['cosine']:.6f}, bar {case['bar']}")
    for peer, found in case.get("peers", {}).items():
        if found.get("cosine") is not None:
            out.append(f"  - {peer}: least cosine {found['cosine']:.6f}; computes in {found.get('in_use') or 'what was asked'}")
        if "fma" in found:
            out.append(f"  - beside {peer}: multiply-adds {found['fma'][1]:.0f} GFLOP/s" + share(case, found))
        if "ours_mb" in found:
            out.append(f"  - peak memory: ferroclip {found['ours_mb'][1]:.0f} MiB, peer {found['theirs_mb'][1]:.0f} MiB, weights {found['weights_mb']:.0f} MiB;"
                       f" {found['ours_s'][1]:.2f} s against {found['theirs_s'][1]:.2f} s")
    return out


def share_percent(case: dict, found: dict) -> float:
    return 100 * found["ours"][1] * case["gflop"] / found["fma"][1]


def share(case: dict, found: dict) -> str:
    if not case.get("gflop"):
        return ""
    return f"; ferroclip reaches {share_percent(case, found):.1f} % of them over {case['gflop']:.2f} GFLOP a picture"


def page(path: Path) -> str:
    record = json.loads(path.read_text())
    found = record["processor"]
    last = list(record["cases"].values())[-1]["run"]["versions"]
    lines = [f"# {path.stem}", "", f"{found['model']}, family {found['family']}, {found['cores']} cores, {', '.join(found['sets'])}.",
             "The ratio is the median over pairs of rounds: above 1, ferroclip is faster.", "", *table(record), "",
             ", ".join(f"{name} {version}" for name, version in last.items() if name != "ferroclip"), ""]
    for name, case in record["cases"].items():
        lines += details(name, case)
    return "\n".join(lines) + "\n"


def readme_table() -> str:
    """The newest record, and what the newest of each other processor says in short."""
    date = len("2026-11-25-")
    newest = {path.name[date:]: path for path in sorted(RECORDS.glob("*.json"))}
    *others, last = sorted(newest.values()) or [None]
    if last is None:
        return "No record yet.\n"
    lines = [*table(json.loads(last.read_text())), "", f"{title(last)}.", ""]
    return "\n".join(lines + [f"- {title(path)}: {in_short(path)}" for path in reversed(others)]) + "\n"


def title(path: Path) -> str:
    found = json.loads(path.read_text())["processor"]
    names = {"amx_int8": " with AMX", "avx512f": " with AVX-512"}
    widest = next((name for flag, name in names.items() if flag in found["sets"]), "")
    return f"{found['model']} {found['family']}{widest}, {found['cores']} cores, {path.name[:10]} ([all figures](benchmarks/records/{path.stem}.md))"


def in_short(path: Path) -> str:
    """How many of the comparisons that count met their bars, and which lines hold one that did not."""
    cases = json.loads(path.read_text())["cases"]
    found = [row for name, case in cases.items() for row in rows(name, case) if "does not count" not in row]
    missed = [row for row in found if "**missed**" in row]
    lines = ", ".join(sorted({row.split("|")[1].strip() for row in missed}))
    return f"{len(found) - len(missed)} of {len(found)} rows that count meet their bars" + (f"; not all of {lines} do" if missed else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    before, after = results.replace(ROOT / "README.md", readme_table(), "peers")
    if not check:
        (ROOT / "README.md").write_text(after)
    return int(check and before != after)


if __name__ == "__main__":
    raise SystemExit(main())

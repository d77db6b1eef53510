"""How fast wmrl is on this machine, as ratios where that is possible: `make bench`.

    python tests/bench/bench.py [--only a,e] [--quick] [--json FILE]

Sizes are the published ones. The two sides of a ratio are measured in turns in the same run; absolute numbers stand
beside what a matrix product reaches on this machine in the same run. Run it on an idle machine.
"""

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import compiled
import dreamers
import models
import processes
import replaying
import rolling
import seeds
import torch
import training
from workbench import Bench, Row

import wmrl
from wmrl.run import cores

GROUPS: list[tuple[str, Callable[[Bench, str], Iterator[Row]]]] = [
    ("i", processes.help_),
    ("ab", rolling.generate),
    ("cd", training.train_vae),
    ("ce", training.train_dynamics),
    ("f", rolling.lockstep),
    ("g", rolling.dreams),
    ("jk", models.models),
    ("lmno", dreamers.dreamers),
    ("p", seeds.seeds),
    ("q", compiled.compiled),
    ("r", replaying.replaying),
    ("h", processes.memory),
]


def main() -> None:
    args = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="wmrl-bench-", dir=args.folder))
    bench = Bench(folder, quick=args.quick)
    wanted = args.only.replace(",", "")
    print(f"wmrl {wmrl.__version__}, torch {torch.__version__}, {platform.machine()}, {cores()} cores", end="")
    print(f", {torch.get_num_threads()} torch threads{', quick: numbers are rough' if args.quick else ''}")
    bench.note(bench.machine())
    began, rows = time.perf_counter(), []
    try:
        for letters, measure in GROUPS:
            if set(letters) & set(wanted):
                for row in measure(bench, wanted):
                    rows.append(row)
                    print(line(row), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    machine = {kind: statistics.median(values) for kind, values in bench.gflops.items()}
    show(rows, machine, time.perf_counter() - began)
    if args.json:
        about = {"wmrl": wmrl.__version__, "torch": torch.__version__, "cores": cores(), "quick": args.quick}
        found = {"schema_version": 1, **about, "gflops": machine, "rows": [{**asdict(r), "ok": r.ok} for r in rows]}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the speed of every stage on this machine.")
    parser.add_argument("--only", default="abcdefghijklmnopqr", help="letters of the rows to measure: e,g")
    parser.add_argument("--quick", action="store_true", help="measure for a fraction of the time")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--folder", type=Path, help="where the temporary files go (needs 2 GB)")
    return parser.parse_args()


def show(rows: list[Row], machine: dict[str, float], seconds: float) -> None:
    """Print the table."""
    print(f"\n{'':50}{'measured':>12}{'target':>14}  ok")
    for row in sorted(rows, key=lambda row: row.name):
        print(line(row))
    product = ", ".join(f"{value:.0f} GFLOP/s in {kind}" for kind, value in machine.items())
    print(f"matrix product on this machine: {product}; all took {seconds:.0f} s")


def line(row: Row) -> str:
    """One row of the table."""
    measured, target, met = f"{_number(row.measured)}{row.unit}", "", ""
    if row.target is not None:
        target = f"{'<=' if row.at_most else '>='} {_number(row.target)}{row.unit}"
        met = "yes" if row.ok else "NO"
    return f"{row.name:50}{measured:>12}{target:>14}  {met:3}  {row.detail}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    main()

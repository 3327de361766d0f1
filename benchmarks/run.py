# SPDX-License-Identifier: MIT
"""Runs the benchmarks and prints one row a path: median time and its ratio to ours, measured in the same run.

Benchmarks are pytest-benchmark tests in ``bench_*.py``. Tests that share a ``group`` do the same job on the same input
(their outputs are compared before anything is timed); the one whose ``extra_info["path"]`` is ``"occkernels"`` is ours.

    python benchmarks/run.py [--threads 2] [--json FILE] [pytest arguments, e.g. -k sample]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def table(report: dict) -> str:
    """The ratios of a pytest-benchmark JSON report as text."""
    groups: dict[str, list[dict]] = {}
    for row in report["benchmarks"]:
        groups.setdefault(row["group"] or row["name"], []).append(row)
    lines = []
    for group, rows in groups.items():
        ours = [row for row in rows if row["extra_info"].get("path") == "occkernels"]
        lines.append(group)
        for row in rows:
            median = row["stats"]["median"]
            ratio = median / ours[0]["stats"]["median"] if ours else None
            ratio = row["extra_info"].get("in_turns", ratio)
            times = " " * 10 if ratio is None else f"{ratio:8.1f} x"
            name = row["extra_info"].get("path", row["name"])
            lines.append(f"    {name:44s} {1e3 * median:10.3f} ms {times}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path, help="keep pytest-benchmark's report here")
    args, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        target = args.json or Path(folder) / "report.json"
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "OCC_BENCH_THREADS": str(args.threads)}
        command = [sys.executable, "-m", "pytest", *map(str, sorted(HERE.glob("bench_*.py"))), "-q", "--benchmark-only"]
        command += ["--benchmark-columns=median,iqr,rounds", f"--benchmark-json={target}", *rest]
        done = subprocess.run(command, env=environment)
        if target.exists() and target.stat().st_size:
            report = json.loads(target.read_text())
            machine = report["machine_info"]["cpu"].get("brand_raw", "unknown processor")
            print(
                f"\n{machine}, {args.threads} threads. Ratio: time of the row / time of occkernels, taking turns\n"
                "where both are ours to call (benchmarks/turns.py), else of the medians in this run.\n"
            )
            print(table(report))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

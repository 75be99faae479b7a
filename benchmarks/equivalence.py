"""How far does a run differ when it is split otherwise? Records the table of tests/test_equivalence.py.

    python benchmarks/equivalence.py

Five PPO steps from the same rollouts, on a small model: ranks, ZeRO, micro-batches, layout and checkpointing are
varied; metrics of every step and final weights are compared with the plain run's. Three minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))  # the cases are those of the tests

from benchmarks.record_runs import RESULTS, machine, machine_line  # noqa: E402
from tests import (  # noqa: E402
    conftest,  # noqa: F401 -- sets the environment of every process
    equivalence,
    ranks,
)

LIBRARIES = ("torch", "deepspeed", "transformers", "numpy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as directory:
            cases = equivalence.cases(Path(directory))
            members = {name: equivalence.measured(case) for name, case in cases.items()}
    finally:
        ranks.stop_all()
    record = {
        "name": "equivalence",
        "command": "python benchmarks/equivalence.py",
        "note": arguments.note,
        "machine": machine(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in LIBRARIES}},
        "members": members,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "equivalence.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "equivalence.md").write_text(report(record))
    print(report(record))
    return 0


def report(record: Mapping[str, Any]) -> str:
    lines = [
        "# equivalence",
        "",
        f"Command: `{record['command']}`",
        "",
        machine_line(record),
        "",
        equivalence.CAPTION,
        "",
    ]
    for name, rows in record["members"].items():
        lines += [f"## {name}", "", equivalence.table(rows), ""]
    versions = ", ".join(f"{library} {number}" for library, number in record["versions"].items())
    return "\n".join([*lines, f"Versions: {versions}", ""])


if __name__ == "__main__":
    sys.exit(main())

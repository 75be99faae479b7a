"""What it saves that actors go from stage to stage: the same small run with and without, in turn.

    python benchmarks/keep_actors.py --pairs 3

The run is the quickstart, as small as its stages allow, so that starts are most of it. Everything that the two runs
of a pair log must be the same, but times: status 1 where it is not. Writes benchmarks/results/keep_actors.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.record_runs import closing, opening, record_of, write_record  # noqa: E402
from rlhf_ray.metrics.sinks import read_metrics  # noqa: E402
from tests.small import SMALL  # noqa: E402

NAME = "keep_actors"
PRESET = "configs/quickstart.yaml"
LOGS = ("sft", "reward_model", "ppo")
TIMES = ("time/", "fleet/")


@dataclass(frozen=True)
class Pair:
    """Wall seconds of the whole command, and by stage, as ``summary.json`` has them."""

    kept_s: float
    fresh_s: float
    kept_stages: Mapping[str, float]
    fresh_stages: Mapping[str, float]
    same: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keep-") as directory:
        pairs = [pair(Path(directory) / str(number), number) for number in range(arguments.pairs)]
    command = shlex.join(["python", f"benchmarks/{NAME}.py", "--pairs", str(arguments.pairs)])
    record = record_of(NAME, command, arguments.note, settings=list(SMALL), pairs=[asdict(each) for each in pairs])
    page = table(record, pairs)
    write_record(record, page)
    print(page)
    return 0 if all(each.same for each in pairs) else 1


def pair(directory: Path, number: int) -> Pair:
    """Both runs, the one that comes first changing from pair to pair."""
    order = ("kept", "fresh") if number % 2 == 0 else ("fresh", "kept")
    seconds = {name: run(directory / name, keep=name == "kept") for name in order}
    stages = {name: stage_seconds(directory / name) for name in order}
    same = logged(directory / "kept") == logged(directory / "fresh")
    return Pair(seconds["kept"], seconds["fresh"], stages["kept"], stages["fresh"], same)


def run(directory: Path, *, keep: bool) -> float:
    settings = [f"output_dir={directory}", f"cluster.keep_actors={str(keep).lower()}", *SMALL]
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "launch.cli", "pipeline", PRESET, *settings],
        cwd=CHECKOUT,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    return time.perf_counter() - begun


def stage_seconds(directory: Path) -> dict[str, float]:
    seconds: dict[str, float] = json.loads((directory / "summary.json").read_text())["seconds"]
    return seconds


def logged(directory: Path) -> list[tuple[str, int, dict[str, float]]]:
    """Every metric of every stage's log that is not about time."""
    return [
        (stage, row.step, {name: value for name, value in row.metrics.items() if not name.startswith(TIMES)})
        for stage in LOGS
        for row in read_metrics(directory / stage / "metrics.jsonl")
    ]


def table(record: Mapping[str, Any], pairs: Sequence[Pair]) -> str:
    lines = opening(record, "Actors that go from stage to stage", SUMMARY)
    lines += ["| pair | kept, s | started anew, s | ratio | same numbers |", "|---" * 5 + "|"]
    for number, each in enumerate(pairs, start=1):
        ratio, same = each.kept_s / each.fresh_s, "yes" if each.same else "NO"
        lines.append(f"| {number} | {each.kept_s:.0f} | {each.fresh_s:.0f} | {ratio:.2f} | {same} |")
    ratio = statistics.median(each.kept_s / each.fresh_s for each in pairs)
    lines += ["", f"Median ratio: {ratio:.2f}.", "", "| stage | kept, s | started anew, s |", "|---" * 3 + "|"]
    for stage in pairs[0].kept_stages:
        kept = statistics.median(each.kept_stages[stage] for each in pairs)
        fresh = statistics.median(each.fresh_stages[stage] for each in pairs)
        lines.append(f"| {stage} | {kept:.1f} | {fresh:.1f} |")
    return "\n".join([*lines, *closing(record)])


SUMMARY = (
    "Wall seconds of the whole command, the quickstart made as small as its stages allow: with the actors of a stage "
    "left to the next one that wants the same, and with every stage's own. Stages: medians over pairs."
)


if __name__ == "__main__":
    sys.exit(main())

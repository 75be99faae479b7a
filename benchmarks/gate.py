"""Does our code cost more than it did? Ratios to the same work without us, against those that were recorded.

    python benchmarks/gate.py            # compare; status 1 where one has lost more than a fifth
    python benchmarks/gate.py --record   # after a change that is worth its cost

Absolute times say nothing on a machine that others use. Each measure (``gate_measures.py``) is a ratio of CPU seconds,
measured in pairs in turns; the median counts, and what fails is measured again, twice at most, before it has failed.
Writes benchmarks/results/gate.json, .md and .png with --record; tests/test_gate.py compares with them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.gate_measures import MEASURES, Pair, pairs_of  # noqa: E402
from benchmarks.record_runs import RESULTS, closing, opening, record_of, write_record  # noqa: E402

NAME = "gate"
LIMIT = 1.2  # times the recorded ratio
ATTEMPTS = 3
PAIRS = 8
TIMEOUT_S = 900.0  # of one attempt, on a machine that is very busy
WHAT = {
    "update": "PPO update of policy and critic (`PpoLearner`, DeepSpeed) / plain torch: the same passes and AdamW",
    "generate": "sampling (`GenerationEngine`) / `vllm.LLM.generate` of the same prompts",
    "driver": "driver, 1,024 rollouts a step of a simulated fleet / a loop over as many small objects",
}
Measure = Callable[[str], Sequence[Pair]]


@dataclass(frozen=True)
class Verdict:
    """A measure's ratios, one an attempt, and the recorded one."""

    name: str
    recorded: float
    attempts: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The best attempt: a busy machine makes a ratio worse more often than better."""
        return min(self.attempts)

    @property
    def passed(self) -> bool:
        return self.ratio <= LIMIT * self.recorded

    def __str__(self) -> str:
        tried = ", ".join(f"{ratio:.2f}" for ratio in self.attempts)
        verdict = "passes" if self.passed else f"FAILS: more than {LIMIT:g} times the recorded ratio"
        return f"{self.name}: {tried} (recorded {self.recorded:.2f}) {verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the ratios down; each is measured three times")
    parser.add_argument("--measures", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--smoke", action="store_true", help="few pairs, recorded once, beside the runs")
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / NAME, help="where --smoke writes")
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    arguments = parser.parse_args()
    if arguments.record or arguments.smoke:
        attempts, pairs, folder = (1, 2, arguments.runs) if arguments.smoke else (ATTEMPTS, PAIRS, RESULTS)
        print(recorded(arguments.measures, attempts, pairs, arguments.note, folder))
        return 0
    verdicts = [judged(name, ratios()[name], measured) for name in arguments.measures]
    print(*verdicts, sep="\n")
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def measured(name: str, pairs: int = PAIRS) -> list[Pair]:
    """Measure in a process of its own, with one thread: who shares a core with others gains nothing from more."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(CHECKOUT / "benchmarks" / "gate_measures.py"), name, "--pairs", str(pairs)]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | threads, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    if done.returncode:
        raise SystemExit(f"gate: {name} ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    return pairs_of(done.stdout)


def judged(name: str, known: float, measure: Measure) -> Verdict:
    """Measure until the ratio is within the limit, ``ATTEMPTS`` times at most."""
    verdict = Verdict(name, known, (median_ratio(measure(name)),))
    while not verdict.passed and len(verdict.attempts) < ATTEMPTS:
        verdict = Verdict(name, known, (*verdict.attempts, median_ratio(measure(name))))
    return verdict


def median_ratio(pairs: Sequence[Pair]) -> float:
    return statistics.median(pair.ours / pair.bare for pair in pairs)


# -------------------------------------------------------------------------------------------------------------- record
def ratios() -> dict[str, float]:
    """The recorded ratio of each measure."""
    return {name: measure["ratio"] for name, measure in measures_of(RESULTS).items()}


def measures_of(folder: Path) -> dict[str, Any]:
    """What is recorded of each measure; nothing where there is no record."""
    path = folder / f"{NAME}.json"
    measures: dict[str, Any] = json.loads(path.read_text())["measures"] if path.exists() else {}
    return measures


def recorded(names: Sequence[str], attempts: int, pairs: int, note: str, folder: Path) -> str:
    """Measure and write down, after each measure; what is recorded of others stays. The page."""
    page = ""
    for name in names:
        tries = [measured(name, pairs) for _ in range(attempts)]
        medians = [median_ratio(each) for each in tries]
        every = [asdict(pair) for each in tries for pair in each]
        found = {name: {"ratio": statistics.median(medians), "attempts": medians, "pairs": every}}
        measures = {each: {**measures_of(folder), **found}.get(each) for each in MEASURES}
        kept = {each: measure for each, measure in measures.items() if measure is not None}
        record = record_of(NAME, f"python benchmarks/{NAME}.py --record", note, limit=LIMIT, measures=kept)
        page = table(record)
        plot(record, write_record(record, page, folder))
    return page


def table(record: Mapping[str, Any]) -> str:
    lines = opening(record, "What our code costs beside the same work without it", SUMMARY)
    lines += ["| measure | what | ratio | of each attempt | fails above |", "|---" * 5 + "|"]
    for name, measure in record["measures"].items():
        tried = ", ".join(f"{ratio:.2f}" for ratio in measure["attempts"])
        ratio = measure["ratio"]
        lines.append(f"| {name} | {WHAT[name]} | {ratio:.2f} | {tried} | {record['limit'] * ratio:.2f} |")
    return "\n".join([*lines, *closing(record)])


SUMMARY = (
    "Ratios of CPU seconds, of the process and its children with one thread: the median over pairs of each attempt, "
    "and the median of the attempts. `python benchmarks/gate.py` and tests/test_gate.py fail where a measure exceeds "
    "its limit three times in a row. Waiting costs no CPU seconds, and is not seen here. The driver's ratio compares "
    "it with a loop of no meaning of its own: it makes another machine's speed cancel, no more."
)


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Every pair's ratio, relative to the recorded one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    for place, measure in enumerate(record["measures"].values()):
        found = [pair["ours"] / pair["bare"] / measure["ratio"] for pair in measure["pairs"]]
        axes.plot(found, [place] * len(found), "o", alpha=0.5)
    axes.axvline(record["limit"], color="grey", linestyle="--")
    axes.set_yticks(range(len(record["measures"])), list(record["measures"]))
    axes.set(xlabel="ratio of a pair, relative to the recorded ratio (dashed: the limit for the median)")
    axes.set_ylim(-0.5, len(record["measures"]) - 0.5)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())

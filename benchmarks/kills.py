"""Kill a PPO run again and again, start the same command each time, and compare with a run that nobody disturbed.

    python benchmarks/kills.py                   # 20 kills: half an hour to an hour on two cores
    python benchmarks/kills.py --kills 2

The run is the quickstart, made small. Killed is the whole job (the driver and every process below it) or, every fourth
time, only its Ray cluster; in every phase that ``ppo/phases.jsonl`` names, a random moment after the phase has begun.
Compared are all metrics but times, bit for bit, and every saved rollout of every step. Status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))  # the settings are those of the tests

from benchmarks.record_runs import closing, opening, record_of, write_record  # noqa: E402
from rlhf_ray.directories import FileContent  # noqa: E402
from rlhf_ray.metrics.sinks import read_metrics  # noqa: E402
from rlhf_ray.pipeline.phases import PHASES_FILE  # noqa: E402
from tests.small import SMALL  # noqa: E402

PHASES = ("generate", "save", "sync", "update", "score", "evaluate")
SHARES_OF_TIME = ("fleet/idle_fraction", "fleet/waiting_fraction")
LONGEST_DELAY_S = 0.5
WITHIN_S = 900.0


@dataclass(frozen=True)
class Kill:
    """One death: what was killed, in which step and phase, how long after the phase had begun."""

    victim: str
    step: int
    phase: str
    delay_s: float
    lived_s: float


@dataclass(frozen=True)
class Comparison:
    """What differs between the killed run and the undisturbed one: nothing, where all is well."""

    metrics: tuple[str, ...]
    rollouts: tuple[str, ...]
    num_rows: int
    num_rollout_files: int

    @property
    def exact(self) -> bool:
        return not (self.metrics or self.rollouts) and self.num_rows > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, help="of PPO; default: one more than kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    parser.add_argument("--no-record", action="store_true", help="print, write no record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as directory:
        root = Path(directory)
        kills, found = killed_run(
            root, num_kills=arguments.kills, num_steps=arguments.steps or arguments.kills + 1, seed=arguments.seed
        )
    record = record_of(
        "kills",
        f"python benchmarks/kills.py --kills {arguments.kills}",
        arguments.note,
        kills=[asdict(kill) for kill in kills],
        comparison={**asdict(found), "exact": found.exact},
    )
    if not arguments.no_record:
        write_record(record, report(record))
    print(report(record))
    return 0 if found.exact else 1


def killed_run(
    root: Path, *, num_kills: int, num_steps: int, seed: int, phases: Sequence[str] = PHASES
) -> tuple[list[Kill], Comparison]:
    """Both runs below ``root``, from one reward model; the kills, and how the runs compare."""
    whole, killed = root / "whole", root / "killed"
    finish(start("reward", whole, root / "before.log", num_steps), root / "before.log")
    shutil.copytree(whole, killed)
    finish(start("ppo", whole, root / "whole.log", num_steps), root / "whole.log")
    moments = random.Random(seed)
    kills = []
    for number in range(num_kills):
        log = root / f"life_{number}.log"
        process = start("ppo", killed, log, num_steps)
        victim = "cluster" if number % 4 == 3 else "job"
        kills.append(kill(process, killed, log, phases[number % len(phases)], victim, moments))
        print(f"{number + 1}/{num_kills}: {kills[-1]}", flush=True)
    finish(start("ppo", killed, root / "last.log", num_steps), root / "last.log")
    return kills, compare(whole, killed)


def start(command: str, output_dir: Path, log: Path, num_steps: int) -> subprocess.Popen[bytes]:
    """The same command every time, in a session of its own."""
    settings = [
        f"output_dir={output_dir}",
        *SMALL,
        f"ppo.num_steps={num_steps}",
        "ppo.save_rollouts=true",
        "generation.num_engines=1",
    ]
    line = [sys.executable, "-m", "launch.cli", command, "configs/quickstart.yaml", *settings]
    with log.open("wb") as out:
        return subprocess.Popen(line, cwd=CHECKOUT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.wait(WITHIN_S) != 0:
        raise RuntimeError(log.read_text())


def kill(
    process: subprocess.Popen[bytes], run: Path, log: Path, phase: str, victim: str, moments: random.Random
) -> Kill:
    """Kill the job, or its cluster, a moment after a phase has begun for the first or second time in this life."""
    begun, before, wanted = time.monotonic(), len(lines(run)), 1 + moments.randrange(2) * (phase != "save")
    while sum(line["phase"] == phase for line in lines(run)[before:]) < wanted:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended before it was killed:\n{log.read_text()}")
        if time.monotonic() - begun > WITHIN_S:
            raise RuntimeError(f"no phase {phase} within {WITHIN_S:g} s:\n{log.read_text()}")
        time.sleep(0.005)
    delay = LONGEST_DELAY_S * moments.random()
    time.sleep(delay)
    place = lines(run)[-1]
    below = psutil.Process(process.pid).children(recursive=True)
    if victim == "job":
        process.kill()
    for child in below:
        end(child)
    if victim == "cluster":
        try:
            process.wait(60)  # it notices, and says so
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    for directory in _temporary(below):
        shutil.rmtree(directory, ignore_errors=True)
    return Kill(victim, int(place["step"]), str(place["phase"]), round(delay, 3), round(time.monotonic() - begun, 1))


def end(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def _temporary(processes: Sequence[psutil.Process]) -> set[Path]:
    """Ray's own folders, which only a run that ends by itself removes."""
    roots = {Path("/tmp") / path.name for path in Path("/tmp").glob("rlhf-ray-*")}
    dead = {process.pid for process in processes}
    return {root for root in roots if not _in_use(root) and dead}


def _in_use(directory: Path) -> bool:
    """Whether a living process of this user names the directory in its command line."""
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = [*(process.info["cmdline"] or []), (process.info["environ"] or {}).get("TMPDIR", "")]
        if any(str(directory) in word for word in words):
            return True
    return False


def lines(run: Path) -> list[dict[str, Any]]:
    path = run / "ppo" / PHASES_FILE
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


# ------------------------------------------------------------------------------------------------------------ comparing
def compare(whole: Path, killed: Path) -> Comparison:
    """All metrics but times, and the files of every saved step."""
    one, other = logged(whole), logged(killed)
    different = [f"step {step}: {name}" for step, name in sorted(one.keys() ^ other.keys())]
    shared = sorted(one.keys() & other.keys())
    different += [f"step {step}: {name}" for step, name in shared if one[step, name] != other[step, name]]
    files, others = rollout_files(whole), rollout_files(killed)
    names = sorted({name for name in files.keys() | others.keys() if files.get(name) != others.get(name)})
    return Comparison(tuple(different), tuple(names), len({step for step, _ in one}), len(files))


def logged(run: Path) -> dict[tuple[int, str], str]:
    """Every number by step and name, as its own bits write it; an earlier row of a step counts as another."""
    found: dict[tuple[int, str], str] = {}
    for row in read_metrics(run / "ppo" / "metrics.jsonl"):
        for name, value in row.metrics.items():
            if not name.startswith("time/") and name not in SHARES_OF_TIME:
                key = (row.step, name if (row.step, name) not in found else f"{name} again")
                found[key] = float(value).hex()
    return found


def rollout_files(run: Path) -> dict[str, FileContent]:
    root = run / "ppo" / "rollouts"
    return {str(path.relative_to(root)): FileContent.of(path) for path in sorted(root.rglob("*")) if path.is_file()}


# -------------------------------------------------------------------------------------------------------------- record
def report(record: Mapping[str, Any]) -> str:
    found = record["comparison"]
    same = "Not one number differs" if found["exact"] else f"{len(found['metrics'])} numbers differ"
    text = (
        f"{same} of the {found['num_rows']} rows of metrics (times left out); "
        f"{len(found['rollouts'])} of {found['num_rollout_files']} files of saved rollouts differ."
    )
    table = ["| | killed | step | phase | seconds into it | seconds of life |", "|---|---|---|---|---|---|"]
    table += [
        f"| {number} | {k['victim']} | {k['step']} | {k['phase']} | {k['delay_s']:.2f} | {k['lived_s']:.0f} |"
        for number, k in enumerate(record["kills"], start=1)
    ]
    return "\n".join([*opening(record, "kills", text), *table, *closing(record)])


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())

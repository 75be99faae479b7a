"""A run under random faults on all of its roles: is every prompt accounted for once, and does anything grow?

    python benchmarks/soak.py --minutes 60

A small PPO run goes on until the time is up while its actors are killed or stopped at random moments. Recorded: every
fault, whether each step has its rollouts once, and the slopes of memory, open files and objects.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))  # the settings are those of the tests

from benchmarks.fault_matrix import versions  # noqa: E402
from benchmarks.record_runs import RESULTS, machine, machine_line  # noqa: E402
from tests.small import SMALL  # noqa: E402

ACTORS = ("TrainerActor", "GeneratorActor", "ReferenceActor", "RewardModelActor")
SAMPLE_S = 5.0
STARTED_WITHIN_S = 1800.0
ENDED_WITHIN_S = 600.0
SETTINGS = (
    *SMALL,
    "ppo.num_steps=1000000",
    "ppo.eval_every=0",
    "ppo.checkpoint_every=5",
    "ppo.save_rollouts=true",
    "training.num_ranks=2",
    "faults.max_restarts=1000000",
    "faults.heartbeat_timeout_s=20",
)


@dataclass(frozen=True)
class Fault:
    seconds: float  # since the first step
    actor: str
    signal: str


@dataclass(frozen=True)
class Sample:
    """What may not grow. Files and memory are the driver's; objects are bytes in the cluster's store."""

    seconds: float
    step: int
    memory_mib: float
    open_files: int
    object_mib: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as directory, cluster(Path(directory)):
        run = Path(directory) / "run"
        with started(run) as process:
            wait_for_first_step(run, process)
            faults, samples = torment(process, run, arguments)
            ended = stop(process)
        accounts = account(run)
    record = {
        "name": "soak",
        "command": f"python benchmarks/soak.py --minutes {arguments.minutes:g} --every {arguments.every:g}",
        "note": arguments.note,
        "machine": machine(),
        "versions": {"python": sys.version.split()[0], **versions()},
        "status": ended,
        "faults": [asdict(fault) for fault in faults],
        "samples": [asdict(sample) for sample in samples],
        "accounts": accounts,
        "slopes_per_hour": slopes(samples),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "soak.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "soak.md").write_text(report(record))
    print(report(record))
    return 0 if accounts["exact"] else 1


@contextmanager
def cluster(directory: Path) -> Iterator[None]:
    """A cluster of this process, which the run joins: so that its store can be looked at."""
    import ray

    context = ray.init(
        address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, _temp_dir=str(directory / "ray")
    )
    os.environ["RAY_ADDRESS"] = context.address_info["address"]
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def started(run: Path, settings: Sequence[str] = SETTINGS) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "launch.cli", "ppo", "configs/quickstart.yaml", f"output_dir={run}", *settings]
    with run.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_first_step(run: Path, process: subprocess.Popen[bytes], done: Callable[[Path], int] | None = None) -> None:
    """Wait until ``done`` counts a step; without it, a step's saved rollouts are the sign."""
    deadline = time.monotonic() + STARTED_WITHIN_S
    while (done or steps_done)(run) < 1:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the run has not begun: {run.with_suffix('.log').read_text()[-2000:]}")
        time.sleep(0.5)


def torment(
    process: subprocess.Popen[bytes], run: Path, arguments: argparse.Namespace
) -> tuple[list[Fault], list[Sample]]:
    """Hurt the run until the time is up, and look at it in between."""
    chance, begun = random.Random(arguments.seed), time.monotonic()
    faults: list[Fault] = []
    samples: list[Sample] = []
    due = chance.expovariate(1 / arguments.every)
    while (now := time.monotonic() - begun) < 60 * arguments.minutes:
        if process.poll() is not None:
            raise SystemExit(f"the run has ended: {run.with_suffix('.log').read_text()[-4000:]}")
        if now >= due:
            faults += hurt(chance, now)
            due = now + chance.expovariate(1 / arguments.every)
        samples.append(sampled(process.pid, run, now))
        time.sleep(SAMPLE_S)
    return faults, samples


def hurt(chance: random.Random, now: float) -> list[Fault]:
    """Kill or stop one actor of this process's cluster; every role is as likely as any other."""
    victims = actors()
    if not victims:
        return []
    role = chance.choice(sorted({name for name, _ in victims}))
    name, victim = chance.choice([pair for pair in victims if pair[0] == role])
    sent = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP))
    try:
        victim.send_signal(sent)
    except psutil.NoSuchProcess:
        return []
    return [Fault(round(now, 1), name, sent.name)]


def actors() -> list[tuple[str, psutil.Process]]:
    """Actors that live below this process, which is the cluster's."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            title = child.cmdline()[0] if child.cmdline() else ""
            living = child.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        except psutil.Error:
            continue
        found += [(name, child) for name in ACTORS if living and title.startswith(f"ray::{name}")]
    return found


def sampled(process: int, run: Path, now: float) -> Sample:
    driver = psutil.Process(process)
    return Sample(
        seconds=round(now, 1),
        step=steps_done(run),
        memory_mib=round(driver.memory_info().rss / 2**20, 1),
        open_files=driver.num_fds(),
        object_mib=round(stored_bytes() / 2**20, 2),
    )


def stored_bytes() -> float:
    """Of objects in the store of this process's cluster."""
    import ray

    total = ray.cluster_resources().get("object_store_memory", 0.0)
    free = ray.available_resources().get("object_store_memory", 0.0)
    return float(total - free)


def steps_done(run: Path) -> int:
    return len(list((run / "ppo" / "rollouts").glob("step_*")))


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(ENDED_WITHIN_S)


def account(run: Path) -> dict[str, Any]:
    """Every step that was trained on, its rollouts: as many as there must be, none of them twice."""
    wanted = next(int(s.partition("=")[2]) for s in SMALL if s.startswith("ppo.rollouts_per_step="))
    seen: Counter[str] = Counter()
    wrong = []
    directories = sorted((run / "ppo" / "rollouts").glob("step_*"))
    for directory in directories:
        shards = json.loads((directory / "step.json").read_text())["shards"]
        ids = [rollout["rollout_id"] for shard in shards for rollout in shard["rollouts"]]
        seen.update(ids)
        if len(ids) != wanted:
            wrong.append(f"{directory.name} has {len(ids)} rollouts, not {wanted}")
    twice = [name for name, count in seen.items() if count > 1]
    numbers = [int(directory.name.rpartition("_")[2]) for directory in directories]
    missing = sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
    return {
        "steps": len(directories),
        "rollouts": sum(seen.values()),
        "twice": twice,
        "wrong": wrong,
        "missing_steps": missing,
        "exact": bool(directories) and not (twice or wrong or missing),
    }


def slopes(samples: Sequence[Sample]) -> dict[str, float]:
    """Least squares, without the first quarter: what grows while everything is started is no leak."""
    kept = samples[len(samples) // 4 :]
    if len(kept) < 3:
        return {}
    hours = np.array([sample.seconds for sample in kept]) / 3600
    measures = ("memory_mib", "open_files", "object_mib")
    return {name: round(float(np.polyfit(hours, [getattr(s, name) for s in kept], 1)[0]), 2) for name in measures}


def report(record: Mapping[str, Any]) -> str:
    accounts, samples = record["accounts"], record["samples"]
    faults = Counter((fault["actor"], fault["signal"]) for fault in record["faults"])
    lines = ["# soak", "", f"Command: `{record['command']}`", "", machine_line(record), ""]
    lines += [
        f"{accounts['steps']} steps, {accounts['rollouts']} rollouts; twice: {len(accounts['twice'])}, steps with "
        f"another number: {len(accounts['wrong'])}, missing steps: {len(accounts['missing_steps'])}.",
        "",
        "| actor | signal | times |",
        "|---|---|---|",
        *(f"| {actor} | {name} | {count} |" for (actor, name), count in sorted(faults.items())),
        "",
        "| | first | last | slope an hour |",
        "|---|---|---|---|",
        *(
            f"| {name} | {samples[0][name]} | {samples[-1][name]} | {slope} |"
            for name, slope in record["slopes_per_hour"].items()
        ),
    ]
    named = ", ".join(f"{library} {number}" for library, number in record["versions"].items())
    return "\n".join([*lines, "", f"Versions: {named}", ""])


if __name__ == "__main__":
    sys.exit(main())

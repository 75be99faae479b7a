"""Fleets of up to 1,000 generators without one: the real driver and state machines in simulated time, with faults.

    python benchmarks/simulator.py
    python benchmarks/simulator.py --measure runs/quickstart   # take the spreads of times and lengths from this run

Real are the driver, the dispatch of shards, the members' health, restarts, the sizing of the fleet and the planning of
updates. Simulated are engines, servers, trainer, network and clock. Their own methods stand under a stopwatch: the
driver's CPU is that of the process less theirs, for each simulated second. What the event loop spends on their timers
and futures, and all garbage collection, counts as the driver's; Ray's own share of a call is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from actors.generators import GeneratorGroup  # noqa: E402
from actors.groups import PpoTrainerGroup  # noqa: E402
from benchmarks import simulated_time  # noqa: E402
from benchmarks.record_runs import RESULTS, machine, machine_line  # noqa: E402
from benchmarks.simulated_accounts import Ledger, Prompts, Stopwatch  # noqa: E402
from benchmarks.simulated_fleet import (  # noqa: E402
    Faults,
    Measured,
    Nodes,
    Reference,
    RewardModel,
    Scale,
    TrainerRanks,
    Weights,
    World,
)
from rlhf_ray.config.ppo import PpoConfig  # noqa: E402
from rlhf_ray.driver import Driver, Metrics, Roles  # noqa: E402
from rlhf_ray.garbage import rare_collections  # noqa: E402
from rlhf_ray.records import SamplingSettings  # noqa: E402
from rlhf_ray.supervision.budget import RestartBudget, RestartLimit  # noqa: E402
from rlhf_ray.supervision.sizing import Sizer, SizingRule  # noqa: E402

INPUTS = RESULTS / "simulator_inputs.json"
FAULTS = {"none": 0.0, "1 in 1,000 node-hours": 1e-3, "1 in 10 node-hours": 0.1}
STEPS = {1: 60, 10: 60, 100: 40, 1000: 16}
PER_GENERATOR = 32  # rollouts a step
SHARD_SIZE = 16
CALL_LIMIT_S = 300.0  # after which an engine that does not answer is taken for dead
NUMBERS = ("simulated_s", "overhead", "parts_overhead", "cpu_per_rollout", "growth_bytes")  # computed, in the record
LOAD = {10: 4.0, 40: 1.0}  # the steps after which responses are so many times as long


@dataclass(frozen=True)
class Setup:
    generators: int
    deaths_per_node_hour: float
    steps: int
    rollouts_per_step: int
    sizing: SizingRule | None = None
    load: Mapping[int, float] | None = None
    seed: int = 0
    scale: Scale = field(default_factory=Scale)
    ranks: int = 8  # of the trainer


@dataclass(frozen=True)
class StepRecord:
    """One step: when it ended, and what it cost."""

    at_s: float  # simulated
    cpu_s: float  # real, of the whole process
    simulated_cpu_s: float  # of it, in the simulated parts' own methods
    rss_bytes: int
    generators: float
    waiting: float  # share of the step in which the trainer waited for rollouts
    idle: float  # share of the step in which a generator had nothing to do


@dataclass(frozen=True)
class Outcome:
    setup: Setup
    steps: tuple[StepRecord, ...]
    deaths: int
    hangs: int
    restarts: int
    requeued_shards: int
    counted: int  # rollouts that were trained on: each once, or the run would have ended

    @property
    def simulated_s(self) -> float:
        return self.steps[-1].at_s - self.steps[0].at_s

    @property
    def driver_cpu_s(self) -> float:
        """The driver's CPU seconds; the first step, which loads code, left out."""
        return sum(step.cpu_s - step.simulated_cpu_s for step in self.steps[1:])

    @property
    def parts_cpu_s(self) -> float:
        """The simulated parts' CPU seconds in the same steps."""
        return sum(step.simulated_cpu_s for step in self.steps[1:])

    @property
    def overhead(self) -> float:
        """The driver's CPU seconds for each simulated second."""
        return self.driver_cpu_s / self.simulated_s

    @property
    def parts_overhead(self) -> float:
        """The simulated parts' CPU seconds for each simulated second."""
        return self.parts_cpu_s / self.simulated_s

    @property
    def cpu_per_rollout(self) -> float:
        """The driver's CPU seconds."""
        return self.driver_cpu_s / self.setup.rollouts_per_step / (len(self.steps) - 1)

    @property
    def growth_bytes(self) -> int:
        """Resident memory at the end less that after the first third."""
        return self.steps[-1].rss_bytes - self.steps[len(self.steps) // 3].rss_bytes


def simulate(setup: Setup, measured: Measured) -> Outcome:
    """One run to its end. Raises AccountError when a prompt is lost or trained on twice."""
    with rare_collections():
        return simulated_time.run(_simulate(setup, measured))


async def _simulate(setup: Setup, measured: Measured) -> Outcome:
    loop = asyncio.get_running_loop()
    world = World(measured, setup.scale, seed=setup.seed)
    nodes = Nodes(world, Faults(setup.deaths_per_node_hour))
    limit = RestartLimit(max_restarts=10 * setup.generators + 100, window_s=3600.0)
    generators = GeneratorGroup(
        nodes.first(setup.generators),
        shard_size=SHARD_SIZE,
        max_running=2 * SHARD_SIZE,
        timeout_s=CALL_LIMIT_S,
        supplier=nodes,
        budget=RestartBudget(infrastructure=limit, data=limit, clock=loop.time),
        sizer=None if setup.sizing is None else Sizer(setup.sizing, loop.time),
        warn=lambda message: None,
    )
    config = PpoConfig(num_steps=setup.steps, rollouts_per_step=setup.rollouts_per_step, num_minibatches=4)
    planner = PpoTrainerGroup(TrainerRanks(world, setup.ranks), config, seed=setup.seed, demonstrations=lambda step: ())
    ledger = Ledger(planner, world.stopwatch, per_step=setup.rollouts_per_step)
    weights = Weights(world, generators, nodes)
    driver = Driver(
        roles=Roles(generators, Reference(), RewardModel(world), ledger, weights),
        prompts=Prompts(world.stopwatch),
        config=config,
        settings=SamplingSettings(),
        seed=setup.seed,
    )
    recorder = Recorder(loop.time, world.stopwatch)

    async def after_step(step: int, metrics: Metrics) -> None:
        recorder.step(metrics)
        if setup.load and step in setup.load:
            world.grow(setup.load[step])

    failing = asyncio.ensure_future(nodes.fail())
    try:
        with world.stopwatch.watching_collections():
            await driver.run(after_step)
    finally:
        failing.cancel()
        await generators.close()
    last = generators.snapshot()
    return Outcome(
        setup,
        tuple(recorder.steps),
        nodes.deaths,
        nodes.hangs,
        last["restarts"],
        last["requeued_shards"],
        ledger.counted,
    )


class Recorder:
    """Reads the clocks after each step."""

    def __init__(self, clock: Callable[[], float], stopwatch: Stopwatch) -> None:
        self._clock = clock
        self._stopwatch = stopwatch
        self._simulated = 0.0
        self._process = psutil.Process()
        self._cpu = time.process_time()
        self.steps: list[StepRecord] = []

    def step(self, metrics: Metrics) -> None:
        cpu = time.process_time() - self._cpu
        self.steps.append(
            StepRecord(
                at_s=self._clock(),
                cpu_s=cpu,
                simulated_cpu_s=self._stopwatch.seconds - self._simulated,
                rss_bytes=self._process.memory_info().rss,
                generators=metrics.get("fleet/generators", 0.0),
                waiting=metrics.get("fleet/waiting_fraction", 0.0),
                idle=metrics.get("fleet/idle_fraction", 0.0),
            )
        )
        self._cpu, self._simulated = time.process_time(), self._stopwatch.seconds


# ----------------------------------------------------------------------------------------------------------- the record
def setups(fleets: Sequence[int], steps: int | None) -> list[Setup]:
    return [
        Setup(size, rate, steps or STEPS.get(size, 20), size * PER_GENERATOR)
        for size in fleets
        for rate in FAULTS.values()
    ]


def sizing_setup() -> Setup:
    rule = SizingRule(min_size=4, max_size=64, grow_above=0.6, shrink_above=0.7, patience=2, cooldown_s=120.0)
    return Setup(8, 1e-3, 70, 1024, sizing=rule, load=LOAD)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="RUN", help="a run's directory, with PPO and comparisons done")
    parser.add_argument("--fleets", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--steps", type=int, help="of each run; default: fewer for larger fleets")
    parser.add_argument("--name", default="simulator", help="of the record")
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    arguments = parser.parse_args()
    if arguments.measure:
        INPUTS.write_text(json.dumps(asdict(measure(arguments.measure)), indent=1) + "\n")
    measured = Measured.read(INPUTS)
    simulate(Setup(2, 0.0, 2, 64), measured)  # loads code
    outcomes = []
    for setup in setups(arguments.fleets, arguments.steps):
        outcomes.append(simulate(setup, measured))
        print(row(outcomes[-1]), flush=True)
    sized = simulate(sizing_setup(), measured)
    record = {
        "name": arguments.name,
        "command": shlex.join(["python", "benchmarks/simulator.py", *sys.argv[1:]]),
        "note": arguments.note,
        "machine": machine(),
        "versions": {"python": sys.version.split()[0], **{each: version(each) for each in ("numpy", "torch", "ray")}},
        "inputs": measured.source,
        "outcomes": [as_json(outcome) for outcome in outcomes],
        "sizing": as_json(sized),
    }
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / f"{arguments.name}.md").write_text(report(record, outcomes, sized))
    plot(outcomes, sized, RESULTS / f"{arguments.name}.png")
    print(report(record, outcomes, sized))
    return 0


def measure(directory: Path) -> Measured:
    """Lengths of the SFT model's responses, and the seconds of each PPO step, of a finished run."""
    lines = (directory / "comparison" / "rankings_train.jsonl").read_text().splitlines()
    lengths = [len(ids) for line in lines for ids in json.loads(line)["response_token_ids"]]
    steps = [json.loads(line) for line in (directory / "ppo" / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if "time/update" in step]

    def each(name: str) -> tuple[float, ...]:
        return tuple(round(step[f"time/{name}"], 4) for step in steps)

    return Measured(
        source=f"{len(lengths)} responses and {len(steps)} PPO steps of one run of configs/quickstart.yaml on CPU",
        response_lengths=tuple(float(x) for x in np.percentile(lengths, range(101))),
        generate_tokens_per_second=each("generate_tokens_per_second"),
        update_seconds=each("update"),
        score_seconds=each("score"),
        sync_seconds=each("sync"),
    )


def as_json(outcome: Outcome) -> dict[str, Any]:
    return {**asdict(outcome), **{name: getattr(outcome, name) for name in NUMBERS}}


def row(outcome: Outcome) -> str:
    setup, seconds = outcome.setup, [b.at_s - a.at_s for a, b in zip(outcome.steps, outcome.steps[1:], strict=False)]
    rate = next(name for name, value in FAULTS.items() if value == setup.deaths_per_node_hour)
    cells = [
        f"{setup.generators:,}",
        rate,
        str(setup.steps),
        f"{setup.rollouts_per_step:,}",
        f"{outcome.simulated_s / 60:.0f}",
        f"{sum(seconds) / len(seconds):.1f}",
        f"{outcome.deaths} + {outcome.hangs}",
        f"{outcome.restarts}",
        f"{outcome.requeued_shards}",
        f"{outcome.counted:,}",
        f"{100 * outcome.overhead:.2f}%",
        f"{100 * outcome.parts_overhead:.2f}%",
        f"{1e6 * outcome.cpu_per_rollout:.0f}",
        f"{outcome.growth_bytes / 2**20:+.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "generators",
    "node deaths",
    "steps",
    "rollouts a step",
    "simulated minutes",
    "seconds a step",
    "died + hung",
    "started again",
    "shards given to others",
    "rollouts, each trained on once",
    "driver's CPU a second",
    "and the simulated parts'",
    "driver's µs a rollout",
    "memory growth, MiB",
)


def report(record: Mapping[str, Any], outcomes: Sequence[Outcome], sized: Outcome) -> str:
    lines = [
        f"# {record['name']}",
        "",
        f"Command: `{record['command']}`",
        "",
        machine_line(record),
        "",
        assumptions(str(record["inputs"]), outcomes[0].setup.scale),
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---" * len(HEAD) + "|",
        *map(row, outcomes),
        "",
        *sizing_lines(sized),
        "",
        f"Versions: {', '.join(f'{name} {value}' for name, value in record['versions'].items())}",
        "",
    ]
    return "\n".join(lines)


def assumptions(inputs: str, scale: Scale) -> str:
    return (
        f"Spreads of lengths and times: {inputs}. Their means are scaled to {scale.response_length:.0f} tokens a "
        f"response, {scale.tokens_per_second:.0f} tokens/s an engine, {scale.update_s:g} s an update, "
        f"{scale.sync_s:g} s a weight sync, {scale.node_start_s:g} s until a lost node and its engine are back; an "
        f"engine that does not answer for {CALL_LIMIT_S:g} s is taken for dead. The driver's CPU is that of the whole "
        "process less that of the simulated parts' own methods, which stands beside it, for each simulated second, the "
        "first step left out. All garbage collection and the event loop's work for the simulated parts count as the "
        "driver's; Ray's share of a call is in neither. Memory growth: resident memory after the last step less that "
        "after the first third. A run in which a prompt were lost or trained on twice would have ended with an error."
    )


def sizing_lines(sized: Outcome) -> list[str]:
    rule = sized.setup.sizing
    assert rule is not None
    changes = ", ".join(f"x{factor:g} after step {step}" for step, factor in (sized.setup.load or {}).items())
    lines = [
        f"## The fleet sizes itself: {rule.min_size} to {rule.max_size} generators, length of responses {changes}",
        "",
        f"Grow where the trainer waits for more than {rule.grow_above:.0%} of {rule.patience} steps in a row, shrink "
        f"where a generator is idle for more than {rule.shrink_above:.0%}; {rule.cooldown_s:g} s between changes.",
        "",
        "| step | minute | generators | trainer waits | generator idle |",
        "|---|---|---|---|---|",
    ]
    shown, before = [], -1.0
    for number, step in enumerate(sized.steps, start=1):
        if step.generators != before or number == len(sized.steps) or number - 1 in (sized.setup.load or {}):
            shown.append(
                f"| {number} | {step.at_s / 60:.1f} | {step.generators:.0f} | {step.waiting:.0%} | {step.idle:.0%} |"
            )
        before = step.generators
    return [*lines, *shown]


def plot(outcomes: Sequence[Outcome], sized: Outcome, path: Path) -> None:
    """Left: overhead by fleet. Right: the fleet that sizes itself."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, rate in FAULTS.items():
        those = [o for o in outcomes if o.setup.deaths_per_node_hour == rate]
        left.plot([o.setup.generators for o in those], [100 * o.overhead for o in those], "o-", label=f"deaths: {name}")
    left.axhline(2.0, color="grey", linestyle="--", label="limit")
    left.set(xscale="log", yscale="log", xlabel="generators", ylabel="driver's CPU, % of the time")
    left.legend(frameon=False)
    minutes = [step.at_s / 60 for step in sized.steps]
    right.step(minutes, [step.generators for step in sized.steps], where="post", color="C0")
    right.set(xlabel="simulated minutes", ylabel="generators")
    waits = right.twinx()
    waits.plot(minutes, [step.waiting for step in sized.steps], color="C1", label="trainer waits")
    waits.plot(minutes, [step.idle for step in sized.steps], color="C2", label="generator idle")
    waits.set(ylim=(0, 1), ylabel="share of the step")
    waits.legend(frameon=False, loc="upper right")
    for step in sized.setup.load or {}:
        right.axvline(minutes[step - 1], color="grey", linestyle=":")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())

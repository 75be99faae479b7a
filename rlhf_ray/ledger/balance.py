"""The sums of a run: by account, by worker, by stage, against the time that the workers were there; and what came out.

Two clocks meet here: how long each worker was there is what the driver saw, what it did is what it has said itself. A
difference is time that nobody knows, that was booked twice, or clocks that run apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.ledger.accounts import COMPUTES, DRIVER, Account
from rlhf_ray.ledger.lanes import Lanes, lanes
from rlhf_ray.ledger.lives import Life, Story
from rlhf_ray.ledger.spans import Stretch, common, total, union
from rlhf_ray.planning.hardware import ACCELERATORS

WORK_NAMES = {
    Account.SCORING: "scoring",
    Account.FORWARDS: "forwards",
    Account.POLICY: "policy_update",
    Account.CRITIC: "critic_update",
}
"""Accounts whose operations are counted, and what they are called in ``summary.json``."""
TOLERANCE = 0.02
"""Of the time that the workers were there."""


@dataclass(frozen=True)
class WorkerSum:
    """``there_s`` by the driver's clock, over all lives; ``booked_s`` is the sum of the accounts."""

    worker: str
    role: str
    there_s: float
    booked_s: float

    @property
    def difference_s(self) -> float:
        return self.booked_s - self.there_s


@dataclass(frozen=True)
class Throughput:
    """Of PPO, per second of its steps, evaluation and saving left out. ``workers`` and ``gpus`` are means.

    ``flops`` and ``computing_s`` are operations and worker-seconds by account; ``peak_flops`` is what the device of a
    trainer's rank could do a second, 0 where that is not known.
    """

    steps: int
    seconds: float
    prompts: int
    sampled: int
    trained: int
    workers: float
    gpus: float
    sync_bytes: float = 0.0
    sync_s: float = 0.0
    flops: Mapping[Account, float] = field(default_factory=dict)
    computing_s: Mapping[Account, float] = field(default_factory=dict)
    peak_flops: float = 0.0

    @property
    def flops_per_second(self) -> dict[Account, float]:
        """Of a worker while its time goes to the account."""
        return {each: n / self.computing_s[each] for each, n in self.flops.items() if n and self.computing_s.get(each)}

    @property
    def mfu(self) -> dict[Account, float]:
        """The same as a share of what the device could do: model FLOPs utilisation, of the trainer's accounts."""
        if not self.peak_flops:
            return {}
        return {each: rate / self.peak_flops for each, rate in self.flops_per_second.items() if each in COMPUTES}

    def rates(self) -> dict[str, float]:
        """``prompts_per_second`` ..., each also ``_per_worker`` and, where there are any, ``_per_gpu``.

        Where they are known also ``sync_bytes_per_second``, ``scoring_flops_per_second`` ... and ``..._mfu``.
        """
        found = {}
        for name, count in (
            ("prompts", self.prompts),
            ("sampled_tokens", self.sampled),
            ("trained_tokens", self.trained),
        ):
            rate = found[f"{name}_per_second"] = count / self.seconds
            found |= {f"{name}_per_second_per_worker": rate / self.workers} if self.workers else {}
            found |= {f"{name}_per_second_per_gpu": rate / self.gpus} if self.gpus else {}
        if self.sync_bytes and self.sync_s:
            found["sync_bytes_per_second"] = self.sync_bytes / self.sync_s
        found |= {f"{WORK_NAMES[each]}_flops_per_second": rate for each, rate in self.flops_per_second.items()}
        return found | {f"{WORK_NAMES[each]}_mfu": share for each, share in self.mfu.items()}


@dataclass(frozen=True)
class Balance:
    """``by_role`` and ``by_stage`` are seconds by account."""

    by_role: Mapping[str, Mapping[Account, float]]
    by_stage: Mapping[str, Mapping[Account, float]]
    workers: tuple[WorkerSum, ...]
    wall_s: float
    throughput: Throughput | None

    @property
    def totals(self) -> dict[Account, float]:
        """Of all workers, every account that holds anything."""
        sums = {account: sum(role.get(account, 0.0) for role in self.by_role.values()) for account in Account}
        return {account: seconds for account, seconds in sums.items() if seconds > 0}

    @property
    def there_s(self) -> float:
        return sum(worker.there_s for worker in self.workers)

    @property
    def booked_s(self) -> float:
        return sum(worker.booked_s for worker in self.workers)

    @property
    def difference(self) -> float:
        """The sum of what the workers differ by, as a share: one that has too much does not make up for another."""
        return sum(abs(worker.difference_s) for worker in self.workers) / self.there_s if self.there_s else 0.0

    @property
    def balances(self) -> bool:
        return self.difference <= TOLERANCE

    def as_json(self) -> dict[str, Any]:
        """For ``summary.json``."""
        rates = {} if self.throughput is None else self.throughput.rates()
        return {
            "balances": self.balances,
            "difference": self.difference,
            "wall_seconds": self.wall_s,
            "worker_seconds": self.there_s,
            "booked_seconds": self.booked_s,
            "accounts": {str(account): seconds for account, seconds in self.totals.items()},
            "by_role": {role: _named(sums) for role, sums in self.by_role.items()},
            "by_stage": {stage: _named(sums) for stage, sums in self.by_stage.items()},
            "workers": {w.worker: {"there_seconds": w.there_s, "booked_seconds": w.booked_s} for w in self.workers},
            "throughput": rates,
        }


def _named(sums: Mapping[Account, float]) -> dict[str, float]:
    return {str(account): sums[account] for account in Account if sums.get(account, 0.0) > 0}


def balance(story: Story, drawn: Lanes | None = None) -> Balance:
    """Add up a story. ``drawn`` are its lanes, where they are known already."""
    drawn = lanes(story) if drawn is None else drawn
    lives: dict[str, list[Life]] = defaultdict(list)
    for life in story.lives:
        lives[life.worker].append(life)
    by_role: dict[str, dict[Account, float]] = defaultdict(lambda: defaultdict(float))
    workers = []
    for worker, spans in drawn.items():
        role = lives[worker][0].role
        for span in spans:
            by_role[role][span.account] += span.seconds
        there_s = sum(life.seconds for life in lives[worker])
        workers.append(WorkerSum(worker, role, there_s, sum(span.seconds for span in spans)))
    wall_s = sum(life.seconds for life in lives[DRIVER])
    return Balance(by_role, _by_stage(story, drawn), tuple(workers), wall_s, throughput(story, drawn))


def _by_stage(story: Story, drawn: Lanes) -> dict[str, dict[Account, float]]:
    """A stage goes on until another begins, or the run ends."""
    ends = [life.ended for life in story.lives if life.worker == DRIVER]
    marks = sorted([*(at for _, at in story.stages), *ends])
    found: dict[str, dict[Account, float]] = defaultdict(lambda: defaultdict(float))
    windows: dict[str, list[Stretch]] = defaultdict(list)
    for name, begun in story.stages:
        windows[name].append((begun, next((mark for mark in marks if mark > begun), begun)))
    for name, window in windows.items():
        for span in (span for spans in drawn.values() for span in spans):
            if seconds := total(common([span.stretch], window)):
                found[name][span.account] += seconds
    return found


def throughput(story: Story, drawn: Lanes) -> Throughput | None:
    """None where no step of PPO was done."""
    windows = union((step.begun, step.ended) for step in story.steps)
    if not (seconds := total(windows)):
        return None
    actors = [life for life in story.lives if life.worker != DRIVER]
    there = {id(life): total(common([(life.begun, life.ended)], windows)) - _rested(life, windows) for life in actors}
    return Throughput(
        steps=len(story.steps),
        seconds=seconds,
        prompts=sum(step.prompts for step in story.steps),
        sampled=sum(step.sampled for step in story.steps),
        trained=sum(step.trained for step in story.steps),
        workers=sum(there.values()) / seconds,
        gpus=sum(life.gpus * there[id(life)] for life in actors) / seconds,
        sync_bytes=sum(step.sync_bytes for step in story.steps),
        sync_s=total(common(((d.begun, d.ended) for d in story.during if d.account == Account.SYNC), windows)),
        flops={each: sum(step.flops.get(str(each), 0.0) for step in story.steps) for each in WORK_NAMES},
        computing_s={each: _spent_on(each, drawn, windows) for each in WORK_NAMES},
        peak_flops=_peak_flops(story),
    )


def _spent_on(account: Account, drawn: Lanes, windows: Sequence[Stretch]) -> float:
    own = [span.stretch for spans in drawn.values() for span in spans if span.account == account]
    return total(common(own, windows))


def _peak_flops(story: Story) -> float:
    """Where all steps were done on devices of one kind."""
    devices = {step.device for step in story.steps}
    known = ACCELERATORS.get(devices.pop()) if len(devices) == 1 else None
    return known.flops if known else 0.0


def _rested(life: Life, windows: Sequence[Stretch]) -> float:
    """Seconds of the steps in which it was kept for another stage."""
    return total(common(life.rests, windows))

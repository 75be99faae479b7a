"""A step that failed, done again from its quarantine: which rollouts, losses and gradients hold bad numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.directories import NotWholeError, read_manifest
from rlhf_ray.errors import DataError
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.pipeline.context import Context, Scope
from rlhf_ray.pipeline.ppo import ppo_spec, pretraining_mix
from rlhf_ray.pipeline.recording import QUARANTINE_FILE, STATE
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import IntArray, Rollout
from rlhf_ray.roles import ScoredShard
from rlhf_ray.rollout_store import ROLLOUTS, SavedStep
from rlhf_ray.stages.ppo_failure import Findings

SHOWN = 10  # rollouts, and parameters
SHOWN_CHARACTERS = 200
LOSSES = ("ppo/policy_loss", "ppo/kl_loss", "ppo/ptx_loss", "ppo/value_loss", "ppo/ratio_max", "ppo/first_kl")


@dataclass(frozen=True)
class Quarantined:
    """A failed step on disk: what was said of it, where in the step it failed, and its rollouts."""

    directory: Path
    step: int
    error: str
    where: str
    rollouts: SavedStep

    @classmethod
    def read(cls, directory: Path) -> Quarantined:
        """Raises DataError where the directory is not what was written."""
        try:
            _, content = read_manifest(directory, manifest=QUARANTINE_FILE, verify=True)
            said = int(content["step"]), str(content["error"]), str(content["where"])
        except (NotWholeError, KeyError, ValueError) as error:
            raise DataError(f"{directory}: not a whole quarantined step ({error}); copy the directory again") from error
        return cls(directory, *said, rollouts=SavedStep(directory / ROLLOUTS))


@dataclass(frozen=True)
class Examination:
    """What the ranks found when they did the failing part again."""

    quarantined: Quarantined
    findings: tuple[Findings, ...]
    rollouts: Mapping[int, Rollout]  # by order

    @property
    def reproduced(self) -> bool:
        return all(found.error == self.quarantined.error for found in self.findings)

    @property
    def rows(self) -> dict[int, tuple[str, ...]]:
        return {order: names for found in self.findings for order, names in sorted(found.rows.items())}

    @property
    def largest(self) -> dict[str, tuple[float, int]]:
        """The largest finite magnitude of all ranks and its rollout, by what it is of."""
        every = [(what, found) for finding in self.findings for what, found in finding.largest.items()]
        return {what: max(found for name, found in every if name == what) for what in dict(every)}

    @property
    def losses(self) -> dict[str, float]:
        means = MetricSums.merged([found.metrics for found in self.findings]).means()
        return {name: means[name] for name in LOSSES if name in means}

    @property
    def gradients(self) -> list[str]:
        """Parameters whose gradient was not finite on any rank, in the order of the model."""
        return list(dict.fromkeys(name for found in self.findings for name in found.gradients))

    def lines(self, decode: Callable[[IntArray], str]) -> list[str]:
        """The report, for people; ends with whether the failure was reproduced."""
        failed = self.quarantined
        lines = [f"Step {failed.step} failed in {failed.where}: {failed.error}"]
        lines += [f"rollouts with numbers that are not finite: {len(self.rows) or 'none'}"]
        for order, names in sorted(self.rows.items())[:SHOWN]:
            rollout = self.rollouts[order]
            text = decode(rollout.response_ids)[:SHOWN_CHARACTERS]
            lines.append(f"  {rollout.rollout_id}: {', '.join(names)}; {text!r}")
        for what, (value, order) in sorted(self.largest.items()):
            lines.append(f"largest finite {what}: {value:.4g}, in {self.rollouts[order].rollout_id}")
        lines += [f"{name}: {value:.6g}" for name, value in self.losses.items()]
        lines += [f"parameters whose gradient is not finite: {len(self.gradients) or 'none'}"]
        lines += [f"  {name}" for name in self.gradients[:SHOWN]]
        return [*lines, self.verdict]

    @property
    def verdict(self) -> str:
        errors = {found.error for found in self.findings}
        if self.reproduced:
            return "reproduced"
        if errors == {""}:
            return "not reproduced: nothing failed"
        return f"not reproduced: {'; '.join(sorted(errors - {''}))}{' on some ranks' if '' in errors else ''}"


async def examine(context: Context, quarantined: Quarantined) -> Examination:
    """Start the trainer with the state of the failure and let it do the failing part again."""
    tools = TextTools.of(context)
    async with context.fleet.scope() as scope:
        trainer = await scope.ppo_trainer(ppo_spec(context), demonstrations=pretraining_mix(context, tools))
        await trainer.load_state(str(quarantined.directory), STATE)
        shards, rollouts = await _trained_shards(quarantined.rollouts, scope)
        record = quarantined.rollouts.record
        findings = await trainer.examine(
            str(quarantined.directory),
            step=record.step,
            shards=shards,
            kl_coef=record.kl_coef,
            baselines=record.baselines,
        )
    return Examination(quarantined, findings, rollouts)


async def _trained_shards(step: SavedStep, scope: Scope) -> tuple[list[ScoredShard], dict[int, Rollout]]:
    """What the step was trained on, as the trainer was given it; and the rollouts by order."""
    trained, shards = step.record.trained, []
    rollouts: dict[int, Rollout] = {}
    for index in range(len(step)):
        saved = step.shard(index)
        kept = [rollout for rollout in saved.rollouts if rollout.order in trained]
        if saved.reference is None or not kept:  # ReMax's greedy responses share orders with others
            continue
        rollouts |= {rollout.order: rollout for rollout in kept}
        shards.append(
            ScoredShard(
                summaries=tuple(rollout.summary for rollout in kept),
                rollouts=await scope.put(saved.rollouts),
                ref_logprobs=await scope.put(saved.reference),
                scores=tuple(trained[rollout.order] for rollout in kept),
            )
        )
    return shards, rollouts

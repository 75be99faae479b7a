"""From a failing update to the report of its replay: with fakes, and once with a real trainer in another process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.groups import PpoTrainerGroup, TrainerGroup
from rlhf_ray.config.load import load_config
from rlhf_ray.config.run import RunConfig
from rlhf_ray.directories import read_manifest
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.errors import ContractError, DataError, NumericsError, RlhfError
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.pipeline import quarantine as page
from rlhf_ray.pipeline.quarantine import Examination, Quarantined, examine
from rlhf_ray.pipeline.recording import RecordedTrainer, StepNotes
from rlhf_ray.records import Rollout, Score
from rlhf_ray.roles import Ref, RolloutShard, ScoredShard
from rlhf_ray.rollout_store import SavedStep
from rlhf_ray.stages.ppo_failure import Findings
from tests import tiny, trainers
from tests.actors.fakes import FakeHandle
from tests.ranks import ranks

ROLLOUTS = tiny.rollouts(6)
REFERENCES = tuple(np.full(len(r.response_ids), -4.0, dtype=np.float32) for r in ROLLOUTS)
SCORES = tuple(Score(0.5 * r.order, parts={"a": 0.5 * r.order}) for r in ROLLOUTS)


class Here:
    """Blocks lie in this process."""

    async def fetch(self, ref: Ref) -> Any:
        return ref

    async def put(self, block: object) -> Ref:
        return block


class BadTrainer:
    """Fails, and leaves a state and a place."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.disk_is_full = False

    async def update(self, **_: Any) -> Mapping[str, float]:
        raise self.error

    async def save_state(self, directory: str, tag: str) -> None:
        if self.disk_is_full:
            raise OSError(28, "No space left on device")
        (Path(directory) / tag).write_text("state")

    async def keep_failure(self, directory: str) -> str:
        (Path(directory) / "failure").write_text("what it did")
        return "the policy's update in epoch 1, minibatch 0"


def of_step(step: int) -> list[Rollout]:
    return [replace(rollout, rollout_id=f"{step}/{rollout.rollout_id}") for rollout in ROLLOUTS]


def noted(scores: Sequence[Score] = SCORES, step: int = 12) -> tuple[StepNotes, ScoredShard]:
    """A step of one shard, as the ears heard it and as the driver gives it to the trainer, without its last rollout."""
    rollouts = of_step(step)
    notes, shard = StepNotes(), RolloutShard(tuple(r.summary for r in rollouts), rollouts)
    notes.sampled(shard)
    notes.referred(shard, REFERENCES)
    notes.scored(shard, tuple(scores))
    doubled = tuple(replace(score, total=2 * score.total) for score in scores[:-1])
    return notes, ScoredShard(shard.summaries[:-1], rollouts, REFERENCES, doubled)


async def refused(trainer: Any, directory: Path, config: RunConfig | None = None) -> NumericsError:
    notes, shard = noted()
    recorded = RecordedTrainer(trainer, notes, Here(), directory, config or RunConfig())  # type: ignore[arg-type]
    with pytest.raises(NumericsError) as raised:
        await recorded.update(step=12, shards=[shard], kl_coef=0.1, baselines={"p0": 0.25})
    return raised.value


# -------------------------------------------------------------------------------------------------------------- writing
async def test_a_failing_step_is_kept_whole_and_the_error_says_where(tmp_path: Path) -> None:
    config = RunConfig(seed=9, output_dir="runs/nine")
    error = await refused(BadTrainer(NumericsError("the loss is not finite")), tmp_path, config)
    place = tmp_path / "quarantine" / "step_000012"
    assert str(error) == (
        "the loss is not finite. The step is quarantined, with the trainer's state; "
        f"to do it again: rlhf-ray replay {place}"
    )
    kept = Quarantined.read(place)
    assert (kept.step, kept.error) == (12, "the loss is not finite")
    assert kept.where == "the policy's update in epoch 1, minibatch 0"
    assert load_config(place / "config.yaml") == config
    files, _ = read_manifest(place, manifest="quarantine.json", verify=True)
    assert {"trainer", "failure", "config.yaml", "rollouts/step.json"} <= set(files)
    (saved,) = kept.rollouts.shards()
    assert saved.scores == SCORES
    assert [r.rollout_id for r in saved.rollouts] == [r.rollout_id for r in of_step(12)]
    assert {order: score.total for order, score in kept.rollouts.record.trained.items()} == {
        order: float(order) for order in range(5)
    }
    assert kept.rollouts.record.baselines == {"p0": 0.25}
    assert not (tmp_path / "rollouts").exists()


async def test_a_broken_contract_stays_one(tmp_path: Path) -> None:
    error = await refused(BadTrainer(ContractError("the KL is 1")), tmp_path)
    assert isinstance(error, ContractError)
    assert "quarantine/step_000012" in str(error)


async def test_where_it_cannot_be_kept_the_first_error_is_still_told(tmp_path: Path) -> None:
    trainer = BadTrainer(NumericsError("the loss is not finite"))
    trainer.disk_is_full = True
    error = await refused(trainer, tmp_path)
    assert str(error).startswith("the loss is not finite. The step could not be quarantined in ")
    assert "No space left" in str(error)
    assert not (tmp_path / "quarantine" / "step_000012").exists()


async def test_another_error_is_left_alone(tmp_path: Path) -> None:
    notes, shard = noted()
    recorded = RecordedTrainer(BadTrainer(RlhfError("died")), notes, Here(), tmp_path, RunConfig())  # type: ignore[arg-type]
    with pytest.raises(RlhfError, match=r"^died$"):
        await recorded.update(step=1, shards=[shard], kl_coef=0.1, baselines={})
    assert not (tmp_path / "quarantine").exists()


async def test_what_was_sampled_ahead_for_the_next_step_waits_for_it(tmp_path: Path) -> None:
    notes, shard = noted()
    ahead = RolloutShard(tuple(r.summary for r in of_step(13)), of_step(13))
    notes.sampled(ahead)
    recorded = RecordedTrainer(BadTrainer(NumericsError("x")), notes, Here(), tmp_path, RunConfig())  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match="quarantined"):
        await recorded.update(step=12, shards=[shard], kl_coef=0.1, baselines={})
    saved = SavedStep(tmp_path / "quarantine" / "step_000012" / "rollouts")
    assert [saved.rollout_ids(index) for index in range(len(saved))] == [[r.rollout_id for r in of_step(12)]]
    assert [said.shard for said in notes._said.values()] == [ahead]


async def test_a_quarantine_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    await refused(BadTrainer(NumericsError("x")), tmp_path)
    place = tmp_path / "quarantine" / "step_000012"
    (place / "trainer").write_text("stake")
    with pytest.raises(DataError, match=r"step_000012: not a whole quarantined step .*trainer does not hold"):
        Quarantined.read(place)


# --------------------------------------------------------------------------------------------------------------- report
async def test_the_report_names_rollouts_losses_and_parameters(tmp_path: Path) -> None:
    await refused(BadTrainer(NumericsError("the loss is not finite")), tmp_path)
    kept = Quarantined.read(tmp_path / "quarantine" / "step_000012")
    sums = MetricSums()
    sums.add("ppo/policy_loss", math.nan, 4)
    sums.add("ppo/kl_loss", 2.0, 4)
    found = (
        Findings("the loss is not finite", {3: ("score", "reward")}, {"score": (2.0, 1)}, sums, ("b.weight",)),
        Findings("the loss is not finite", {1: ("advantage",)}, {"score": (7.0, 4)}, MetricSums(), ("a.weight",)),
    )
    examination = Examination(kept, found, {r.order: r for r in ROLLOUTS})
    assert examination.lines(lambda ids: f"{len(ids)} tokens") == [
        "Step 12 failed in the policy's update in epoch 1, minibatch 0: the loss is not finite",
        "rollouts with numbers that are not finite: 2",
        f"  p1/0: advantage; '{len(ROLLOUTS[1].response_ids)} tokens'",
        f"  p3/0: score, reward; '{len(ROLLOUTS[3].response_ids)} tokens'",
        "largest finite score: 7, in p4/0",
        "ppo/policy_loss: nan",
        "ppo/kl_loss: 0.5",
        "parameters whose gradient is not finite: 2",
        "  b.weight",
        "  a.weight",
        "reproduced",
    ]
    other = replace(examination, findings=(found[0], Findings("")))
    assert other.lines(str)[-1] == "not reproduced: the loss is not finite on some ranks"
    assert replace(examination, findings=(Findings(""),)).lines(str)[-1] == "not reproduced: nothing failed"


# ------------------------------------------------------------------------------------------------ with a real trainer
LEARNERS: dict[str, Any] = {}  # in the rank's process


def build(info: RankInfo, case: trainers.PpoCase) -> None:
    LEARNERS["one"] = case.spec.build(info)


def ask(_info: RankInfo, verb: str, *arguments: Any) -> tuple[Any, str]:
    """What the learner answers, or the NumericsError that it raises."""
    try:
        return getattr(LEARNERS["one"], verb)(*arguments), ""
    except NumericsError as error:
        return None, str(error)


class FarRank:
    """A learner in another process, behind the verbs of an actor."""

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            ((value, error),) = ranks(1).run(ask, verb, *arguments)
            if error:
                raise NumericsError(error)
            return value

        return call


@pytest.mark.integration
@pytest.mark.parametrize(
    ("broken", "where", "says"),
    [
        ("reference", "the step's experience, before its first update", "p2/0: reference log-probability, reward"),
        ("score", "the critic's update in epoch 1, minibatch", "ppo/value_loss: inf"),
    ],
)
async def test_a_failure_of_a_real_trainer_is_reproduced_from_its_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, where: str, says: str
) -> None:
    policy = tiny.saved(tiny.causal_model(), tmp_path / "policy")
    critic = tiny.saved(tiny.scalar_model(), tmp_path / "critic")
    case = trainers.PpoCase(policy, critic, ROLLOUTS, REFERENCES)
    config = RunConfig(ppo=replace(case.ppo, rollouts_per_step=6))
    ranks(1).run(build, case)
    group = TrainerGroup([FakeHandle(FarRank())], case.training, device="cpu", timeout_s=60)
    trainer = PpoTrainerGroup(group, config.ppo, seed=3, demonstrations=lambda step: ())

    notes, good = noted(step=1)
    recorded = RecordedTrainer(trainer, notes, Here(), tmp_path, config)  # type: ignore[arg-type]
    await recorded.update(step=1, shards=[whole(good, SCORES)], kl_coef=0.1, baselines={})
    references = list(REFERENCES)
    scores = [replace(score, total=1e30 * score.total) for score in SCORES] if broken == "score" else list(SCORES)
    if broken == "reference":
        references[2] = references[2] * np.float32("nan")
    notes, _ = noted(scores, step=2)
    said = next(iter(notes._said.values()))
    notes.referred(said.shard, tuple(references))
    recorded = RecordedTrainer(trainer, notes, Here(), tmp_path, config)  # type: ignore[arg-type]
    bad = replace(whole(good, scores), ref_logprobs=tuple(references))
    with pytest.raises(NumericsError, match="rlhf-ray replay") as raised:
        await recorded.update(step=2, shards=[bad], kl_coef=0.1, baselines={})
    kept = Quarantined.read(tmp_path / "quarantine" / "step_000002")
    assert kept.where.startswith(where)

    ranks(1).run(build, case)  # another trainer, from the SFT model
    monkeypatch.setattr(page, "ppo_spec", lambda context: None)
    monkeypatch.setattr(page, "pretraining_mix", lambda context, tools: None)
    monkeypatch.setattr(page, "TextTools", SimpleNamespace(of=lambda context: None))
    examination = await examine(SimpleNamespace(fleet=OneTrainer(trainer)), kept)  # type: ignore[arg-type]
    lines = examination.lines(lambda ids: "text")
    assert any(says in line for line in lines), lines
    assert lines[-1] == "reproduced"
    assert str(raised.value).startswith(kept.error)


def whole(shard: ScoredShard, scores: Sequence[Score]) -> ScoredShard:
    return replace(shard, summaries=tuple(r.summary for r in ROLLOUTS), scores=tuple(scores))


class OneTrainer(Here):
    """A fleet that has started a trainer."""

    def __init__(self, trainer: PpoTrainerGroup) -> None:
        self.trainer = trainer

    @asynccontextmanager
    async def scope(self) -> Any:
        yield self

    async def ppo_trainer(self, spec: Any, *, demonstrations: Any) -> PpoTrainerGroup:
        return self.trainer

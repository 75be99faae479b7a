"""The ledger of a run: what PPO's steps add to it, its table, its trace, and whether it balances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rlhf_ray.errors import ConfigError
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.balance import Balance, balance
from rlhf_ray.ledger.lanes import lanes
from rlhf_ray.ledger.lives import read_story
from rlhf_ray.ledger.record import RunLedger, into_file
from rlhf_ray.ledger.trace import write_trace
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.reward_model import own_reward_models
from rlhf_ray.pipeline.sft import start_path
from rlhf_ray.planning.achieved import StepWork
from rlhf_ray.planning.shapes import resolve_shape
from rlhf_ray.roles import ScoredShard
from rlhf_ray.step_batch import StepBatch

WORK = {
    Account.SCORING: "work/scoring_flops",
    Account.FORWARDS: "work/forward_flops",
    Account.POLICY: "work/policy_flops",
    Account.CRITIC: "work/critic_flops",
}
SYNC = "sync"  # the phase


class StepLedger:
    """Tells the ledger of a run where PPO is. ``device`` names the trainer's accelerator, where its rates are known."""

    def __init__(self, run: RunLedger, device: str = "") -> None:
        self.run = run
        self._device = device
        self._lost = 0
        self._syncing = ExitStack()

    def begins(self, phase: str) -> None:
        """A phase of a step; the first one begins the step, and the sync is its last."""
        self._syncing.close()
        if phase == "generate":
            self.run.step_begins()
        if phase == SYNC:
            self._syncing.enter_context(self.run.during(Account.SYNC))

    def ends(self, metrics: Mapping[str, float], tokens_lost: int) -> None:
        """A step has ended. ``tokens_lost`` are those of the run so far that were sampled again."""
        self._syncing.close()
        again, self._lost = tokens_lost - self._lost, tokens_lost
        skipped = "ppo/kl_per_response" not in metrics
        sampled = int(metrics["ppo/sampled_tokens"])
        used = 0 if skipped else int(metrics["ppo/trained_response_tokens"])
        self.run.step_ends(
            prompts=int(metrics["ppo/prompts"]),
            sampled=sampled + again,
            discarded=sampled + again - used,
            trained=0 if skipped else int(metrics["ppo/trained_tokens"]),
            sync_bytes=metrics.get("ppo/sync_bytes", 0.0),
            flops={} if skipped else {str(name): metrics[key] for name, key in WORK.items() if key in metrics},
            device=self._device,
        )


def step_work(context: Context) -> StepWork | None:
    """What counts the work of a step; None for models of a family without formulas."""
    config = context.config
    try:
        shape = resolve_shape(str(start_path(context)), config.model)
        paths = [source.path for source in config.rewards.used.values() if source.kind == "model" and source.path]
        paths += own_reward_models(context) if config.rewards.uses_own_model else []
        rewards = [resolve_shape(path, config.model) for path in paths]
    except ConfigError:
        return None
    return StepWork.of(config, shape, rewards)


def counted_by(work: StepWork | None) -> Callable[[StepBatch], Mapping[str, float]]:
    """``work/*`` of a batch; nothing where it cannot be counted."""

    def lengths(shards: tuple[ScoredShard, ...]) -> list[tuple[int, int]]:
        return [(summary.prompt_length, summary.response_length) for shard in shards for summary in shard.summaries]

    def count(batch: StepBatch) -> Mapping[str, float]:
        return {} if work is None else work.count(sampled=lengths(batch.sampled), trained=lengths(batch.trained))

    return count


def device_of(context: Context) -> str:
    """The accelerator that a trainer's operations are compared with: its rate is for bfloat16."""
    found = context.accelerator
    return found.name if found is not None and context.config.training.dtype == "bfloat16" else ""


@contextmanager
def ledger_of(root: Path) -> Iterator[RunLedger]:
    """The ledger of the run in ``root``; closed however the block ends."""
    ledger = RunLedger(into_file(root))
    try:
        yield ledger
    finally:
        ledger.close()


def drawn_up(root: Path) -> Balance | None:
    """The balance of the run in ``root``, over every time that it was started; its trace lies beside the ledger."""
    story = read_story(root)
    if story is None:
        return None
    drawn = lanes(story)
    write_trace(story, drawn, root)
    return balance(story, drawn)

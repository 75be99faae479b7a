"""The ledger of a run: what PPO's steps add to it, its table, its trace, and whether it balances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.balance import Balance, balance
from rlhf_ray.ledger.lanes import lanes
from rlhf_ray.ledger.lives import read_story
from rlhf_ray.ledger.record import RunLedger, into_file
from rlhf_ray.ledger.trace import write_trace

SYNC = "sync"  # the phase


class StepLedger:
    """Tells the ledger of a run where PPO is."""

    def __init__(self, run: RunLedger) -> None:
        self.run = run
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
        )


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

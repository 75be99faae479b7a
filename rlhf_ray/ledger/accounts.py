"""The accounts, what each holds, and what one who has nothing to do waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum


class Account(StrEnum):
    """In the order of the table."""

    GENERATION = "useful generation"
    DISCARDED = "discarded generation"
    SCORING = "scoring"
    FORWARDS = "old-logprob and value forwards"
    POLICY = "policy update"
    CRITIC = "critic update"
    FITTING = "fitting"
    SYNC = "weight sync"
    CHECKPOINT = "checkpoint"
    EVALUATION = "evaluation"
    FOR_ROLLOUTS = "waiting for rollouts"
    FOR_SCORES = "waiting for scores"
    FOR_TRAINER = "waiting for trainer"
    START_UP = "start-up"
    RESTART = "restart"
    DRIVER = "driver"
    AT_REST = "at rest"


DEFINITIONS: Mapping[Account, str] = {
    Account.GENERATION: "A generator samples rollouts that are used.",
    Account.DISCARDED: "A generator samples rollouts that are not: filtered out, failed, sampled again, of a skipped "
    "step. By their share of the step's sampled tokens.",
    Account.SCORING: "A frozen server computes scores or reference log-probabilities.",
    Account.FORWARDS: "A trainer computes old log-probabilities, values and advantages.",
    Account.POLICY: "A trainer updates the policy.",
    Account.CRITIC: "A trainer updates the critic.",
    Account.FITTING: "A trainer learns in another stage than PPO: SFT, reward model, DPO.",
    Account.SYNC: "Weights go from the trainer to the generators; also whoever waits for that.",
    Account.CHECKPOINT: "A trainer writes or reads its state or a model; also whoever waits for that.",
    Account.EVALUATION: "Everything that held-out prompts and held-out batches cost, and the stage of that name.",
    Account.FOR_ROLLOUTS: "Nothing to do while a generator samples.",
    Account.FOR_SCORES: "Nothing to do while a frozen server scores.",
    Account.FOR_TRAINER: "Nothing to do while a trainer computes.",
    Account.START_UP: "From the order to start a process, room for it included, until it serves, loading a stage's "
    "models, giving its things back at the end; and whoever waits for that.",
    Account.RESTART: "The same in place of one that was lost, what the lost one did since its books were last heard, "
    "and steps that are taken again.",
    Account.DRIVER: "Nobody works: the driver itself, and messages under way.",
    Account.AT_REST: "Kept for a later stage.",
}

COMPUTES = (Account.FORWARDS, Account.POLICY, Account.CRITIC, Account.FITTING)
WAITS: Sequence[tuple[tuple[Account, ...], Account]] = (
    ((Account.GENERATION,), Account.FOR_ROLLOUTS),
    (COMPUTES, Account.FOR_TRAINER),
    ((Account.SCORING,), Account.FOR_SCORES),
    ((Account.SYNC,), Account.SYNC),
    ((Account.CHECKPOINT,), Account.CHECKPOINT),
    ((Account.EVALUATION,), Account.EVALUATION),
    ((Account.RESTART,), Account.RESTART),
    ((Account.START_UP,), Account.START_UP),
)
"""Work of others, and what one waits for meanwhile; where there is work of several kinds, the first counts."""


def waits_of(role: str) -> Sequence[tuple[tuple[Account, ...], Account]]:
    """The same as ``role`` sees it: a generator is given something to do by the trainer, all others by generators."""
    if role != "generator":
        return WAITS
    return sorted(WAITS, key=lambda wait: wait[1] != Account.FOR_TRAINER)


DRIVER = "driver"
"""The role and the name of the driver's own lane."""

"""Round after round: what each round samples, who labels it, and where its policy starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_ray.config.checks import require, require_between, require_positive


@dataclass(frozen=True)
class IterationConfig:
    """Rounds of `rlhf-ray iterate`: sample, label, train the reward model on all labels so far, train the policy.

    A round samples ``pool`` prompts for every one that is labelled; ``unsure`` keeps those on whose responses the
    reward model of the round before is least sure, ``random`` any. The first round has none, and keeps any.
    ``annotators`` are the task's own (simulated) and, for its share, the judge; ``people`` label in the preference
    store at ``store``, and the round waits until ``enough_labels`` of its prompts are judged. A policy starts from the
    one before, or always from SFT; its reference is the SFT model in every round.
    """

    num_rounds: int = 3
    prompts_per_round: int = 300
    heldout_prompts_per_round: int = 50  # labelled too, and never trained on
    pool: int = 3
    choose: Literal["unsure", "random"] = "unsure"
    labels: Literal["annotators", "people"] = "annotators"
    store: str = ""
    enough_labels: float = 1.0  # share of the round's prompts
    poll_s: float = 30.0  # between two looks into the store
    start_from: Literal["previous", "sft"] = "previous"

    def __post_init__(self) -> None:
        require_positive(
            iteration__num_rounds=self.num_rounds,
            iteration__prompts_per_round=self.prompts_per_round,
            iteration__heldout_prompts_per_round=self.heldout_prompts_per_round,
            iteration__enough_labels=self.enough_labels,
            iteration__poll_s=self.poll_s,
        )
        require_between(1, 100, iteration__pool=self.pool)
        require(
            self.enough_labels <= 1,
            field="iteration.enough_labels",
            value=self.enough_labels,
            rule="is a share of the round's prompts and must not exceed 1",
            remedy="use 1 to wait for all of them",
        )
        require(
            self.labels != "people" or bool(self.store),
            field="iteration.store",
            value=self.store,
            rule="must name the preference store in which people label",
            remedy="set iteration.store=labels.db, or iteration.labels=annotators",
        )

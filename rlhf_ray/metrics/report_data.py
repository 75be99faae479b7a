"""What a report is made from: the records that the stages leave behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from rlhf_ray.ledger.balance import Balance
from rlhf_ray.ledger.lanes import Lanes
from rlhf_ray.ledger.lives import Step
from rlhf_ray.metrics.edits import EditRow
from rlhf_ray.metrics.evaluation import Comparison, GradedResponse, ModelSummary, compare, summarise
from rlhf_ray.metrics.sinks import MetricRow


@dataclass(frozen=True)
class AccuracyRow:
    """Agreement with people on some held-out pairs. ``correct`` may hold halves: a rule that ties on a pair."""

    name: str  # "reward model, all pairs", "length rule (longer wins)", "chosen is longer" ...
    correct: float
    total: int


@dataclass(frozen=True)
class CalibrationBin:
    """Held-out pairs whose predicted probability sigmoid(r_i - r_j) lies in one range."""

    predicted: float  # mean prediction
    agreed: float  # pairs where people chose i; one with a soft label counts by its probability
    total: int


@dataclass(frozen=True)
class Artefact:
    """Something a stage wrote, and what it was made from."""

    name: str
    stage: str
    fingerprint: str
    made_from: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Shown:
    """A response that shows what an alarm is about. ``score`` is the proxy's, None where it was not scored."""

    prompt: str
    response: str
    score: float | None


@dataclass(frozen=True)
class AlarmRow:
    """An alarm of the training with rewards, and what was done about it."""

    step: int
    name: str
    action: str
    message: str
    samples: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """Everything on the page: the SFT model and the one that ``method`` made of it answer the same held-out prompts.

    ``others`` are the answers of models that other methods made of the same SFT model, by the method's name.
    """

    title: str
    description: str
    command: str  # that does the run again
    seed: int
    sft: tuple[GradedResponse, ...]
    aligned: tuple[GradedResponse, ...]
    method: str = "PPO"
    others: Mapping[str, tuple[GradedResponse, ...]] = field(default_factory=dict)
    sft_curve: tuple[MetricRow, ...] = ()
    reward_model_curve: tuple[MetricRow, ...] = ()
    ppo_curve: tuple[MetricRow, ...] = ()
    dpo_curve: tuple[MetricRow, ...] = ()
    reward_model: tuple[AccuracyRow, ...] = ()
    calibration: tuple[CalibrationBin, ...] = ()
    edits: tuple[EditRow, ...] = ()
    alarms: tuple[AlarmRow, ...] = ()
    stage_seconds: Mapping[str, float] = field(default_factory=dict)  # in the order of the stages
    artefacts: tuple[Artefact, ...] = ()
    ledger: Balance | None = None
    lanes: Lanes = field(default_factory=dict)
    steps: tuple[Step, ...] = ()  # of the ledger
    versions: Mapping[str, str] = field(default_factory=dict)
    config_yaml: str = ""
    num_shown: int = 12  # prompts whose responses are shown side by side

    @cached_property
    def summaries(self) -> tuple[dict[str, ModelSummary], dict[str, ModelSummary]]:
        """Return the summaries of the SFT model and of the aligned one, by kind."""
        return summarise(self.sft), summarise(self.aligned)

    @cached_property
    def comparison(self) -> dict[str, Comparison]:
        """Return aligned - SFT by kind.

        Raises:
            DataError: the two models were not given the same prompts.
        """
        return compare(self.aligned, self.sft)

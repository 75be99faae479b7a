"""Settings that bite: each finding is provoked, and the quickstart provokes none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf_ray.doctor.examine import examine
from rlhf_ray.doctor.findings import Severity, of_exception, worst
from rlhf_ray.doctor.settings import schedule
from rlhf_ray.errors import ConfigError, DataError
from tests.doctor.made_up import healthy, the

AHEAD = ("ppo.schedule=async", "ppo.correction.level=token")
GROUPED = ("ppo.responses_per_prompt=4", "ppo.advantages=grpo")
ERROR, WARNING, NOTE, OK = Severity.ERROR, Severity.WARNING, Severity.NOTE, Severity.OK


@pytest.mark.parametrize(
    ("overrides", "severity", "field"),
    [
        (["training.num_ranks=65", "ppo.num_minibatches=2"], WARNING, "ppo.num_minibatches"),
        (["training.num_ranks=3"], NOTE, "ppo.num_minibatches"),
        (["generation.num_engines=200"], WARNING, "generation.num_engines"),
        (["generation.num_engines=16"], NOTE, "generation.shard_size"),
        (["training.num_ranks=3"], NOTE, "sft.batch_size"),
        (["training.num_ranks=3"], NOTE, "reward_model.batch_size"),
        (["ppo.kl.coef=0"], WARNING, "ppo.kl.coef"),
        (["ppo.eval_every=0"], WARNING, "ppo.eval_every"),
        (["ppo.checkpoint_every=0"], WARNING, "ppo.checkpoint_every"),
        (["ppo.temperature=0.2"], WARNING, "ppo.temperature"),
        (["generation.dtype=bfloat16"], WARNING, "ppo.correction.level"),
        (["training.dtype=bfloat16"], NOTE, "ppo.contracts.max_logprob_difference"),
        (["model.path=x", "ppo.policy_optimizer.learning_rate=1e-3"], WARNING, "ppo.policy_optimizer.learning_rate"),
        (["training.gradient_clipping=0"], WARNING, "training.gradient_clipping"),
        ([*AHEAD, "ppo.num_epochs=4"], NOTE, "ppo.num_epochs"),
        ([*AHEAD, "ppo.max_staleness=3", "ppo.filter.enabled=true", *GROUPED], NOTE, "ppo.max_staleness"),
    ],
)
def test_it_is_found(overrides: list[str], severity: Severity, field: str) -> None:
    finding = the(healthy(*overrides), severity, field)
    assert finding.found
    assert finding.fix


SHARED = ("training.gpus_per_rank=0.5", "generation.gpus_per_engine=0.3")


@pytest.mark.parametrize(
    ("overrides", "severity"),
    [(["ppo.schedule=colocate"], WARNING), (SHARED, NOTE), (["ppo.schedule=colocate", *SHARED], None), ([], None)],
)
def test_on_gpus_a_schedule_fits_where_roles_are(overrides: list[str], severity: Severity | None) -> None:
    facts = healthy(*overrides)
    facts = replace(facts, machine=replace(facts.machine, device="cuda"))
    found = [finding.severity for finding in schedule(facts)]
    assert found == ([] if severity is None else [severity])


def test_the_quickstart_on_a_healthy_machine_is_well() -> None:
    assert worst(examine(healthy())) is OK


def test_what_the_door_raises_comes_first_and_once() -> None:
    raised = of_exception(ConfigError("ppo.kl.coef", -1, "must not be negative", "use 0 for none"), field="x")
    facts = healthy("ppo.eval_every=0")
    facts = type(facts)(**{**facts.__dict__, "raised": (raised, raised)})
    assert examine(facts)[0] == raised
    assert sum(finding == raised for finding in examine(facts)) == 1
    assert raised.as_dict() == {
        "severity": "error",
        "field": "ppo.kl.coef",
        "found": "-1 must not be negative",
        "fix": "use 0 for none",
    }


def test_an_error_without_a_field_keeps_its_remedy() -> None:
    finding = of_exception(DataError("a.jsonl:3: not JSON; mend the line"), field="data")
    assert (finding.field, finding.found, finding.fix) == ("data", "a.jsonl:3: not JSON", "mend the line")

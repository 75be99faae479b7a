"""Every member of the family on real engines against a loop written from the papers, and at any split into ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_ray.config.algorithm import CorrectionConfig, KlConfig, LossConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.ppo import PpoRewardConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.engines.scoring import ReferenceEngine
from rlhf_ray.metrics.registry import require_registered
from rlhf_ray.records import FloatArray, Rollout
from rlhf_ray.stages.ppo_plan import with_sample_size
from tests import textbook, tiny, trainers
from tests.ranks import Ranks, ranks
from tests.trainers import PpoCase, Weights, largest_difference, means

pytestmark = pytest.mark.integration

# As in test_ppo.py: rounding gives up to 5e-6 on one make of processor, 5e-5 on another; a wrong formula 1e-3 and more.
TOLERANCE = 2e-4
ROLLOUTS = tiny.rollouts(12, responses_per_prompt=3, seed=3)
BASELINES = {"p0": 0.4, "p1": -0.3, "p2": 0.1, "p3": 0.0}
STEP_REWARDS = {r.order: ((0, 0.5), (len(r.response_ids) - 1, -0.25)) for r in ROLLOUTS if len(r.response_ids) > 4}


@dataclass(frozen=True)
class Member:
    """A member of the family: what it changes in ``ppo``, and in the rest of the case."""

    ppo: Mapping[str, object]
    case: Mapping[str, object] = field(default_factory=dict)
    exact: bool = False

    @property
    def has_critic(self) -> bool:
        return self.ppo.get("advantages", "gae") == "gae"


CISPO = LossConfig(surrogate="cispo", clip_ratio=0.01, clip_ratio_high=0.03)
GSPO = LossConfig(surrogate="gspo", clip_ratio=0.01, clip_ratio_high=0.02, aggregation="sequence_mean")
RESPONSE = LossConfig(surrogate="response", clip_ratio=0.02, clip_ratio_high=0.04, aggregation="sequence_sum")
HIGHER = LossConfig(clip_ratio=0.01, clip_ratio_high=0.03)
DUAL = LossConfig(clip_ratio=0.01, dual_clip=1.05)


def grpo(**changes: object) -> dict[str, object]:
    return {"advantages": "grpo", **changes}


def in_loss(estimator: str) -> KlConfig:
    return KlConfig(estimator=estimator, placement="loss")  # type: ignore[arg-type]


def correction(level: str, mode: str) -> CorrectionConfig:
    return CorrectionConfig(level=level, mode=mode, low=0.6, high=1.5)  # type: ignore[arg-type]


MEMBERS = {
    "gae": Member({}),
    "gae, critic_lam": Member({"critic_lam": 0.7, "gamma": 0.9}),
    "gae, no value clip": Member({"value_clip": 0.0}),
    "gae, tight value clip": Member({"value_clip": 0.02}),
    "gae, entropy bonus": Member({"entropy_coef": 0.1}),
    "gae, step rewards": Member({}, {"step_rewards": STEP_REWARDS}),
    "gae, whitened rewards": Member({"reward": PpoRewardConfig(whiten_rewards=True)}),
    "rloo, whitened rewards": Member({"advantages": "rloo", "reward": PpoRewardConfig(whiten_rewards=True)}),
    "gae, not whitened": Member({"whiten_advantages": False}),
    "grpo": Member(grpo()),
    "grpo, sequence_mean, k3 in the loss": Member(
        grpo(loss=LossConfig(aggregation="sequence_mean"), kl=KlConfig(estimator="k3", placement="loss"))
    ),
    "dr_grpo, constant": Member({"advantages": "dr_grpo", "loss": LossConfig(aggregation="constant")}),
    "rloo": Member({"advantages": "rloo", "loss": LossConfig(aggregation="sequence_sum")}),
    "rloo, response": Member({"advantages": "rloo", "loss": RESPONSE}),
    "opo": Member({"advantages": "opo"}),
    "remax": Member({"advantages": "remax", "gamma": 0.95}, {"baselines": BASELINES, "step_rewards": STEP_REWARDS}),
    "reinforce_pp": Member({"advantages": "reinforce_pp", "gamma": 0.9}),
    "reinforce_pp_baseline": Member({"advantages": "reinforce_pp_baseline", "kl": in_loss("k2")}),
    "grpo, step rewards": Member(grpo(), {"step_rewards": STEP_REWARDS}),
    "grpo, whitened": Member(grpo(whiten_advantages=True)),
    "clip higher": Member(grpo(loss=HIGHER)),
    "dual clip": Member(grpo(loss=DUAL)),
    "gspo": Member(grpo(loss=GSPO)),
    "gspo, token_mean": Member(grpo(loss=replace(GSPO, aggregation="token_mean"))),
    "cispo": Member(grpo(loss=CISPO)),
    "cispo, gae": Member({"loss": CISPO}),
    **{
        f"{kl} in the reward": Member(grpo(kl=KlConfig(estimator=kl)), exact=kl == "exact")  # type: ignore[arg-type]
        for kl in ("k2", "k3", "exact")
    },
    **{
        f"{kl} in the loss": Member(grpo(kl=in_loss(kl)), exact=kl == "exact")
        for kl in ("k2", "k3", "k3_unbiased", "exact")
    },
    "exact in the reward, gae": Member({"kl": KlConfig(estimator="exact")}, exact=True),
    **{
        f"correction: {level}, {mode}": Member(grpo(correction=correction(level, mode)))
        for level in ("token", "sequence", "geometric")
        for mode in ("truncate", "mask")
    },
    "correction, gae": Member({"correction": correction("token", "truncate")}),
    "correction leaves the KL in the loss alone": Member(
        grpo(correction=correction("token", "mask"), kl=in_loss("k3_unbiased"))
    ),
    "shaped scores": Member(
        grpo(
            max_response_tokens=9,
            reward=PpoRewardConfig(score_clip=0.6, missing_eos_penalty=0.5, overlong_penalty=0.7, overlong_tokens=5),
        )
    ),
}


@dataclass(frozen=True)
class World:
    policy: str
    critic: str
    near: str  # a model near the policy: the reference, so that there is a KL from the start
    logprobs: tuple[FloatArray, ...]
    distributions: tuple[FloatArray, ...]
    own_logprobs: tuple[FloatArray, ...]  # the policy's


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("models")
    policy = tiny.saved(tiny.causal_model(), directory / "policy")
    near = tiny.saved(nudged(tiny.causal_model()), directory / "near")
    return World(
        policy=policy,
        critic=tiny.saved(tiny.scalar_model(), directory / "critic"),
        near=near,
        logprobs=reference(near).logprobs(ROLLOUTS),
        distributions=reference(near).distributions(ROLLOUTS),
        own_logprobs=reference(policy).logprobs(ROLLOUTS),
    )


@pytest.fixture(scope="module")
def plain(world: World) -> dict[str, tuple[Weights, Weights]]:
    """What the papers' loop makes of the members without any extras, in one step."""
    return {name: textbook.ppo(of(world, name), steps=(1,)) for name in ("gae", "grpo")}


def nudged(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return model


def reference(path: str) -> ReferenceEngine:
    temperature = trainers.PPO.temperature
    return ReferenceEngine(path=path, model=ModelConfig(), config=ServerConfig(), device="cpu", temperature=temperature)


def off_policy(world: World) -> list[Rollout]:
    """Rollouts whose engine was off by 0.4 nats a token, so that weights lie on both sides of the bounds."""
    noise = np.random.default_rng(11)
    return [
        replace(r, rollout_logprobs=(own + 0.4 * noise.standard_normal(len(own))).astype(np.float32))
        for r, own in zip(ROLLOUTS, world.own_logprobs, strict=True)
    ]


def case_of(world: World, member: Member, **training: object) -> PpoCase:
    """Six rows a minibatch, in micro-batches of several rows and much padding."""
    settings = {"rollouts_per_step": 12, "responses_per_prompt": 3, **member.ppo}
    return PpoCase(
        policy_path=world.policy,
        critic_path=world.critic if member.has_critic else "/nowhere",
        rollouts=off_policy(world),
        references=world.distributions if member.exact else world.logprobs,
        training=TrainingConfig(**({"max_tokens_per_micro_batch": 50} | training)),  # type: ignore[arg-type]
        ppo=replace(trainers.PPO, **settings),  # type: ignore[arg-type]
        kl_coef=0.3,
        **member.case,  # type: ignore[arg-type]
    )


def of(world: World, name: str, **training: object) -> PpoCase:
    return case_of(world, MEMBERS[name], **training)


def with_ppo(case: PpoCase, **ppo: object) -> PpoCase:
    return replace(case, ppo=replace(case.ppo, **ppo))  # type: ignore[arg-type]


def assert_same(outcome: trainers.Outcome, policy: trainers.Weights, critic: trainers.Weights) -> None:
    assert largest_difference(outcome.policy, policy) < TOLERANCE
    assert largest_difference(outcome.critic, critic or outcome.critic) < TOLERANCE
    assert bool(outcome.critic) == bool(critic)


# ---------------------------------------------------------------------------------------------------- the papers' loops
def test_the_rollouts_of_these_tests_say_something(world: World) -> None:
    assert len({r.prompt_id for r in ROLLOUTS}) == 4
    assert len({len(r.response_ids) for r in ROLLOUTS}) > 4
    assert {r.finish_reason for r in ROLLOUTS} == {"stop", "length"}
    case = of(world, "grpo")
    sizes = [len(micro) for m in case.works(1, 1)[0].minibatches for micro in m.micro_batches]
    assert max(sizes) > 1
    weights = np.exp(
        np.concatenate([o - r.rollout_logprobs for o, r in zip(world.own_logprobs, case.rollouts, strict=True)])
    )
    assert (weights < 0.6).any()
    assert (weights > 1.5).any()
    kl = np.concatenate([o - r for o, r in zip(world.own_logprobs, world.logprobs, strict=True)])
    assert 0.1 < np.abs(kl).mean() < 2.0


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_agrees_with_the_papers(world: World, one_rank: Ranks, name: str) -> None:
    case = of(world, name)
    (outcome,) = one_rank.run(trainers.ppo_steps, case, (1, 2))
    assert_same(outcome, *textbook.ppo(case, steps=(1, 2)))
    assert largest_difference(outcome.policy, textbook.weights(tiny.causal_model())) > 10 * TOLERANCE


@pytest.mark.parametrize("name", sorted(MEMBERS.keys() - {"gae"}))
def test_what_a_member_changes_reaches_the_weights(
    world: World, plain: dict[str, tuple[Weights, Weights]], name: str
) -> None:
    """Otherwise agreement with the papers would show nothing."""
    member = MEMBERS[name]
    other = "grpo" if member.ppo.get("advantages") == "grpo" and name != "grpo" else "gae"
    found = textbook.ppo(case_of(world, member), steps=(1,))
    differences = [largest_difference(a, b) for a, b in zip(found, plain[other], strict=True) if a and b]
    assert max(differences) > 2 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        *((name, "ppo/clip_fraction") for name in ("clip higher", "rloo, response", "gspo", "cispo", "cispo, gae")),
        ("dual clip", "ppo/dual_clip_fraction"),
        ("gae, tight value clip", "ppo/value_clip_fraction"),
        *((name, "ppo/rollout_cut_fraction") for name in MEMBERS if name.startswith("correction")),
    ],
)
def test_some_tokens_and_not_all_are_clipped(world: World, one_rank: Ranks, name: str, metric: str) -> None:
    (metrics,) = means(one_rank.run(trainers.ppo_steps, of(world, name), (1,)))
    assert 0.02 < metrics[metric] < 0.98


# ------------------------------------------------------------------------------------------------ ranks, micro-batches
SPLITS = ((1, 0, 1), (2, 1, 50), (2, 2, 1), (2, 3, 1000))  # ranks, ZeRO, tokens a micro-batch


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("gae, critic_lam", SPLITS[3]),
        ("grpo, sequence_mean, k3 in the loss", SPLITS[3]),
        ("dr_grpo, constant", SPLITS[1]),
        ("rloo", SPLITS[2]),
        ("rloo, response", SPLITS[2]),
        ("opo", SPLITS[2]),
        ("remax", SPLITS[3]),
        ("reinforce_pp_baseline", SPLITS[1]),
        ("gspo", SPLITS[3]),
        ("cispo", SPLITS[2]),
        ("exact in the loss", SPLITS[3]),
        ("exact in the reward, gae", SPLITS[1]),
        ("correction: sequence, mask", SPLITS[2]),
        ("correction: geometric, truncate", SPLITS[3]),
        ("shaped scores", SPLITS[1]),
    ],
)
def test_no_split_changes_a_member(world: World, name: str, split: tuple[int, int, int]) -> None:
    world_size, zero_stage, max_tokens = split
    case = of(world, name, zero_stage=zero_stage, max_tokens_per_micro_batch=max_tokens)
    outcomes = ranks(world_size).run(trainers.ppo_steps, case, (1, 2))
    assert_same(outcomes[0], *textbook.ppo(case, steps=(1, 2)))
    plain = ranks(1).run(trainers.ppo_steps, of(world, name), (1, 2))
    for ours, theirs in zip(means(outcomes), means(plain), strict=True):
        assert without_padding(ours) == pytest.approx(without_padding(theirs), rel=1e-3, abs=1e-4)


def without_padding(metrics: dict[str, float]) -> dict[str, float]:
    """What remains is of the rollouts and the models, not of how they were cut."""
    return {name: value for name, value in metrics.items() if name != "ppo/padding_fraction"}


def test_responses_to_one_prompt_are_compared_across_ranks(world: World) -> None:
    case = of(world, "rloo", max_tokens_per_micro_batch=1, zero_stage=2)
    of_rank = [
        {case.rollouts[order].prompt_id for m in work.minibatches for micro in m.micro_batches for order in micro}
        for work in case.works(2, 1)
    ]
    assert len(of_rank[0] & of_rank[1]) == 4  # every prompt has responses on both ranks, in both minibatches


def with_an_empty_response(case: PpoCase) -> PpoCase:
    """Rollout 4 sampled nothing."""
    empty = replace(
        case.rollouts[4],
        response_ids=np.zeros(0, np.int32),
        rollout_logprobs=np.zeros(0, np.float32),
        policy_versions=np.zeros(0, np.int32),
    )
    rollouts = [empty if r.order == 4 else r for r in case.rollouts]
    references = [ref[:0] if order == 4 else ref for order, ref in enumerate(case.references)]
    return replace(case, rollouts=rollouts, references=references)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum", "constant"])
@pytest.mark.parametrize("split", SPLITS)
def test_no_split_changes_the_mean_that_an_aggregation_takes(
    world: World, aggregation: str, split: tuple[int, int, int]
) -> None:
    """With an empty response, the KL and the entropy in the loss, and minibatches of two rows of which one is empty."""
    world_size, zero_stage, max_tokens = split
    member = Member(
        {
            "advantages": "dr_grpo",
            "num_minibatches": 6,
            "num_epochs": 1,
            "entropy_coef": 0.05,
            "kl": in_loss("k3_unbiased"),
            "loss": LossConfig(aggregation=aggregation),  # type: ignore[arg-type]
        }
    )
    case = with_an_empty_response(case_of(world, member, zero_stage=zero_stage, max_tokens_per_micro_batch=max_tokens))
    outcomes = ranks(world_size).run(trainers.ppo_steps, case, (1,))
    assert_same(outcomes[0], *textbook.ppo(case, steps=(1,)))


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("name", ["gae", "grpo", "exact in the loss"])
def test_a_rank_without_rows_takes_the_same_step(world: World, name: str, zero_stage: int) -> None:
    member = MEMBERS[name]
    member = replace(member, ppo={**member.ppo, "num_minibatches": 12, "num_epochs": 1})
    case = case_of(world, member, zero_stage=zero_stage)
    works = case.works(2, 1)
    assert all(sorted(len(w.minibatches[m].micro_batches[0]) for w in works) == [0, 1] for m in range(12))
    outcomes = ranks(2).run(trainers.ppo_steps, case, (1,))
    assert_same(outcomes[0], *textbook.ppo(case, steps=(1,)))


# ------------------------------------------------------------------------------------------------------ with no critic
@pytest.mark.parametrize(
    "name", ["grpo", "dr_grpo, constant", "rloo", "opo", "remax", "reinforce_pp", "reinforce_pp_baseline"]
)
def test_without_gae_no_critic_is_built(world: World, one_rank: Ranks, name: str) -> None:
    assert one_rank.run(trainers.has_critic, of(world, name)) == [False]


def test_with_gae_there_is_one(world: World, one_rank: Ranks) -> None:
    assert one_rank.run(trainers.has_critic, of(world, "gae")) == [True]


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 3)])
def test_a_resumed_run_without_a_critic_has_the_same_bits(
    world: World, tmp_path: Path, world_size: int, zero_stage: int
) -> None:
    case = of(world, "grpo, sequence_mean, k3 in the loss", zero_stage=zero_stage)
    through = ranks(world_size).run(trainers.ppo_steps, case, (1, 2, 3))[0]
    resumed = ranks(world_size).run(trainers.resumed_ppo_steps, case, str(tmp_path), (1, 2), (3,))[0]
    assert largest_difference(through.policy, resumed.policy) == 0.0
    assert through.metrics[2].means() == resumed.metrics[0].means()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy", "random"]


# ----------------------------------------------------------------------------------------------------------- contracts
NOT_FINITE = "a log-probability, value or reward of the sampled tokens is not finite"


def as_its_own_reference(world: World, name: str, **training: object) -> PpoCase:
    """The reference server serves what the policy starts from."""
    case = replace(of(world, name, **training), reference_path=world.policy)
    return replace(case, references=world.own_logprobs)


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 0), (2, 3)])
def test_a_layer_that_behaves_otherwise_in_training_stops_every_rank(
    world: World, world_size: int, zero_stage: int
) -> None:
    """Dropout on the last rank alone."""
    case = of(world, "grpo", zero_stage=zero_stage)
    answers = ranks(world_size).run(trainers.refused_ppo_step, case, 1, world_size - 1)
    for message, _ in answers:
        assert "before the step's first update the KL from old to new policy is" in message
        assert "(ppo.contracts.max_first_kl is 1e-08)" in message
        assert "(dropout?)" in message
    assert largest_difference(answers[0][1], textbook.weights(tiny.causal_model())) == 0.0


def test_the_limit_of_the_first_kl_is_the_config_s(world: World, one_rank: Ranks) -> None:
    case = of(world, "grpo")
    case = with_ppo(case, contracts=replace(case.ppo.contracts, max_first_kl=1e-4))
    ((message, _),) = one_rank.run(trainers.refused_ppo_step, case, 1, 0)
    assert "(ppo.contracts.max_first_kl is 0.0001)" in message


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 3)])
def test_a_reference_that_is_another_model_is_found_before_the_first_update(
    world: World, world_size: int, zero_stage: int
) -> None:
    case = replace(as_its_own_reference(world, "grpo", zero_stage=zero_stage), references=world.logprobs)
    answers = ranks(world_size).run(trainers.refused_ppo_step, case)
    for message, _ in answers:
        assert message.startswith("before the first update the KL from policy to reference is")
        assert "compare training.dtype with reference.dtype" in message
    assert largest_difference(answers[0][1], textbook.weights(tiny.causal_model())) == 0.0


def test_one_response_of_another_reference_is_enough(world: World, two_ranks: Ranks) -> None:
    references = [*world.own_logprobs[:-1], world.logprobs[-1]]  # of one token
    case = replace(as_its_own_reference(world, "grpo"), references=references)
    assert len(two_ranks.run(trainers.refused_ppo_step, case)) == 2


def test_a_reference_of_another_temperature_is_found(world: World, one_rank: Ranks) -> None:
    case = with_ppo(as_its_own_reference(world, "gae"), temperature=trainers.PPO.temperature + 0.01)
    ((message, _),) = one_rank.run(trainers.refused_ppo_step, case)
    assert message.startswith("before the first update the KL from policy to reference is")


def test_a_reference_that_is_the_policy_passes_and_later_steps_may_leave_it(world: World, two_ranks: Ranks) -> None:
    case = as_its_own_reference(world, "grpo", zero_stage=3)
    first, second = means(two_ranks.run(trainers.ppo_steps, case, (1, 2)))
    assert 0.0 <= first["ppo/reference_kl_at_start"] < 1e-10
    assert "ppo/reference_kl_at_start" not in second
    assert second["ppo/kl_k3"] > 1e-4
    assert max(first["ppo/first_kl"], second["ppo/first_kl"]) < 1e-10


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 3)])
@pytest.mark.parametrize(
    ("name", "planted", "message"),
    [
        ("remax", "baseline", "the loss is not finite"),
        ("correction: token, mask", "engine", "the loss is not finite"),
        ("grpo, step rewards", "step reward", NOT_FINITE),
        (
            "exact in the reward",
            "distribution",
            "a log-probability, value or reward of the sampled tokens is not finite",
        ),
    ],
)
def test_one_number_that_is_none_stops_every_rank(
    world: World, name: str, planted: str, message: str, world_size: int, zero_stage: int
) -> None:
    case = of(world, name, zero_stage=zero_stage)
    if planted == "baseline":
        case = replace(case, baselines={**BASELINES, "p2": float("nan")})
    elif planted == "engine":
        broken = replace(case.rollouts[5], rollout_logprobs=case.rollouts[5].rollout_logprobs * np.float32("nan"))
        case = replace(case, rollouts=[*case.rollouts[:5], broken, *case.rollouts[6:]])
    elif planted == "step reward":
        case = replace(case, step_rewards={**case.step_rewards, 5: ((0, float("nan")),)})
    else:
        references = [*case.references[:5], case.references[5] * np.float32("nan"), *case.references[6:]]
        case = replace(case, references=references)
    answers = ranks(world_size).run(trainers.refused_ppo_step, with_ppo(case, num_minibatches=1))
    assert [text[: len(message)] for text, _ in answers] == [message] * world_size
    assert largest_difference(answers[0][1], textbook.weights(tiny.causal_model())) == 0.0


# ------------------------------------------------------------------------------------------------------------- metrics
ALWAYS = (
    "approx_kl advantage_std clip_fraction dual_clip_fraction effective_sample_size entropy first_kl "
    "kl_clamped_fraction kl_k3 kl_per_response kl_per_token learning_rate logprob_difference logprob_difference_max "
    "padding_fraction policy_grad_norm policy_loss ratio_max reward_mean rollout_above_10 rollout_above_2 "
    "rollout_cut_fraction rollout_weight_max rollout_weight_mean"
)
OF_THE_CRITIC = "critic_grad_norm critic_learning_rate explained_variance value_clip_fraction value_loss"


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_logs_what_is_promised_and_nothing_undefined(world: World, one_rank: Ranks, name: str) -> None:
    member = MEMBERS[name]
    case = with_ppo(of(world, name), num_minibatches=1, num_epochs=1)
    case = replace(case, rollouts=[tiny.sampled_in(1, rollout) for rollout in case.rollouts])
    (metrics,) = means(one_rank.run(trainers.ppo_steps, case, (1,)))
    metrics = with_sample_size(metrics)
    require_registered(metrics)
    expected = {*ALWAYS.split(), *(OF_THE_CRITIC.split() if member.has_critic else ())}
    expected |= {"kl_exact"} if member.exact else set()
    expected |= {"kl_loss"} if case.ppo.kl.placement == "loss" else set()
    assert metrics.keys() == {f"ppo/{name}" for name in expected}
    assert np.isfinite(list(metrics.values())).all()


def test_the_exact_kl_is_that_of_whole_distributions(world: World, one_rank: Ranks) -> None:
    (metrics,) = means(one_rank.run(trainers.ppo_steps, of(world, "exact in the reward"), (1,)))
    own = [np.concatenate(reference(path).distributions(ROLLOUTS)) for path in (world.policy, world.near)]
    expected = (np.exp(own[0]) * (own[0] - own[1])).sum(-1).mean()
    assert metrics["ppo/kl_exact"] == pytest.approx(expected, rel=1e-4)
    assert metrics["ppo/kl_exact"] > 0.1


def test_weights_of_the_correction_are_logged_whether_they_are_used_or_not(world: World, one_rank: Ranks) -> None:
    pairs = zip(world.own_logprobs, off_policy(world), strict=True)
    w = np.exp(np.concatenate([own - rollout.rollout_logprobs for own, rollout in pairs]).astype(np.float64))
    for name in ("grpo", "correction: token, mask"):
        (metrics,) = means(one_rank.run(trainers.ppo_steps, of(world, name), (1,)))
        metrics = with_sample_size(metrics)
        assert metrics["ppo/rollout_weight_mean"] == pytest.approx(w.mean(), rel=1e-4)
        assert metrics["ppo/rollout_weight_max"] == pytest.approx(w.max(), rel=1e-4)
        assert metrics["ppo/rollout_above_2"] == pytest.approx((w > 2).mean())
        assert metrics["ppo/effective_sample_size"] == pytest.approx(w.sum() ** 2 / len(w) / (w**2).sum(), rel=1e-4)

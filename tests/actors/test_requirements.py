"""What each stage needs at the same time, read off the configuration."""

from __future__ import annotations

from dataclasses import replace

from actors import requirements
from actors.placement import Bundle, total
from rlhf_ray.config.dpo import DpoConfig, OnlineDpoConfig
from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.rewards import RewardsConfig, RewardSourceConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.config.training import LoraConfig, TrainingConfig

CONFIG = replace(
    RunConfig(),
    training=TrainingConfig(num_ranks=4, cpus_per_rank=2.0),
    generation=GenerationConfig(num_engines=2, tensor_parallel_size=2, cpus_per_engine=3.0),
    reference=ServerConfig(num_replicas=1, cpus_per_replica=1.0),
    reward_server=ServerConfig(num_replicas=3, cpus_per_replica=0.5, gpus_per_replica=0.5),
)


def roles(wanted: tuple[Bundle, ...]) -> list[str]:
    return [bundle.role for bundle in wanted]


def test_each_stage_needs_the_roles_that_it_starts() -> None:
    stages = {name: sorted(set(roles(wanted))) for name, wanted in requirements.stages(CONFIG, "cuda").items()}
    assert stages == {
        "sft": ["trainer"],
        "comparison": ["generator"],
        "reward_model": ["trainer"],
        "ppo": ["generator", "reference", "reward_model", "trainer"],
        "evaluation": ["generator", "reference", "reward_model"],
    }


def test_without_the_own_reward_model_its_two_stages_need_nothing() -> None:
    function = RewardSourceConfig(kind="function", function="length_at_most", num_workers=2)
    ppo = PpoConfig(critic_initialise_from="sft")
    stages = requirements.stages(replace(CONFIG, ppo=ppo, rewards=RewardsConfig({"short": function})), "cuda")
    assert list(stages) == ["sft", "ppo", "evaluation"]
    assert roles(stages["evaluation"]).count("reward short") == 2
    assert "reward_model" not in roles(stages["evaluation"])


def test_dpo_needs_reference_servers_before_its_ranks_and_no_rewards() -> None:
    stages = requirements.stages(replace(CONFIG, methods=("dpo",)), "cuda")
    assert list(stages) == ["sft", "comparison", "dpo", "evaluation"]
    assert set(roles(stages["dpo"])) == {"reference"}
    assert sorted(set(roles(stages["evaluation"]))) == ["generator", "reference"]
    assert list(requirements.stages(replace(CONFIG, methods=("ppo", "dpo")), "cuda")) == [
        *("sft", "comparison", "reward_model", "ppo", "dpo", "evaluation")
    ]


def test_rejection_sampling_needs_engines_and_rewards_before_its_ranks() -> None:
    wanted = requirements.stages(replace(CONFIG, methods=("raft",)), "cuda")["raft"]
    assert sorted(set(roles(wanted))) == ["generator", "reward_model"]


def test_online_dpo_needs_all_roles_at_once() -> None:
    online = replace(CONFIG, methods=("dpo",), dpo=DpoConfig(online=OnlineDpoConfig(num_steps=1)))
    assert sorted(set(roles(requirements.stages(online, "cuda")["dpo"]))) == [
        *("generator", "reference", "reward_model", "trainer"),
    ]


def test_resources_add_up_on_gpus_and_no_gpu_is_asked_for_without_them() -> None:
    on_gpus, on_cpus = requirements.stages(CONFIG, "cuda"), requirements.stages(CONFIG, "cpu")
    assert total(on_gpus["ppo"]) == (4 * 2 + 2 * 3 + 1 + 3 * 0.5, 4 * 1 + 2 * 2 + 1 + 3 * 0.5)
    assert total(on_cpus["ppo"]) == (4 * 2 + 2 * 3 + 1 + 3 * 0.5, 0.0)
    assert total(on_gpus["comparison"]) == (6.0, 4.0)


def test_an_engine_takes_a_gpu_for_each_of_its_ranks_unless_told_otherwise() -> None:
    shared = replace(CONFIG, generation=GenerationConfig(gpus_per_engine=0.25))
    assert [bundle.gpus for bundle in requirements.generators(CONFIG, "cuda")] == [2.0, 2.0]
    assert [bundle.gpus for bundle in requirements.generators(shared, "cuda")] == [0.25]


def test_with_adapters_ppo_needs_no_reference_server_and_evaluation_does() -> None:
    lora = replace(CONFIG, training=TrainingConfig(lora=LoraConfig(rank=8)))
    assert "reference" not in roles(requirements.stages(lora, "cuda")["ppo"])
    assert roles(requirements.stages(lora, "cuda")["evaluation"]).count("reference") == 1


def test_every_bundle_names_a_setting_that_exists() -> None:
    for bundle in requirements.stages(CONFIG, "cuda")["ppo"]:
        section, name = bundle.field.split(".")
        assert getattr(getattr(CONFIG, section), name) >= 1


def test_every_source_of_rewards_has_its_own_actors_and_the_own_model_only_where_it_is_one() -> None:
    function = RewardSourceConfig(kind="function", function="exact_answer", num_workers=2)
    service = RewardSourceConfig(kind="http", url="http://x")
    sources = {"exact": function, "service": service, "other": RewardSourceConfig(path="other/model")}
    config = replace(CONFIG, rewards=RewardsConfig(sources), ppo=PpoConfig(critic_initialise_from="sft"))
    wanted = requirements.rewards(config, "cuda")
    assert roles(wanted) == ["reward exact", "reward exact", "reward service", *["reward_model"] * 3]
    assert [(bundle.cpus, bundle.gpus) for bundle in wanted] == [(0.1, 0.0)] * 3 + [(0.5, 0.5)] * 3
    assert {bundle.field for bundle in wanted[:3]} == {
        "rewards.sources.exact.num_workers",
        "rewards.sources.service.num_workers",
    }
    only = replace(config, rewards=RewardsConfig({"exact": function}))
    assert "reward_model" not in roles(requirements.stages(only, "cuda")["ppo"])


def test_servers_of_several_reward_models_have_names_of_their_own() -> None:
    sources = {"kind": RewardSourceConfig(path="a"), "honest": RewardSourceConfig(path="b")}
    config = replace(CONFIG, rewards=RewardsConfig(sources), ppo=PpoConfig(critic_initialise_from="sft"))
    assert set(roles(requirements.rewards(config, "cpu"))) == {"reward_model kind", "reward_model honest"}

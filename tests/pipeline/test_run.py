"""The chain of stages: what is done again and what is not, and where a run goes on after a failure."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline import run as run_module
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.run import ONLINE_DPO, STAGES, RunStage, load_finished, run_stages, take_up
from tests.pipeline.fakes import FakeTask, make_context


class Chain:
    """The real stages' names, parents and settings; each only notes that it ran and leaves a file."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.task = FakeTask()
        self.ran: list[str] = []
        self.fails = ""
        monkeypatch.setattr(run_module, "STAGES", tuple(replace(s, run=self._stage(s.name)) for s in STAGES))
        monkeypatch.setattr(run_module, "ONLINE_DPO", replace(ONLINE_DPO, run=self._stage("dpo")))
        monkeypatch.setattr(run_module, "check_text", self._check)

    def _stage(self, name: str) -> RunStage:
        async def note(context: Context) -> dict[str, Any]:
            assert not (context.directory(name) / "artefact.json").exists()
            self.ran.append(name)
            (context.directory(name) / "half").write_text("half")
            if self.fails == name:
                raise RuntimeError(f"{name} failed")
            return {"path": str(context.directory(name) / "half"), "number": 1.5}

        return note

    def _check(self, context: Context, stages: Collection[str]) -> list[str]:
        self.ran.append("check")
        return ["4 prompts"]

    async def run(self, *overrides: str, until: str = "evaluation") -> list[str]:
        """What ran, in order."""
        self.ran.clear()
        self.context = make_context(self.root, config_of(*overrides), self.task)
        await run_stages(self.context, until)
        return list(self.ran)


def config_of(*overrides: str) -> RunConfig:
    merged = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.from_dotlist(list(overrides)))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, RunConfig)
    return config


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    return Chain(tmp_path / "run", monkeypatch)


WITH_PPO = ["model", "sft", "comparison", "reward_model", "ppo", "evaluation"]
ALL = ["model", "check", "sft", "comparison", "reward_model", "ppo", "evaluation"]
FROM_SFT = ["check", *ALL[2:]]


async def test_stages_run_in_order_and_text_is_checked_once_the_tokenizer_is_there(chain: Chain) -> None:
    assert await chain.run() == ALL
    assert list(chain.context.finished) == WITH_PPO


async def test_an_unchanged_run_does_nothing_again(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    await chain.run()
    capsys.readouterr()
    assert await chain.run() == ["check"]
    assert capsys.readouterr().out.count("done before and unchanged") == 6
    assert chain.context.results("ppo")["path"] == str(chain.root / "ppo" / "half")


async def test_a_run_may_stop_early_and_go_on_later(chain: Chain) -> None:
    assert await chain.run(until="comparison") == ["model", "check", "sft", "comparison"]
    assert await chain.run() == ["check", "reward_model", "ppo", "evaluation"]


NO_OWN_MODEL = (
    "ppo.critic_initialise_from=sft",
    "rewards.sources.short.kind=function",
    "rewards.sources.short.function=length_at_most",
)


async def test_online_dpo_follows_the_reward_model_and_offline_dpo_the_comparisons(chain: Chain) -> None:
    before = ["model", "check", "sft", "comparison"]
    assert await chain.run("methods=[dpo]") == [*before, "dpo", "evaluation"]
    assert chain.context.finished["dpo"].parents.keys() == {"model", "sft", "comparison"}
    online = ("methods=[dpo]", "dpo.online.num_steps=4")
    assert await chain.run(*online) == ["check", "reward_model", "dpo", "evaluation"]
    assert chain.context.finished["dpo"].parents.keys() == {"model", "sft", "reward_model"}
    given = ("rewards.sources.short.kind=function", "rewards.sources.short.function=length_at_most")
    assert await chain.run(*online, *given) == ["check", "dpo", "evaluation"]  # nobody needs people's comparisons


async def test_no_reward_model_is_trained_where_no_source_of_rewards_is_the_run_s_own(chain: Chain) -> None:
    assert await chain.run(*NO_OWN_MODEL) == ["model", "check", "sft", "ppo", "evaluation"]
    assert chain.context.finished["ppo"].parents.keys() == {"model", "sft"}
    load_finished(chain.context, "evaluation")
    mixed = "rewards.sources.learned.weight=2"
    assert await chain.run(*NO_OWN_MODEL, mixed) == ["check", "comparison", "reward_model", "ppo", "evaluation"]


async def test_a_reward_model_that_nobody_would_ask_is_not_trained_by_its_command_either(chain: Chain) -> None:
    with pytest.raises(ConfigError, match=r"rewards\.sources \(\['short'\]\) and methods \(ppo\) need no reward model"):
        await chain.run(*NO_OWN_MODEL, until="reward_model")
    assert chain.ran == []


async def test_dpo_needs_comparisons_and_no_reward_model(chain: Chain) -> None:
    assert await chain.run("methods=[dpo]") == ["model", "check", "sft", "comparison", "dpo", "evaluation"]
    assert chain.context.finished["evaluation"].parents.keys() == {"model", "sft", "dpo"}
    both = await chain.run("methods=[ppo,dpo]")
    assert both == ["check", "reward_model", "ppo", "evaluation"]
    assert chain.context.finished["evaluation"].parents.keys() == {"model", "sft", "reward_model", "ppo", "dpo"}


async def test_rejection_sampling_follows_the_reward_model_and_best_of_n_only_evaluates_it(chain: Chain) -> None:
    assert await chain.run("methods=[raft]") == [
        *("model", "check", "sft", "comparison", "reward_model", "raft", "evaluation")
    ]
    assert await chain.run("methods=[best_of_n]") == ["check", "evaluation"]
    assert await chain.run("methods=[best_of_n]", *NO_OWN_MODEL) == ["check", "evaluation"]
    assert chain.context.finished["evaluation"].parents.keys() == {"model", "sft"}


async def test_a_method_that_the_run_leaves_out_is_not_started_by_its_command(chain: Chain) -> None:
    with pytest.raises(ConfigError, match=r"methods \(\('ppo',\)\) leaves dpo out; add dpo: methods=\[dpo\]"):
        await chain.run(until="dpo")
    assert chain.ran == []


async def test_a_stage_that_does_not_exist_is_refused_before_anything_runs(chain: Chain) -> None:
    with pytest.raises(ConfigError, match=r"stage \('grpo'\) is not a stage; choose one of model, sft"):
        await chain.run(until="grpo")
    assert chain.ran == []


# ------------------------------------------------------------------------------------------------------- what is redone
@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("seed=1", ALL),
        ("model.max_length=100", ALL),
        ("model.chat_template=compact", ALL),
        ("model.scratch.num_layers=3", ALL),
        ("sft.num_epochs=2", FROM_SFT),
        ("sft.optimizer.learning_rate=1e-2", FROM_SFT),
        ("training.dtype=bfloat16", FROM_SFT),
        ("training.lora.rank=4", FROM_SFT),
        ("comparison.temperatures=[0.5]", ["check", "comparison", "reward_model", "ppo", "evaluation"]),
        ("generation.dtype=float32", ["check", "comparison", "reward_model", "ppo", "evaluation"]),
        ("generation.engine_args.kv_cache_dtype=fp8", ["check", "comparison", "reward_model", "ppo", "evaluation"]),
        ("ppo.max_response_tokens=20", ["check", "comparison", "reward_model", "ppo", "evaluation"]),
        ("reward_model.margin=0.1", ["check", "reward_model", "ppo", "evaluation"]),
        ("reward_model.initialise_from=base", ["check", "reward_model", "ppo", "evaluation"]),
        ("ppo.kl.coef=0.2", ["check", "ppo", "evaluation"]),
        ("ppo.num_steps=7", ["check", "ppo", "evaluation"]),
        ("ppo.eval_every=5", ["check", "ppo", "evaluation"]),
        ("reference.dtype=bfloat16", ["check", "ppo", "evaluation"]),
        ("reward_server.dtype=bfloat16", ["check", "ppo", "evaluation"]),
        ("evaluation.temperature=0.5", ["check", "evaluation"]),
        ("evaluation.num_prompts=9", ["check", "evaluation"]),
    ],
)
async def test_a_setting_redoes_the_stages_that_depend_on_it(chain: Chain, override: str, redone: list[str]) -> None:
    await chain.run()
    assert await chain.run(override) == redone


async def test_settings_without_effect_on_a_result_redo_nothing(chain: Chain) -> None:
    await chain.run()
    indifferent = [
        "name=other",
        "output_dir=elsewhere",
        "device=cuda",
        "cluster.actor_timeout_s=5",
        "cluster.address=auto",
        "logging.tensorboard=true",
        "training.cpus_per_rank=2",
        "training.num_ranks=2",
        "training.zero_stage=3",
        "training.offload_optimizer=true",
        "checkpoints.keep=5",
        "checkpoints.mirror=file:///elsewhere",
        "training.gpus_per_rank=0.5",
        "training.threads_per_rank=4",
        "training.timeout_s=9",
        "generation.num_engines=3",
        "generation.shard_size=2",
        "generation.cpus_per_engine=2",
        "generation.gpus_per_engine=1",
        "generation.max_num_seqs=8",
        "generation.kv_cache_memory_mb=512",
        "generation.gpu_memory_utilization=0.5",
        "reference.num_replicas=2",
        "reference.threads_per_replica=3",
        "reward_server.cpus_per_replica=2",
        "reward_server.max_tokens_per_batch=99",
        "weight_sync.bucket_mb=1",
        "weight_sync.transport=nccl",
        "weight_sync.probe_tolerance=0.1",
        "ppo.checkpoint_every=3",
        "ppo.contracts.max_logprob_difference=1",
        "ppo.contracts.on_bad_numbers=skip",
        "evaluation.num_shown=1",
    ]
    assert await chain.run(*indifferent) == ["check"]


async def test_other_data_redo_everything(chain: Chain) -> None:
    await chain.run()
    chain.task.version = "data 2"
    assert await chain.run() == ALL


async def test_what_is_redone_says_why(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    await chain.run()
    capsys.readouterr()
    await chain.run("reward_model.margin=0.5")
    said = capsys.readouterr().out
    assert "replaces an earlier result (reward_model.margin: 0.0 -> 0.5)" in said
    assert "replaces an earlier result (another reward_model)" in said


# -------------------------------------------------------------------------------------------------------------- failure
async def test_a_run_goes_on_at_the_stage_that_failed(chain: Chain) -> None:
    chain.fails = "reward_model"
    with pytest.raises(RuntimeError, match="reward_model failed"):
        await chain.run()
    chain.fails = ""
    assert await chain.run() == ["check", "reward_model", "ppo", "evaluation"]


async def test_the_seconds_of_all_attempts_are_added_up(chain: Chain) -> None:
    store = make_context(chain.root).store
    chain.fails = "sft"
    with pytest.raises(RuntimeError):
        await chain.run()
    begun = json.loads((chain.root / "sft" / "begun.json").read_text())
    assert 0.0 < begun["seconds"] < 10.0
    store.note_seconds("sft", begun["key"], 100.0)
    chain.fails = ""
    await chain.run()
    artefact = chain.context.store.read("sft")
    assert artefact is not None
    assert 100.0 < artefact.seconds < 110.0


async def test_unfinished_work_is_kept_for_the_same_settings_only(chain: Chain) -> None:
    chain.fails = "ppo"
    with pytest.raises(RuntimeError):
        await chain.run()
    (chain.root / "ppo" / "state").write_text("step 5")
    with pytest.raises(RuntimeError):
        await chain.run("ppo.checkpoint_every=1", "ppo.contracts.max_logprob_difference=0.5")
    assert (chain.root / "ppo" / "state").exists()
    with pytest.raises(RuntimeError):
        await chain.run("ppo.kl.coef=0.9")
    assert not (chain.root / "ppo" / "state").exists()


async def test_a_longer_run_keeps_the_states_of_the_shorter_one(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    await chain.run()
    (chain.root / "ppo" / "state").write_text("step 30")
    assert await chain.run("ppo.num_steps=40") == ["check", "ppo", "evaluation"]
    assert (chain.root / "ppo" / "state").exists()
    assert "goes on from an earlier result (ppo.num_steps: 30 -> 40)" in capsys.readouterr().out
    await chain.run("ppo.num_steps=40", "ppo.kl.coef=0.9")
    assert not (chain.root / "ppo" / "state").exists()


# ---------------------------------------------------------------------------------------------- taking up what was left
async def test_finished_stages_are_taken_up_without_running(chain: Chain) -> None:
    await chain.run()
    chain.ran.clear()
    context = make_context(chain.root, config_of(), chain.task)
    load_finished(context, "evaluation")
    assert list(context.finished) == WITH_PPO
    assert chain.ran == []


async def test_a_missing_stage_and_other_settings_are_told_apart(chain: Chain) -> None:
    await chain.run(until="ppo")
    with pytest.raises(ConfigError, match=r"has no finished stage 'evaluation'; run `rlhf-ray pipeline`"):
        load_finished(make_context(chain.root, config_of(), chain.task), "evaluation")
    with pytest.raises(ConfigError, match=r"no finished stage 'ppo' of these settings \(ppo\.num_steps: 30 -> 3\)"):
        load_finished(make_context(chain.root, config_of("ppo.num_steps=3"), chain.task), "ppo")


async def test_stages_are_taken_up_as_they_were_left_and_tell_what_has_changed(chain: Chain) -> None:
    await chain.run(until="ppo")
    context = make_context(chain.root, config_of(), chain.task)
    assert take_up(context, "ppo") == []
    assert list(context.finished) == WITH_PPO[:5]
    assert take_up(make_context(chain.root, config_of("ppo.kl.coef=0.9"), chain.task), "ppo") == [
        "ppo: ppo.kl.coef: 0.05 -> 0.9"
    ]


async def test_the_last_stage_that_is_taken_up_may_be_unfinished_and_no_other(chain: Chain) -> None:
    await chain.run(until="reward_model")
    assert take_up(make_context(chain.root, config_of(), chain.task), "ppo") == []
    with pytest.raises(ConfigError, match=r"has no finished stage 'ppo'; give the output_dir of a run"):
        take_up(make_context(chain.root, config_of(), chain.task), "evaluation")

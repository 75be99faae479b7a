"""Every range and every rule that crosses sections: field, value, rule, remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.config.load import load_config
from rlhf_ray.errors import ConfigError

POSITIVE = (
    "sft.batch_size",
    "sft.eval_every",
    "sft.max_eval_demonstrations",
    "sft.optimizer.learning_rate",
    "ppo.policy_optimizer.epsilon",
    "comparison.num_prompts",
    "comparison.num_heldout_prompts",
    "reward_model.batch_size",
    "reward_model.eval_every",
    "raft.num_prompts",
    "raft.temperature",
    "raft.num_epochs",
    "raft.batch_size",
    "raft.eval_every",
    "dpo.beta",
    "dpo.num_epochs",
    "dpo.batch_size",
    "dpo.eval_every",
    "dpo.online.every",
    "dpo.online.temperature",
    "ppo.num_steps",
    "ppo.rollouts_per_step",
    "ppo.responses_per_prompt",
    "ppo.num_epochs",
    "ppo.num_minibatches",
    "ppo.max_response_tokens",
    "ppo.temperature",
    "ppo.loss.clip_ratio",
    "ppo.ptx_batch_size",
    "ppo.eval_prompts",
    "ppo.eval_responses",
    "ppo.contracts.max_logprob_difference",
    "ppo.contracts.warn_logprob_difference",
    "ppo.contracts.max_first_kl",
    "ppo.loss.clip_ratio_high",
    "ppo.kl.target",
    "ppo.kl.horizon",
    "evaluation.num_prompts",
    "evaluation.temperature",
    "evaluation.max_response_tokens",
    "training.num_ranks",
    "training.max_tokens_per_micro_batch",
    "training.threads_per_rank",
    "training.timeout_s",
    "training.lora.alpha",
    "generation.num_engines",
    "generation.tensor_parallel_size",
    "generation.max_model_len",
    "generation.kv_cache_memory_mb",
    "generation.max_num_seqs",
    "generation.shard_size",
    "reference.num_replicas",
    "reward_server.max_tokens_per_batch",
    "reference.threads_per_replica",
    "weight_sync.bucket_mb",
    "weight_sync.probe_tolerance",
    "weight_sync.probe_tolerance_bfloat16",
    "cluster.num_cpus",
    "cluster.object_store_mb",
    "cluster.placement_timeout_s",
    "cluster.wait_for_room_s",
    "cluster.actor_timeout_s",
    "faults.heartbeat_timeout_s",
    "faults.max_restarts",
    "faults.restarts_within_s",
    "faults.max_deaths_per_batch",
    "faults.max_kept_steps",
    "model.max_length",
    "model.scratch.hidden_size",
    "model.scratch.intermediate_size",
    "model.scratch.num_layers",
    "model.scratch.num_heads",
    "model.scratch.num_key_value_heads",
    "model.scratch.max_position_embeddings",
)
NOT_NEGATIVE = (
    "dpo.online.num_steps",
    "dpo.online.checkpoint_every",
    "rewards.uncertainty_penalty",
    "sft.optimizer.weight_decay",
    "dpo.margin",
    "dpo.simpo_margin",
    "dpo.desirable_weight",
    "dpo.undesirable_weight",
    "reward_model.margin",
    "reward_model.centering",
    "ppo.vf_coef",
    "ppo.value_clip",
    "ppo.entropy_coef",
    "ppo.ptx_coef",
    "ppo.critic_warmup_steps",
    "ppo.checkpoint_every",
    "checkpoints.every_minutes",
    "ppo.eval_every",
    "ppo.kl.coef",
    "evaluation.num_shown",
    "training.gradient_clipping",
    "training.cpus_per_rank",
    "training.gpus_per_rank",
    "generation.cpus_per_engine",
    "generation.gpus_per_engine",
    "reference.cpus_per_replica",
    "reward_server.gpus_per_replica",
)
AXES = ["reward_model.axes=[helpful,honest]", "ppo.critic_initialise_from=sft"]
FUNCTION = ["rewards.sources.a.kind=function", "rewards.sources.a.function=exact_answer"]
OTHER_RULES = (
    (["checkpoints.keep=0"], r"^checkpoints\.keep \(0\) must be positive"),
    (["checkpoints.grace_s=0"], r"^checkpoints\.grace_s \(0\.0\) must be positive"),
    (["checkpoints.mirror=/mnt/run"], r"^checkpoints\.mirror \('/mnt/run'\) must be a URL, with a scheme; write for"),
    (
        ["checkpoints.best_metric=gold/heldout_maen"],
        r"^checkpoints\.best_metric \('gold/heldout_maen'\) is no metric .*did you mean 'gold/heldout_mean'",
    ),
    (
        ["checkpoints.best_metric=gold/heldout_mean", "ppo.eval_every=0"],
        r"^checkpoints\.best_metric \('gold/heldout_mean'\) is measured on held-out prompts, and ppo\.eval_every is 0",
    ),
    (["methods=[]"], r"^methods \(\(\)\) must name one or more methods, each once; use for example \[ppo\]"),
    (["methods=[ppo,ppo]"], r"^methods .* each once"),
    (
        ["methods=[dpo]", "rewards.sources.a.weight=1"],
        r"^rewards\.sources \(\['a'\]\) ask for the run's own reward model, and no method follows it \(dpo\); add ppo",
    ),
    (["dpo.online.responses_per_prompt=1"], r"^dpo\.online\.responses_per_prompt \(1\) must lie between 2 and 64"),
    (["reward_model.axes=[helpful]"], r"^reward_model\.axes \(\('helpful',\)\) must be two or more different names"),
    (["reward_model.axes=[a,a]"], r"^reward_model\.axes .* different names"),
    (
        [*AXES, "reward_model.axis_weights={kind: 1}"],
        r"^reward_model\.axis_weights \(\['kind'\]\) are none of .*helpful",
    ),
    ([*AXES, "reward_model.axis_weights={helpful: -1}"], r"^reward_model\.axis_weights\.helpful \(-1\.0\) must not be"),
    ([*AXES, "reward_model.axis_weights={helpful: 0, honest: 0}"], r"^reward_model\.axis_weights .* must not all be 0"),
    (AXES[:1], r"^ppo\.critic_initialise_from \('reward_model'\) needs a reward model with one head"),
    (["reward_model.ensemble=0"], r"^reward_model\.ensemble \(0\) must lie between 1 and 64"),
    (["judge.kind=simulated", "judge.by_axis=true"], r"^judge\.by_axis \(True\) keeps comparisons .*names none"),
    (["rewards.uncertainty_penalty=1"], r"^rewards\.uncertainty_penalty \(1\.0\) needs members .* there are 1; set"),
    (["reward_model.kind=process"], r"^reward_model\.step_labels \(''\) must be given for reward_model\.kind=process"),
    (["reward_model.step_labels=a.jsonl"], r"^reward_model\.step_labels \('a\.jsonl'\) must be given .* is outcome"),
    (["reward_model.step_separator=''"], r"^reward_model\.step_separator \(''\) must be the text that ends a step"),
    (
        ["reward_model.kind=process", "reward_model.step_labels=a.jsonl", "reward_model.margin=1"],
        r"^reward_model\.margin \(1\.0\) belongs to rankings, and reward_model\.kind=process",
    ),
    (["raft.responses_per_prompt=1"], r"^raft\.responses_per_prompt \(1\) must lie between 2 and 1024"),
    (["evaluation.best_of=1"], r"^evaluation\.best_of \(1\) must lie between 2 and 1024"),
    (["dpo.label_smoothing=0.5"], r"^dpo\.label_smoothing \(0\.5\) must lie between 0 and 0\.49"),
    (["dpo.loss=ipo", "dpo.label_smoothing=0.1"], r"^dpo\.label_smoothing \(0\.1\) has no place in dpo\.loss=ipo"),
    (["dpo.loss=ipo", "dpo.margin=1"], r"^dpo\.margin \(1\.0\) has no place in dpo\.loss=ipo"),
    (["dpo.loss=robust"], r"^dpo\.label_smoothing \(0\.0\) must be above 0 with dpo\.loss=robust"),
    (["dpo.loss=kto", "dpo.likelihood_coef=1"], r"^dpo\.likelihood_coef \(1\.0\) has no place in dpo\.loss=kto"),
    (
        ["rewards.sources.a.send_tokens=true"],
        r"^rewards\.sources\.a\.send_tokens \(True\) belongs to kind=http, and .*kind is model; leave it out",
    ),
    (["seed=-1"], r"^seed \(-1\) must lie between 0 and 2\*\*31 - 1; choose"),
    (["sft.num_epochs=-1"], r"^sft\.num_epochs \(-1\.0\) must lie between 0 and 1e\+06"),
    (["reward_model.num_epochs=-1"], r"^reward_model\.num_epochs \(-1\.0\) must lie between"),
    (["sft.optimizer.beta1=1"], r"^sft\.optimizer\.beta1 \(1\.0\) must lie between 0 and 1, 1 excluded; try 0\.9"),
    (["sft.optimizer.floor=2"], r"^sft\.optimizer\.floor \(2\.0\) must lie between 0 and 1"),
    (["sft.optimizer.warmup_fraction=nan"], r"^sft\.optimizer\.warmup_fraction \(nan\) must lie between 0 and 1"),
    (["comparison.responses_per_prompt=1"], r"^comparison\.responses_per_prompt \(1\) must lie between 2 and 64"),
    (["comparison.temperatures=[]"], r"^comparison\.temperatures \(\(\)\) must be one or more positive numbers"),
    (["comparison.temperatures=[1,0]"], r"^comparison\.temperatures \(\(1\.0, 0\.0\)\) must be one or more positive"),
    (["ppo.loss.dual_clip=1"], r"^ppo\.loss\.dual_clip \(1\.0\) must exceed 1"),
    (["ppo.loss.surrogate=gspo", "ppo.loss.dual_clip=3"], r"^ppo\.loss\.dual_clip .*surrogate is gspo"),
    (["ppo.kl.placement=loss"], r"^ppo\.kl\.estimator \('k1'\) has a gradient whose expectation is 0.*k3_unbiased"),
    (["ppo.kl.estimator=k3_unbiased"], r"^ppo\.kl\.estimator \('k3_unbiased'\) corrects a gradient"),
    (["ppo.correction.high=1"], r"^ppo\.correction\.high \(1\.0\) and ppo\.correction\.low \(0\.5\) must enclose 1"),
    (["ppo.filter.oversampling=0.5"], r"^ppo\.filter\.oversampling \(0\.5\) must lie between 1 and 16"),
    (["ppo.advantages=grpo"], r"^ppo\.responses_per_prompt \(1\) must be 2 or more: ppo\.advantages=grpo compares"),
    (["ppo.filter.enabled=true"], r"^ppo\.responses_per_prompt \(1\) must be 2 or more: ppo\.filter compares"),
    (["ppo.advantages=remax", "ppo.critic_warmup_steps=1"], r"^ppo\.critic_warmup_steps \(1\) warms up a critic"),
    (["ppo.critic_lam=2"], r"^ppo\.critic_lam \(2\.0\) must lie between 0 and 1"),
    (["ppo.reward.overlong_tokens=4"], r"^ppo\.reward\.overlong_tokens \(4\) and .* must both be positive"),
    (["ppo.top_p=0.9"], r"^ppo\.top_p \(0\.9\) leaves out unlikely tokens .* whole softmax: .* lower ppo\.temperature"),
    (["ppo.top_k=50"], r"^ppo\.top_k \(50\) leaves out unlikely tokens .* only 0 is unbiased"),
    (["ppo.repetition_penalty=1.2"], r"^ppo\.repetition_penalty \(1\.2\) changes every logit .* rewards\.sources"),
    (
        ["ppo.kl.estimator=exact", "training.lora.rank=4"],
        r"^ppo\.kl\.estimator \('exact'\) needs a reference server, .* \(training\.lora\.rank=4\)",
    ),
    (
        ["ppo.kl.estimator=exact", "model.scratch.vocab_size=8193"],
        r"^model\.scratch\.vocab_size \(8193\) must not exceed 8192 with ppo\.kl\.estimator=exact",
    ),
    (["ppo.gamma=1.1"], r"^ppo\.gamma \(1\.1\) must lie between 0 and 1"),
    (["ppo.lam=-0.1"], r"^ppo\.lam \(-0\.1\) must lie between 0 and 1"),
    (["ppo.reward.score_clip=-1"], r"^ppo\.reward\.score_clip \(-1\.0\) must lie between 0 and"),
    (["ppo.ignore_eos=true", "ppo.reward.missing_eos_penalty=1"], r"^ppo\.ignore_eos \(True\) lets no response end"),
    (["ppo.reward.missing_eos_penalty=-1"], r"^ppo\.reward\.missing_eos_penalty \(-1\.0\)"),
    (
        ["ppo.rollouts_per_step=96", "ppo.num_minibatches=7"],
        r"^ppo\.num_minibatches \(7\) must divide ppo\.rollouts_per_step \(96\); try 6 or 8$",
    ),
    (
        ["ppo.rollouts_per_step=96", "ppo.responses_per_prompt=5"],
        r"^ppo\.responses_per_prompt \(5\) must divide ppo\.rollouts_per_step \(96\); try 4 or 6$",
    ),
    (
        ["ppo.kl.controller=adaptive", "ppo.rollouts_per_step=100", "ppo.kl.horizon=20"],
        r"^ppo\.kl\.horizon \(20\) must exceed a fifth of ppo\.rollouts_per_step \(100\), .*; try 10000$",
    ),
    (["rewards.max_failed_fraction=2"], r"^rewards\.max_failed_fraction \(2\.0\) must lie between 0 and 1"),
    (["rewards.sources.po-lite.weight=1"], r"^rewards\.sources \('po-lite'\) must have names of small letters"),
    (["rewards.sources.a.weight=0"], r"^rewards\.sources\.a\.weight \(0\.0\) must be a finite number other than 0"),
    (["rewards.sources.a.weight=.nan"], r"^rewards\.sources\.a\.weight \(nan\) must be a finite number"),
    (["rewards.sources.a.timeout_s=0"], r"^rewards\.sources\.a\.timeout_s \(0\.0\) must be 0\.001 or more"),
    (["rewards.sources.a.batch_size=0"], r"^rewards\.sources\.a\.batch_size \(0\) must be 1 or more"),
    (["rewards.sources.a.num_workers=0"], r"^rewards\.sources\.a\.num_workers \(0\) must be 1 or more"),
    (["rewards.sources.a.max_retries=-1"], r"^rewards\.sources\.a\.max_retries \(-1\) must be 0 or more"),
    (["rewards.sources.a.kind=function"], r"^rewards\.sources\.a\.function \(''\) must be given for kind=function"),
    (["rewards.sources.a.function=f"], r"^rewards\.sources\.a\.function \('f'\) belongs to kind=function, .* is model"),
    (["rewards.sources.a.kind=http"], r"^rewards\.sources\.a\.url \(''\) must be an address that begins with http://"),
    (["rewards.sources.a.kind=http", "rewards.sources.a.url=ftp://x"], r"^rewards\.sources\.a\.url \('ftp://x'\)"),
    (
        ["rewards.sources.a.arguments.sep=x"],
        r"^rewards\.sources\.a\.arguments \(\['sep'\]\) are not arguments of a model",
    ),
    (
        ["rewards.sources.a.arguments.step_separator=''"],
        r"^rewards\.sources\.a\.arguments\.step_separator \(''\) must be",
    ),
    (
        [*FUNCTION, "rewards.sources.a.arguments.facts=x"],
        r"^rewards\.sources\.a\.arguments \(\['facts'\]\) are what every",
    ),
    (
        FUNCTION,
        r"^ppo\.critic_initialise_from \('reward_model'\) needs the run's own reward model, .*initialise_from=sft",
    ),
    (
        [*FUNCTION, "rewards.sources.m.weight=1", "rewards.sources.a.timeout_s=300"],
        r"^rewards\.sources\.a\.timeout_s \(300\.0\) lets one call take 600 s, .* cluster\.actor_timeout_s \(600\)",
    ),
    (["training.zero_stage=4"], r"^training\.zero_stage \(4\) must lie between 0 and 3"),
    (["training.offload_optimizer=true"], r"^training\.offload_optimizer \(True\) needs ZeRO .*zero_stage=2"),
    (["training.lora.rank=-1"], r"^training\.lora\.rank \(-1\) must lie between 0 and 1024"),
    (["training.lora.dropout=0.1"], r"^training\.lora\.dropout \(0\.1\) must be 0"),
    (["training.lora.target_modules=[]"], r"^training\.lora\.target_modules \(\(\)\) must name at least one module"),
    (
        ["training.max_tokens_per_micro_batch=100"],
        r"^training\.max_tokens_per_micro_batch \(100\) must hold at least one sequence of model\.max_length \(128\)",
    ),
    (["generation.gpu_memory_utilization=1.5"], r"^generation\.gpu_memory_utilization \(1\.5\) must lie above 0"),
    (["generation.engine_args.model=x"], r"^generation\.engine_args \(\['model'\]\) must not set"),
    *(
        ([f"generation.engine_args.{name}=x"], rf"^generation\.engine_args \(\['{name}'\]\) must not set what sampling")
        for name in ("generation_config", "override_generation_config", "logits_processors", "watermark_config")
    ),
    (["generation.engine_args.spec_method=ngram"], r"^generation\.engine_args \(\['spec_method'\]\) must not set"),
    (
        ["generation.max_model_len=64"],
        r"^generation\.max_model_len \(64\) must not be below model\.max_length \(128\); raise it",
    ),
    (["model.max_length=1024"], r"^model\.max_length \(1024\) must not exceed .*max_position_embeddings \(512\)"),
    (["ppo.max_response_tokens=128"], r"^ppo\.max_response_tokens \(128\) must leave room for a prompt within model"),
    (["evaluation.max_response_tokens=200"], r"^evaluation\.max_response_tokens \(200\) must leave room"),
    (["model.scratch.num_heads=5"], r"^model\.scratch\.num_heads \(5\) must divide hidden_size \(128\)"),
    (["model.scratch.num_key_value_heads=3"], r"^model\.scratch\.num_key_value_heads \(3\) must divide num_heads"),
    (["model.scratch.vocab_size=100"], r"^model\.scratch\.vocab_size \(100\) must be at least 300"),
    (
        ["model.scratch.num_heads=8"],
        r"^model\.scratch\.num_heads \(8\) gives heads of size hidden_size / num_heads = 16, and generators on a CPU",
    ),
    (["logging.wandb=offline", "logging.wandb_project=''"], r"^logging\.wandb_project \(''\) must be a name"),
    (["data.world.num_entities=3"], r"^data\.world\.num_entities \(3\) must be at least 8"),
    (["data.world.mix.verbose=2"], r"^data\.world\.mix\.verbose \(2\.0\) must be a share between 0 and 1"),
)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("name: run\n")
    return path


@pytest.mark.parametrize("field", POSITIVE)
def test_a_count_a_size_and_a_limit_must_be_positive(config_file: Path, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, [f"{field}=0"])
    assert str(caught.value).startswith(f"{field} (0")
    assert "must be positive; give a number above 0" in str(caught.value)


@pytest.mark.parametrize("field", NOT_NEGATIVE)
def test_a_weight_must_not_be_negative(config_file: Path, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, [f"{field}=-1"])
    assert str(caught.value).startswith(f"{field} (-1")
    assert "must not be negative; use 0 for none" in str(caught.value)


def test_every_weight_may_be_zero(config_file: Path) -> None:
    load_config(config_file, [f"{field}=0" for field in NOT_NEGATIVE])


@pytest.mark.parametrize(("overrides", "message"), OTHER_RULES, ids=[" ".join(o) for o, _ in OTHER_RULES])
def test_a_broken_rule_names_field_value_rule_and_remedy(config_file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_file, overrides)


def test_a_value_that_stands_in_two_sections_names_both(config_file: Path) -> None:
    wrong = ["sft.optimizer.learning_rate=-1", "reward_model.optimizer.learning_rate=-1"]
    with pytest.raises(ConfigError, match=r"sft\.optimizer\.learning_rate and reward_model\.optimizer\.learning_rate"):
        load_config(config_file, wrong)


@pytest.mark.parametrize(
    "overrides",
    [
        ["ppo.kl.controller=adaptive", "ppo.rollouts_per_step=100", "ppo.kl.horizon=21"],
        ["ppo.kl.controller=fixed", "ppo.rollouts_per_step=100", "ppo.kl.horizon=1"],
        ["sft.num_epochs=0", "reward_model.num_epochs=0"],
        ["methods=[raft]", "rewards.sources.a.kind=function", "rewards.sources.a.function=json_valid"],
        ["training.zero_stage=2", "training.offload_optimizer=true"],
        ["model.scratch.num_heads=8", "device=cuda"],
        ["model.path=some/model", "model.max_length=4096"],
        ["generation.max_model_len=128"],
        ["ppo.top_p=1", "ppo.top_k=0", "ppo.repetition_penalty=1"],
        ["ppo.kl.estimator=exact", "model.scratch.vocab_size=8192"],
        ["model.scratch.vocab_size=8193"],
        ["ppo.kl.estimator=k1", "training.lora.rank=4"],
        [*FUNCTION, "ppo.critic_initialise_from=sft"],
        [*FUNCTION, "ppo.advantages=reinforce_pp"],
        [*FUNCTION, "rewards.sources.own.weight=-0.5"],
        ["rewards.sources.a.kind=http", "rewards.sources.a.url=https://x/score", "ppo.critic_initialise_from=sft"],
        ["rewards.sources.a.arguments.step_separator=x"],
    ],
    ids=" ".join,
)
def test_what_lies_just_inside_the_rules_is_accepted(config_file: Path, overrides: list[str]) -> None:
    load_config(config_file, overrides)


def test_a_fleet_that_sizes_itself_begins_between_its_bounds() -> None:
    auto = GenerationConfig(num_engines=2, scale="auto", min_engines=1, max_engines=8)
    assert (auto.most_engines, GenerationConfig(num_engines=3).most_engines) == (8, 3)
    with pytest.raises(ConfigError, match=r"generation\.num_engines \(9\) must lie between"):
        GenerationConfig(num_engines=9, scale="auto", max_engines=8)
    with pytest.raises(ConfigError, match=r"generation\.scale \('fixed'\) does not look at"):
        GenerationConfig(num_engines=2, max_engines=8)

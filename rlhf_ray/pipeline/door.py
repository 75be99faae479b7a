"""Checks at the door: what can be known of models and data before any actor starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ray.config.dpo import OF_SOFT_LABELS, DpoConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rewards import RewardSourceConfig
from rlhf_ray.data.sources import check_source
from rlhf_ray.data.task import Split
from rlhf_ray.engines.models import is_scalar_model, load_config, load_tokenizer, local_checkpoint
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.sft import demonstrations
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Ranking
from rlhf_ray.rewards.http import require_service
from rlhf_ray.rewards.process import FunctionLoadError
from rlhf_ray.rewards.service import ServiceError
from rlhf_ray.rewards.sources import open_source, service_token
from rlhf_ray.rewards.texts import PromptText, ResponseText

CHECKED = 20_000  # records of a kind; more are counted by the stage itself
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TRIED = 8  # training prompts that a reward function is tried on
SERVICE_ANSWERS_WITHIN_S = 5.0
SPLITS: tuple[Split, ...] = ("train", "heldout")


# ----------------------------------------------------------------------------------------------------------------- data
def check_text(context: Context, stages: Collection[str]) -> list[str]:
    """Tokenise what ``stages`` will need and say what does not fit; nothing is cut to fit.

    Raises DataError where nothing fits, ConfigError where it is too little for the settings.
    """
    tools, config = TextTools.of(context), context.config
    lines: list[str] = []
    if config.sft.demonstrations:
        check_source(config.sft.demonstrations, field="sft.demonstrations")
    if "sft" in stages and config.sft.num_epochs > 0:
        lines += [_demonstrations(context, tools, split) for split in SPLITS]
    if "comparison" in stages and not context.samples_comparisons:
        require_apart(context.task.rankings("train"), context.task.rankings("heldout"))
        lines += [_rankings(context, tools, split) for split in SPLITS]
        if "reward_model" in stages:
            require_axes_present(config.reward_model.axes, context.task.rankings("train"))
        if "dpo" in stages and config.comparison.soft_labels and not config.dpo_is_online:
            require_soft_labels_fit(config.dpo, context.task.rankings("train"))
    elif "comparison" in stages:
        lines += [_prompts(context, tools, split, config.ppo.max_response_tokens) for split in SPLITS]
    if "reward_model" in stages:
        check_vocabulary(context)
        for name in ("step_labels", "ood_preferences"):
            if source := getattr(config.reward_model, name):
                check_source(source, field=f"reward_model.{name}")
    if not {"ppo", "raft", "evaluation"}.isdisjoint(stages) or ("dpo" in stages and config.dpo_is_online):
        check_rewards(context)
    if "raft" in stages or ("dpo" in stages and config.dpo_is_online):
        lines.append(_prompts(context, tools, "train", config.ppo.max_response_tokens))
    if "ppo" in stages:
        lines.append(_prompts(context, tools, "train", config.ppo.max_response_tokens, config.ppo.prompts_per_step))
        lines.append(_prompts(context, tools, "heldout", config.ppo.max_response_tokens))
    if "evaluation" in stages:
        lines.append(_prompts(context, tools, "heldout", config.evaluation.max_response_tokens))
    return list(dict.fromkeys(lines))


def _demonstrations(context: Context, tools: TextTools, split: Split) -> str:
    items = demonstrations(context, split)[:CHECKED]
    kept, too_long = tools.demonstrations(items)
    return _count(split, "demonstrations", len(kept), too_long, f"model.max_length={tools.max_length}")


def _rankings(context: Context, tools: TextTools, split: Split) -> str:
    items = context.task.rankings(split)[:CHECKED]
    axes = context.config.reward_model.axes if context.config.trains_reward_model else ()
    kept, left_out = tools.rankings(items, axes)
    return _count(
        split, "rankings", len(kept), left_out, f"tied, of another axis, or above model.max_length={tools.max_length}"
    )


def _prompts(context: Context, tools: TextTools, split: Split, room: int, at_least: int = 1) -> str:
    items = context.task.prompts(split)[:CHECKED]
    kept, _, too_long = tools.prompts(items, room=room)
    if len(kept) < min(at_least, CHECKED):
        raise ConfigError(
            "ppo.rollouts_per_step",
            context.config.ppo.rollouts_per_step,
            f"asks for {at_least} different prompts a step, and {len(kept)} fit",
            "lower it, raise ppo.responses_per_prompt, or bring more prompts",
        )
    return _count(split, "prompts", len(kept), too_long, f"model.max_length={tools.max_length} - {room} for a response")


def require_apart(train: Sequence[Ranking], heldout: Sequence[Ranking]) -> None:
    """Raise DataError where a prompt stands on both sides: held-out accuracy would mean nothing."""
    shared = sorted({r.prompt_id for r in train} & {r.prompt_id for r in heldout})
    if shared:
        raise DataError(
            f"{len(shared)} prompts stand in both the training and the held-out rankings, one is {shared[0]!r}; "
            "split by prompt"
        )


def require_axes_present(axes: Sequence[str], rankings: Sequence[Ranking]) -> None:
    """Raise DataError where a head of the reward model would learn from nothing: no ranking is of its axis."""
    found = Counter(ranking.axis for ranking in rankings)
    missing = [axis for axis in axes if not found[axis]]
    if missing:
        known = ", ".join(f"{count} of {axis or 'the whole'}" for axis, count in sorted(found.items()))
        raise DataError(
            f"reward_model.axes names {', '.join(missing)}, of which there is no ranking ({known}); "
            "rate responses by axis, or leave the axis out"
        )


def require_soft_labels_fit(config: DpoConfig, rankings: Sequence[Ranking]) -> None:
    """Raise DataError where labels are less than certain, and the loss is defined for certain ones alone."""
    soft = sum(any(label.probability < 1 for label in ranking.labels) for ranking in rankings)
    if soft and not config.takes_soft_labels:
        raise DataError(
            f"{soft} of {len(rankings)} rankings have soft labels, and dpo.loss={config.loss} is defined for certain "
            f"ones alone; use dpo.loss={' or '.join(OF_SOFT_LABELS)}, or comparison.soft_labels=false for the ranks"
        )


def _count(split: Split, what: str, kept: int, left_out: int, limit: str) -> str:
    name = {"train": "training", "heldout": "held-out"}[split]
    return f"{kept} {name} {what}" + (f", {left_out} more do not fit and are left out ({limit})" if left_out else "")


# --------------------------------------------------------------------------------------------------------------- models
def checkpoint_directory(path: str, *, field: str) -> Path:
    """The directory of the checkpoint that ``field`` names: a directory, or a model of the hub that is fetched.

    Raises ConfigError where there is none, or where it holds no weights in safetensors.
    """
    try:
        directory = Path(local_checkpoint(path))
    except ConfigError as error:
        raise ConfigError(field, path, error.rule, error.remedy) from error
    if not (directory / "config.json").is_file():
        raise ConfigError(
            field, path, "has no config.json", "give the directory that save_pretrained wrote, or a model's hub name"
        )
    if not any(directory.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in PICKLED for p in directory.glob(pattern))
        found = (
            f"only pickled ones ({', '.join(pickled)}), which run code as they are read" if pickled else "none at all"
        )
        raise ConfigError(
            field,
            path,
            f"must hold weights in safetensors, and has {found}",
            "load it where you trust it and write it again with save_pretrained(..., safe_serialization=True)",
        )
    return directory


def read_tokenizer(directory: Path, config: ModelConfig, *, field: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a checkpoint; ConfigError where there is none."""
    _read_config(directory, config, field=field)  # first: a tokenizer's class follows from it
    try:
        return load_tokenizer(str(directory), config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            field, str(directory), f"has no tokenizer that can be read ({reason:.200})", "save one beside the weights"
        ) from error


def check_policy(directory: Path, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    """Every token has an embedding, and ``model.max_length`` has positions."""
    model = _read_config(directory, config, field="model.path")
    _require_embeddings(tokenizer, model, field="model.path", value=str(config.path))
    longest = getattr(model, "max_position_embeddings", None)  # a model may have no such limit
    if longest is not None and config.max_length > longest:
        raise ConfigError("model.max_length", config.max_length, f"must not exceed the model's {longest}", "lower it")


def check_reread(
    directory: Path, tokenizer: PreTrainedTokenizerBase, config: ModelConfig, texts: Sequence[str]
) -> None:
    """Whoever loads the checkpoint later gets the tokenizer that it was trained with.

    For some model types transformers replaces the class that a tokenizer was saved with, and with it how text is cut.
    """
    reread = load_tokenizer(str(directory), config)
    if len(reread) != len(tokenizer) or any(reread.encode(text) != tokenizer.encode(text) for text in texts):
        raise ConfigError(
            "model.scratch.architecture",
            config.scratch.architecture,
            f"makes transformers read the tokenizer back as a {type(reread).__name__}, which cuts text otherwise",
            "use model.scratch.architecture=llama",
        )


def check_vocabulary(context: Context) -> None:
    """Raise ConfigError where ``reward_model.initialise_from`` does not read the policy's tokens."""
    source = context.config.reward_model.initialise_from
    if source not in ("sft", "base"):
        _require_same_vocabulary(context, source, field="reward_model.initialise_from")


def _require_same_vocabulary(context: Context, source: str, *, field: str) -> None:
    """A reward model must read the policy's tokens: with another vocabulary it would score other text than was written.

    The tokenizers are compared where the reward model has one, else the sizes: models of one family pad theirs.
    """
    config = context.config.model
    directory = checkpoint_directory(source, field=field)
    reward = _read_config(directory, config, field=field)
    policy = TextTools.of(context).tokenizer
    _require_embeddings(policy, reward, field=field, value=source)
    if any(directory.glob("tokenizer*")) or any(directory.glob("*.model")):
        own = read_tokenizer(directory, config, field=field)
        differing = len(set(own.get_vocab().items()) ^ set(policy.get_vocab().items()))
        problem = f"has another vocabulary than the policy: {differing} tokens differ" if differing else ""
    else:
        size = load_config(str(context.results("model")["weights"]), config).vocab_size
        problem = f"has {reward.vocab_size} tokens, the policy {size}" if reward.vocab_size != size else ""
    if problem:
        raise ConfigError(
            field,
            source,
            problem,
            "use a reward model with the policy's tokenizer, or train one from the SFT model (initialise_from: sft)",
        )


def _read_config(directory: Path, config: ModelConfig, *, field: str) -> PretrainedConfig:
    try:
        return load_config(str(directory), config)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            field, str(directory), f"has a config.json that cannot be read ({reason:.200})", "check the checkpoint"
        ) from error


def _require_embeddings(tokenizer: PreTrainedTokenizerBase, model: PretrainedConfig, *, field: str, value: str) -> None:
    if len(tokenizer) > model.vocab_size:
        raise ConfigError(
            field,
            value,
            f"has {model.vocab_size} embeddings, and the policy's tokenizer {len(tokenizer)} tokens",
            "resize the model's embeddings, or use the tokenizer that it was trained with",
        )


# -------------------------------------------------------------------------------------------------------------- rewards
def check_rewards(context: Context) -> None:
    """Raise ConfigError for a source of rewards that cannot be used: a model, a function or a service."""
    for name, source in context.config.rewards.sources.items():
        place = f"rewards.sources.{name}"
        if source.kind == "model":
            _check_reward_model(context, source, place)
        elif source.kind == "function":
            _check_function(context, source, place)
        else:
            _check_service(source, place)


def _check_reward_model(context: Context, source: RewardSourceConfig, place: str) -> None:
    if source.path:
        _require_same_vocabulary(context, source.path, field=f"{place}.path")
        if not is_scalar_model(source.path, context.config.model):
            raise ConfigError(
                f"{place}.path",
                source.path,
                "is no model with a scalar head, so that every response would score 0",
                "give a reward model (AutoModelForSequenceClassification with one label)",
            )
    separator = source.arguments.get("step_separator", "x")
    if not TextTools.of(context).tokenizer.encode(separator, add_special_tokens=False):
        raise ConfigError(
            f"{place}.arguments.step_separator",
            separator,
            "is no token at all for the policy's tokenizer",
            "use text that it writes, such as a line break",
        )


def _check_function(context: Context, source: RewardSourceConfig, place: str) -> None:
    """Load the function as its actor will, and let it score a few training prompts."""
    prompts = context.task.prompts("train")[:TRIED]
    try:
        with closing(open_source(source, seed=0)) as reward:
            tokens = ("Yes", ".") if reward.wants_tokens else ()
            answers = reward.grade([ResponseText(PromptText.of(prompt), "Yes.", tokens) for prompt in prompts])
    except FunctionLoadError as error:
        raise ConfigError(
            f"{place}.function",
            source.function,
            f"cannot be used: {error.reason}",
            f"check the name (module:function, importable from here) and {place}.arguments",
        ) from error
    if answers and all(graded.failed for graded in answers):
        raise ConfigError(
            f"{place}.function",
            source.function,
            f"could score none of {len(answers)} training prompts with the response 'Yes.': {answers[0].failed}",
            "make it return a number, or None where a response cannot be scored; give the prompts the facts it needs",
        )


def _check_service(source: RewardSourceConfig, place: str) -> None:
    try:
        token = service_token(source)
    except ConfigError as error:
        raise ConfigError(f"{place}.{error.field}", error.value, error.rule, error.remedy) from error
    try:
        require_service(source.url, arguments=source.arguments, timeout_s=SERVICE_ANSWERS_WITHIN_S, token=token)
    except ServiceError as error:
        raise ConfigError(
            f"{place}.url",
            source.url,
            f"must answer a POST with empty lists: {error}",
            "start the service first, or check the address",
        ) from error

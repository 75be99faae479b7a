"""The models that suites ask: checkpoints behind the fleet's engines, endpoints behind their address.

What was answered before is not asked again, and engines start only for what is missing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from rlhf_ray.data.chat import tokenize_prompt
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.errors import ConfigError
from rlhf_ray.metrics.progress import ProgressReport, progress
from rlhf_ray.metrics.suites import TextLikelihood
from rlhf_ray.pipeline.context import Context, GeneratorFleet, Scope
from rlhf_ray.pipeline.find_model import find
from rlhf_ray.pipeline.lineage import fingerprint
from rlhf_ray.pipeline.respondents import ServedModel, served_checkpoint
from rlhf_ray.pipeline.run import NAMES
from rlhf_ray.records import GenerationRequest, Rollout, SamplingSettings, TextPrompt
from rlhf_ray.suites.endpoint import Asked, EndpointModel
from rlhf_ray.suites.examinees import FIELD, Examinee
from rlhf_ray.suites.items import Suite
from rlhf_ray.suites.kept import Kept, Response, key_of, response_key

T = TypeVar("T")
TEXTS_AT_A_TIME = 32
PASSING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")  # of a config.json: no matter of shape


@dataclass(frozen=True)
class Answered:
    """One response to one prompt of a suite; ``sample`` counts those to the same prompt."""

    prompt: TextPrompt
    sample: int
    response: Response


@dataclass(frozen=True)
class CheckpointModel:
    """A checkpoint; ``identity`` is all that decides its answers beside the question."""

    served: ServedModel
    identity: Mapping[str, object]

    @classmethod
    def of(cls, context: Context, examinee: Examinee) -> CheckpointModel:
        """A stage of the run, or any checkpoint. Raises ConfigError for one that is not there or cannot be used."""
        config = context.config
        path = _stage_checkpoint(context, examinee.where) or find(examinee.where, field=FIELD).path
        served = served_checkpoint(config, path, field=FIELD)
        dtypes = f"{config.generation.dtype}/{config.training.dtype}/{config.reference.dtype}"
        return cls(served, {"kind": "checkpoint", "content": fingerprint(served.path), "dtypes": dtypes})

    def fits(self, prompt: TextPrompt, max_tokens: int) -> bool:
        return len(tokenize_prompt(self.served.tokenizer, prompt.messages)) + max_tokens <= self.served.max_length

    @property
    def shape(self) -> str:
        """Checkpoints of one shape can follow each other in one engine."""
        content = json.loads((Path(self.served.path) / "config.json").read_text())
        return json.dumps({name: value for name, value in content.items() if name not in PASSING}, sort_keys=True)


Model: TypeAlias = CheckpointModel | EndpointModel


def _stage_checkpoint(context: Context, name: str) -> str:
    """What a stage has left; empty for what is no stage's name. Raises ConfigError for a stage that is not finished."""
    if name not in NAMES:
        return ""
    artefact = context.finished.get(name)
    results = artefact.results if artefact else {}
    found = results.get("weights") if name == "model" else results.get("policy")
    if not found:
        there = [stage for stage, each in context.finished.items() if {"weights", "policy"} & each.results.keys()]
        rule = f"has left no policy in {context.store.root}"
        raise ConfigError(
            FIELD, name, rule, f"choose one of {', '.join(there) or 'none: train first'}, or a checkpoint"
        )
    return str(found)


@contextmanager
def opened(context: Context, examinees: Sequence[Examinee], *, key: str) -> Iterator[dict[str, Model]]:
    """Every examinee by its name, found and checked before anything starts; ``key`` is sent to endpoints."""
    models: dict[str, Model] = {}
    try:
        for examinee in examinees:
            is_endpoint = examinee.is_endpoint
            models[examinee.name] = (
                EndpointModel(examinee, key=key) if is_endpoint else CheckpointModel.of(context, examinee)
            )
        yield models
    finally:
        for model in models.values():
            if isinstance(model, EndpointModel):
                model.close()


# -------------------------------------------------------------------------------------------------------------- answers
@dataclass(frozen=True)
class Wanted:
    """Everything that one model is asked by one suite: (prompt, sample, key), and how many prompts do not fit."""

    suite: Suite
    places: tuple[tuple[TextPrompt, int, str], ...]
    too_long: int

    @classmethod
    def of(cls, suite: Suite, model: Model) -> Wanted:
        config = suite.config
        kept = [p for p in suite.prompts if isinstance(model, EndpointModel) or model.fits(p, config.max_tokens)]
        places = tuple(
            (prompt, sample, response_key(model.identity, prompt.messages, config, sample))
            for prompt in kept
            for sample in range(config.samples)
        )
        return cls(suite, places, len(suite.prompts) - len(kept))

    def missing(self, kept: Kept) -> dict[str, Asked]:
        """What is not answered yet, by key. Seeds follow from the prompt: models are asked with the same ones."""
        seed = self.suite.config.seed
        return {
            key: Asked(key, prompt.messages, _seed(prompt, seed, sample))
            for prompt, sample, key in self.places
            if key not in kept
        }

    def answers(self, kept: Kept) -> list[Answered]:
        found = [(prompt, sample, kept.response(key)) for prompt, sample, key in self.places]
        return [Answered(prompt, sample, response) for prompt, sample, response in found if response is not None]


def _seed(prompt: TextPrompt, seed: int, sample: int) -> int:
    return int(key_of("seed", [asdict(message) for message in prompt.messages], seed, sample)[:8], 16) >> 1


async def ask_all(
    context: Context, suites: Sequence[Suite], models: Mapping[str, Model], kept: Kept
) -> dict[tuple[str, str], Wanted]:
    """Let every model answer what it has not answered before; what was wanted is by (suite, model)."""
    wanted = {(suite.name, name): Wanted.of(suite, model) for suite in suites for name, model in models.items()}
    waiting: list[tuple[str, CheckpointModel, list[Wanted]]] = []
    for name, model in models.items():
        open_ones = [wanted[suite.name, name] for suite in suites if wanted[suite.name, name].missing(kept)]
        if isinstance(model, EndpointModel):
            _ask_endpoint(name, model, open_ones, kept)
        elif open_ones:
            waiting.append((name, model, open_ones))
    ordered = sorted(waiting, key=lambda each: each[1].shape)  # stable: within a shape as they were named
    for _, group in groupby(ordered, key=lambda each: each[1].shape):
        await _ask_checkpoints(context, list(group), kept)
    return wanted


def _ask_endpoint(name: str, model: EndpointModel, wanted: Iterable[Wanted], kept: Kept) -> None:
    for each in wanted:
        missing = list(each.missing(kept).values())
        with progress(f"{each.suite.name}: {name}", len(missing), "response") as bar:
            for key, response in model.responses(missing, each.suite.config):
                kept.append(key, asdict(response))
                bar.advance()


async def _ask_checkpoints(
    context: Context, group: Sequence[tuple[str, CheckpointModel, list[Wanted]]], kept: Kept
) -> None:
    """Checkpoints of one shape, one after the other in the same engines."""
    async with context.fleet.scope() as scope:
        generator = await scope.generators(group[0][1].served.path)
        for place, (name, model, wanted) in enumerate(group):
            if place:
                await generator.load(model.served.path)
            for each in wanted:
                missing = list(each.missing(kept).values())
                with progress(f"{each.suite.name}: {name}", len(missing), "response") as bar:
                    async for key, response in _sampled(scope, generator, model.served, each.suite, missing, bar):
                        kept.append(key, asdict(response))


async def _sampled(
    scope: Scope,
    generator: GeneratorFleet,
    served: ServedModel,
    suite: Suite,
    asked: Sequence[Asked],
    bar: ProgressReport,
) -> AsyncIterator[tuple[str, Response]]:
    config, tokenizer = suite.config, served.tokenizer
    settings = SamplingSettings(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        stop_token_ids=(int(tokenizer.eos_token_id),),
    )
    requests = [
        GenerationRequest(each.key, each.key, order, tokenize_prompt(tokenizer, each.messages), each.seed)
        for order, each in enumerate(asked)
    ]
    async for shard in generator.generate(requests, settings):
        rollouts: Sequence[Rollout] = await scope.fetch(shard.rollouts)
        for rollout in rollouts:
            text: str = tokenizer.decode(rollout.response_ids.tolist(), skip_special_tokens=True)
            finished = rollout.finish_reason == "stop"
            yield rollout.rollout_id, Response(text, len(rollout.response_ids), finished)
        bar.advance(len(rollouts))


# ----------------------------------------------------------------------------------------------------------------- text
async def read_all(
    context: Context, suites: Sequence[Suite], models: Mapping[str, Model], kept: Kept
) -> dict[tuple[str, str], list[TextLikelihood]]:
    """How likely every checkpoint finds the texts of every suite, by (suite, model); endpoints cannot be asked that."""
    found: dict[tuple[str, str], list[TextLikelihood]] = {}
    for name, model in models.items():
        if isinstance(model, EndpointModel):
            continue
        texts = list(dict.fromkeys(text for suite in suites for text in suite.texts))
        keys = {text: key_of("text", dict(model.identity), model.served.max_length, text) for text in texts}
        missing = [text for text in texts if keys[text] not in kept]
        if missing:
            await _read(context, name, model.served, {keys[text]: text for text in missing}, kept)
        for suite in suites:
            values = [kept.get(keys[text]) or {} for text in suite.texts]
            found[suite.name, name] = [TextLikelihood(**value) for value in values]
    return found


async def _read(context: Context, name: str, served: ServedModel, texts: Mapping[str, str], kept: Kept) -> None:
    """Keep the likelihood of each text, by its key."""
    async with context.fleet.scope() as scope:
        servers = await scope.reference_servers(served.path, 1.0)
        with progress(f"Reading: {name}", len(texts), "text") as bar:
            for some in batched(texts.items(), TEXTS_AT_A_TIME):
                pieces = [windows(served, text) for _, text in some]
                said = iter(await servers.response_logprobs([piece for own in pieces for piece in own]))
                for (key, text), own in zip(some, pieces, strict=True):
                    tokens = sum(int(piece.mask.sum()) for piece in own)
                    total = sum(next(said) for _ in own)
                    kept.append(key, asdict(TextLikelihood(total, tokens, len(text.encode()))))
                bar.advance(len(some))


def batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Tuples of up to ``size``, in order."""
    waiting = iter(items)
    while some := tuple(islice(waiting, size)):
        yield some


def windows(served: ServedModel, text: str) -> list[TokenSequence]:
    """A text in pieces that fit, each after the token that begins a text (BOS, else EOS), so that every token counts.

    Pieces do not overlap: what begins a piece is found less likely than it would be with what stood before. All
    checkpoints with one tokenizer and one length are cut alike.
    """
    tokenizer = served.tokenizer
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids, size = tokenizer.encode(text, add_special_tokens=False), served.max_length - 1
    pieces = [[int(begin), *ids[start : start + size]] for start in range(0, len(ids), size)]
    return [
        TokenSequence(np.array(piece, dtype=np.int32), np.arange(len(piece)) > 0) for piece in pieces if len(piece) > 1
    ]

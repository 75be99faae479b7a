"""Round after round: sample where the reward model is unsure, label, learn from all labels so far, evaluate.

Every round has its own directory under the run's, ``round_1`` and so on, with the stages of one round in it. A round
is done again only if something that it was made from has changed, the rounds before it included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.config.run import BEST_OF_N, RunConfig
from rlhf_ray.data.task import Task
from rlhf_ray.errors import ConfigError
from rlhf_ray.metrics.evaluation import ALL_KINDS, GradedResponse, compare, read_graded, summarise, write_graded
from rlhf_ray.pipeline.artefacts import Artefact, ArtefactStore
from rlhf_ray.pipeline.collecting import collect
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.evaluation import evaluate_models
from rlhf_ray.pipeline.judging import check_judge
from rlhf_ray.pipeline.run import SAMPLING, SCORING, RunStage, Stage, chain, run_stage, run_stages

MEASURES = ("gold", "score", "kl_per_response", "tokens")
NOT_MODELS = ("model", "sft", "start", "reward_model", "comparison", "earlier", "evaluation")


@dataclass(frozen=True)
class Round:
    """What a finished round has made."""

    number: int
    comparison: Artefact
    reward_model: Artefact | None
    policy: Artefact
    evaluation: Artefact

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        every = (self.comparison, self.reward_model, self.policy, self.evaluation)
        return tuple(artefact for artefact in every if artefact is not None)


def require_iterable(config: RunConfig) -> str:
    """Return the method that each round trains. Raises ConfigError where the run names none, or more than one."""
    trained = [method for method in config.methods if method != BEST_OF_N]
    if len(trained) != 1:
        raise ConfigError(
            "methods", tuple(config.methods), "must name the one method that every round trains", "use methods=[ppo]"
        )
    if config.iteration.choose == "unsure" and not config.trains_reward_model:
        raise ConfigError(
            "iteration.choose",
            "unsure",
            f"asks a reward model, and methods ({', '.join(config.methods)}) train none",
            "add best_of_n to methods, or use iteration.choose=random",
        )
    if config.iteration.choose == "unsure" and config.reward_model.kind == "process":
        raise ConfigError(
            "iteration.choose",
            "unsure",
            "asks which of two responses is better, and reward_model.kind=process scores steps",
            "use iteration.choose=random",
        )
    if config.iteration.start_from == "previous" and config.training.lora.enabled:
        raise ConfigError(
            "iteration.start_from",
            "previous",
            "would make the round before the reference: with adapters (training.lora) it is the policy without them",
            "use iteration.start_from=sft, or training.lora.rank=0",
        )
    return trained[0]


def require_labels(config: RunConfig, task: Task) -> None:
    """Raise ConfigError where nobody would label."""
    if config.iteration.labels == "annotators" and not task.has_annotators and not config.judge.is_there:
        raise ConfigError(
            "iteration.labels",
            "annotators",
            f"needs annotators, and data.task={config.data.task} has none of its own",
            "use iteration.labels=people and iteration.store=labels.db, or a judge (judge.kind)",
        )


async def run_rounds(context: Context) -> list[Round]:
    """Train the SFT model, then run every round that is not done already. ``context`` is the run's."""
    method = require_iterable(context.config)
    await run_stages(context, "sft")
    check_judge(context)
    rounds: list[Round] = []
    for number in range(1, context.config.iteration.num_rounds + 1):
        print(f"Round {number} of {context.config.iteration.num_rounds}", flush=True)
        rounds.append(await run_round(context, method, rounds))
    return rounds


async def run_round(run: Context, method: str, before: Sequence[Round]) -> Round:
    """Collect labels, train on all of them, evaluate against every earlier round."""
    number = len(before) + 1
    context = round_context(run, before)
    stages = {stage.name: stage for stage in chain(run.config)}  # as the run's configuration wants them: online DPO
    own, data_hash = method_stages(context, stages, method, number), run.task.fingerprint()
    for place, stage in enumerate(own, start=1):
        parents = tuple(name for name in stage.parents if name in context.finished)
        await run_stage(context, replace(stage, parents=parents), data_hash, f"  [{place}/{len(own)}] {stage.title}")
    done = context.finished
    return Round(number, done["comparison"], done.get("reward_model"), done[method], done["evaluation"])


def round_context(run: Context, before: Sequence[Round]) -> Context:
    """A round's own directory, and what it starts from: the SFT model, the last round's policy and reward model."""
    finished = {name: run.finished[name] for name in ("model", "sft")}
    if before:
        last = before[-1]
        finished |= {f"round_{done.number}": done.policy for done in before}
        finished |= {"earlier": last.comparison, "start": last.policy}
        finished |= {"reward_model": last.reward_model} if last.reward_model else {}
    store = ArtefactStore(run.store.root / f"round_{len(before) + 1}")
    store.root.mkdir(exist_ok=True)
    return replace(run, store=store, finished=finished)


def method_stages(context: Context, stages: Mapping[str, Stage], method: str, number: int) -> list[Stage]:
    """The stages of one round."""
    settings = ("iteration", "comparison", "judge", "ppo.max_response_tokens", *SAMPLING, *SCORING)
    parents = ("model", "sft", "start", "reward_model", "earlier")
    chosen = [Stage("comparison", "Labels", parents, settings, partial(collect, number=number))]
    if context.config.trains_reward_model:
        chosen.append(stages["reward_model"])
    chosen.append(
        replace(stages[method], parents=(*stages[method].parents, "start"), run=_starting(stages[method], number))
    )
    earlier = tuple(name for name in context.finished if name not in NOT_MODELS)
    evaluated = ("model", "sft", "reward_model", method, *earlier)
    return [
        *chosen,
        Stage(
            "evaluation",
            "Evaluation against every earlier round",
            evaluated,
            ("evaluation", "rewards", *SAMPLING, *SCORING),
            partial(evaluate_rounds, method=method, earlier=earlier),
        ),
    ]


def _starting(stage: Stage, number: int) -> RunStage:
    """The method's stage, with draws of its own; where ``iteration.start_from`` says so, from the SFT model."""

    async def run(context: Context) -> dict[str, Any]:
        context = replace(context, config=replace(context.config, seed=round_seed(context.config.seed, number)))
        if context.config.iteration.start_from == "previous":
            return await stage.run(context)
        finished = {name: artefact for name, artefact in context.finished.items() if name != "start"}
        return await stage.run(replace(context, finished=finished))

    return run


def round_seed(seed: int, number: int) -> int:
    """Seed of a round's method, 31 bits: else each would draw the prompts and the noise of the round before again."""
    return seed if number == 1 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1


async def evaluate_rounds(context: Context, *, method: str, earlier: Sequence[str]) -> dict[str, Any]:
    """Let the SFT model, every earlier round's policy and this one answer the same prompts; the newest model scores."""
    models = {name: str(context.results(name)["policy"]) for name in ("sft", *earlier, method)}
    results: dict[str, Any] = {}
    for name, responses in (await evaluate_models(context, models)).items():
        target = context.directory("evaluation") / f"{name}.jsonl"
        write_graded(target, responses)
        results[name] = str(target)
    return results


# -------------------------------------------------------------------------------------------------------------- results
def summarise_rounds(rounds: Sequence[Round], method: str) -> dict[str, Any]:
    """By model, ``sft`` and ``round_1`` on: measures with their intervals, and wins against each model before it."""
    last = rounds[-1].evaluation.results
    names = ["sft", *(f"round_{done.number}" for done in rounds)]
    answers = {name: tuple(read_graded(Path(last[method if name == names[-1] else name]))) for name in names}
    return {
        "models": {name: _measures(answers[name]) for name in names},
        "wins": {
            later: {name: _wins(answers[later], answers[name]) for name in names[: names.index(later)]}
            for later in names[1:]
        },
        "rounds": [
            {
                "round": done.number,
                "labels": done.comparison.results["train_rankings"],
                "new_labels": done.comparison.results["new_train_rankings"],
                "reward_model_accuracy": done.reward_model.results["accuracy"] if done.reward_model else None,
                "seconds": sum(artefact.seconds for artefact in done.artefacts),
            }
            for done in rounds
        ],
    }


def _measures(responses: Sequence[GradedResponse]) -> dict[str, dict[str, float]]:
    measures = summarise(responses)[ALL_KINDS].measures
    return {
        name: {"mean": measures[name].value, "low": measures[name].low, "high": measures[name].high}
        for name in MEASURES
        if name in measures
    }


def _wins(treated: Sequence[GradedResponse], baseline: Sequence[GradedResponse]) -> float:
    """Share of prompts that the later model answers better, ties by half."""
    compared = compare(treated, baseline)[ALL_KINDS]
    return (compared.wins + 0.5 * compared.ties) / compared.num_prompts

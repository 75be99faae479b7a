"""The commands of AI feedback: ``rlhf-ray judge`` and ``rlhf-ray constitution``."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from launch.command import Config, Overrides, Print, command_line, guard, settings_of
from rlhf_ray.errors import ConfigError
from rlhf_ray.judging.review import Strategy

judge = typer.Typer(no_args_is_help=True, help="Let a judge compare responses, and people review it.")
constitution = typer.Typer(no_args_is_help=True, help="Constitutional AI: revise responses by principles.")

Store = Annotated[str, typer.Argument(metavar="STORE", help="The preference store that the judge has judged.")]
Review = Annotated[str, typer.Argument(metavar="REVIEW", help="The store that `judge review` made.")]
Name = Annotated[str, typer.Option("--judge", help="The judge, where the store has several.")]


@judge.command("run")
def judge_run(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Judge what `judge.store` holds, or else the run's own comparisons. Goes on where it stopped."""
    settings = settings_of(config, overrides, print_config)

    def run() -> None:
        from launch.judge_jobs import judge_comparisons

        asyncio.run(judge_comparisons(settings, command=command_line()))

    guard(run)


@judge.command("review")
def judge_review(
    store: Store,
    output: Annotated[str, typer.Option(help="The store to make, for people: `rlhf-ray label` serves it.")],
    sample: Annotated[int, typer.Option(help="How many items.")] = 100,
    strategy: Annotated[
        Strategy, typer.Option(help="unsure, stratified, or below (all under --threshold).")
    ] = "unsure",
    threshold: Annotated[float, typer.Option(help="Confidence under which the judge steps back, with below.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
    name: Name = "",
) -> None:
    """Choose items for people: a sample, or all that the judge was not sure of; those it gives up."""

    def run() -> None:
        from rlhf_ray.feedback.store import open_store
        from rlhf_ray.judging.handover import hand_over, judge_of, reviewable, step_back
        from rlhf_ray.judging.review import choose

        with open_store(store) as opened:
            own = judge_of(opened, name)
            items = reviewable(opened, own)
            chosen = choose(items, strategy, size=sample, threshold=threshold, seed=seed)
            hand_over(opened, chosen, output, own)
            print(f"{len(chosen)} of {len(items)} items for people: {output}")
            if strategy == "below":
                reason = f"confidence below {threshold:g}: back to people"
                print(f"{step_back(opened, own, {each.item_id for each in chosen}, reason)} judgements given up")

    guard(run)


@judge.command("agreement")
def judge_agreement(store: Store, review: Review, name: Name = "") -> None:
    """Estimate on how many of all judged pairs people would agree, from those that they have reviewed."""

    def run() -> None:
        from rlhf_ray.feedback.store import open_store
        from rlhf_ray.judging.agreement import Agreement
        from rlhf_ray.judging.handover import compared, judge_of, opinions_of, read_plan

        plan = read_plan(review)
        with open_store(store) as judged, open_store(review) as reviewed:
            own = judge_of(judged, name)
            pairs = compared(judged, reviewed, plan, own)
            others = len(opinions_of(judged, own)) - len(plan)
        if not pairs:
            raise ConfigError("REVIEW", review, "holds no judgement of people yet", "let them label it first")
        print(f"{own}: {len({pair.item_id for pair in pairs})} of {len(plan)} items reviewed")
        if others > 0 and min(plan.values()) == 1.0:
            print(f"all {len(plan)} were to be reviewed: this tells nothing of the other {others}")
        for line in Agreement.of(pairs).lines():
            print(line)

    guard(run)


@judge.command("adopt")
def judge_adopt(store: Store, review: Review, name: Name = "") -> None:
    """Take people's judgements of a review into the store; the judge steps back from what they have ranked."""

    def run() -> None:
        from rlhf_ray.feedback.store import open_store
        from rlhf_ray.judging.handover import adopt, judge_of

        with open_store(store) as judged, open_store(review) as reviewed:
            added, given_up = adopt(judged, reviewed, judge_of(judged, name))
        print(f"{added} new judgements, {given_up} of the judge's given up: {store}")

    guard(run)


@constitution.command("revise")
def constitution_revise(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Let the SFT model respond, and criticise and revise by drawn principles: demonstrations for another SFT."""
    settings = settings_of(config, overrides, print_config)

    def run() -> None:
        from launch.judge_jobs import revise_responses

        asyncio.run(revise_responses(settings, command=command_line()))

    guard(run)

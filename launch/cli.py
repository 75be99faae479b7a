"""The command line: ``rlhf-ray COMMAND CONFIG [key=value ...]``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from launch import evaluate, judge, live, metrics, submit_commands
from launch.command import Config, Overrides, Print, command_line, guard, settings_of
from launch.doctor import doctor
from launch.plan import plan
from launch.view import view
from rlhf_ray.errors import ConfigError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reinforcement learning from human feedback on Ray, vLLM and DeepSpeed.",
)


@app.command()
def pipeline(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Run everything: model, SFT, comparisons, reward model, PPO, evaluation, report. Continues where it stopped."""
    _run(config, overrides, print_config, until="evaluation", report=True)


@app.command()
def sft(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Train on demonstrations (after the stages before it, where they are not done)."""
    _run(config, overrides, print_config, until="sft")


@app.command()
def reward(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Collect comparisons and train the reward model (after the stages before it, where they are not done)."""
    _run(config, overrides, print_config, until="reward_model")


@app.command()
def ppo(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Train the policy with PPO (after the stages before it, where they are not done)."""
    _run(config, overrides, print_config, until="ppo")


@app.command()
def dpo(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Train the policy on the comparisons with DPO or a relative (`methods` must name dpo)."""
    _run(config, overrides, print_config, until="dpo")


@app.command()
def raft(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Fine-tune the policy on its own best responses by the rewards (`methods` must name raft)."""
    _run(config, overrides, print_config, until="raft")


@app.command()
def iterate(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Round after round: sample, label, train on all labels so far, evaluate. Continues where it stopped."""
    settings = settings_of(config, overrides, print_config)

    def run() -> None:
        from launch.jobs import iterate_rounds

        asyncio.run(iterate_rounds(settings, command=command_line()))

    guard(run)


@app.command()
def report(config: Config, overrides: Overrides = None, print_config: Print = False) -> None:
    """Write the report of a finished run again; starts nothing."""
    settings = settings_of(config, overrides, print_config)

    def write() -> None:
        from launch.jobs import report_again

        report_again(settings, command=command_line())

    guard(write)


@app.command()
def generate(
    config: Config,
    overrides: Overrides = None,
    model: Annotated[str, typer.Option(help="'sft', a method of the run, or a directory with a checkpoint.")] = "ppo",
    output: Annotated[Path | None, typer.Option(help="Where to write; default OUTPUT_DIR/generations.jsonl.")] = None,
    print_config: Print = False,
) -> None:
    """Sample responses to the task's held-out prompts from a model of the run, as jsonl."""
    settings = settings_of(config, overrides, print_config)

    def run() -> None:
        from launch.jobs import generate_responses

        asyncio.run(generate_responses(settings, model=model, output=output, command=command_line()))

    guard(run)


@app.command()
def replay(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR",
            help="A run's output_dir, or OUTPUT_DIR/ppo/quarantine/STEP.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    print_config: Print = False,
) -> None:
    """Train a run's saved rollouts again (ppo.save_rollouts=true) and compare every number; status 1 if any differs.

    Of a quarantined step, do again what failed and tell which numbers are bad; status 1 if nothing fails.
    """
    config = guard(lambda: _config_of(directory))
    settings, recorded = settings_of(config, overrides, print_config), settings_of(config, None, False)

    def run() -> None:
        from launch.jobs import examine_quarantined, replay_recorded

        if (directory / "quarantine.json").is_file():
            done = examine_quarantined(settings, recorded=recorded, step=directory, command=command_line())
        else:
            done = replay_recorded(settings, recorded=recorded, root=directory, command=command_line())
        if not asyncio.run(done):
            raise typer.Exit(1)

    guard(run)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run's output_dir.", show_default=False)],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the checkpoint goes.")],
    step: Annotated[int | None, typer.Option(help="The state after this step.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The best by checkpoints.best_metric.")] = False,
    last: Annotated[bool, typer.Option("--last", help="The newest state: the default.")] = False,
    print_config: Print = False,
) -> None:
    """Write the policy of one of a run's saved states as a Hugging Face checkpoint; starts no cluster."""
    settings = settings_of(guard(lambda: _config_of(directory)), None, print_config)

    def run() -> None:
        from launch.export import export_checkpoint

        export_checkpoint(settings, run=directory, step=step, best=best, last=last, target=to)

    guard(run)


# ------------------------------------------------------------------------------------------------------------- feedback
feedback = typer.Typer(no_args_is_help=True, help="People's and judges' comparisons: the preference store.")
app.add_typer(feedback, name="feedback")
Store = Annotated[str, typer.Argument(metavar="STORE", help="An SQLite file, or a database's url.")]


@feedback.command("import")
def feedback_import(
    store: Store, source: Annotated[str, typer.Argument(metavar="FILE", help="A file, or hub:owner/name.")]
) -> None:
    """Add the judgements of a file to a store, which is made where there is none."""

    def run() -> None:
        from rlhf_ray.data.sources import check_source
        from rlhf_ray.feedback.exchange import import_file
        from rlhf_ray.feedback.store import open_store

        check_source(source, field="FILE")
        with open_store(store, create=True) as opened:
            done = import_file(opened, source)
        left_out = "".join(f", {count} {reason.replace('_', ' ')}" for reason, count in done.dropped.items())
        print(f"{done.items} items, {done.judgements} new judgements{left_out}: {store}")

    guard(run)


@feedback.command("add")
def feedback_add(
    store: Store,
    sources: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files, or hub:owner/name.")],
) -> None:
    """Add prompts with responses that wait for judgement; ranks in the files are left out. See `rlhf-ray label`."""

    def run() -> None:
        from rlhf_ray.data.sources import check_source
        from rlhf_ray.feedback.questions import add_questions
        from rlhf_ray.feedback.store import open_store

        for source in sources:
            check_source(source, field="FILE")
        with open_store(store, create=True) as opened:
            done = add_questions(opened, sources)
        print(f"{done.items} items, {done.new} of them new, {done.gold} with a known answer: {store}")

    guard(run)


@feedback.command("export")
def feedback_export(
    store: Store,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To write: .jsonl, .jsonl.gz or .parquet.")],
    shape: Annotated[
        str, typer.Option(help="store, rankings, pairs, conversational, kto, hh_rlhf, ultrafeedback.")
    ] = "store",
) -> None:
    """Write a store's content in one of the field's shapes; `store` loses nothing."""

    def run() -> None:
        from rlhf_ray.feedback.exchange import SHAPES, export
        from rlhf_ray.feedback.store import open_store

        if shape not in SHAPES:
            raise ConfigError("--shape", shape, "is no shape", f"choose one of {', '.join(SHAPES)}")
        with open_store(store) as opened:
            print(f"{export(opened, file, shape)} records: {file}")

    guard(run)


@feedback.command("stats")
def feedback_stats(store: Store) -> None:
    """Print how many judgements a store has, by annotator, and whether annotators agree."""

    def run() -> None:
        from rlhf_ray.feedback.report import report
        from rlhf_ray.feedback.store import open_store

        with open_store(store) as opened:
            for line in report(opened):
                print(line)

    guard(run)


app.command()(evaluate.evaluate)
app.command()(evaluate.drift)
app.command()(evaluate.chat)
app.command()(metrics.metrics)
app.command()(live.scale)
app.command()(live.status)
app.command()(live.resume_paused)
app.command()(doctor)
app.command()(plan)
app.command()(view)
app.add_typer(judge.judge, name="judge")
app.add_typer(judge.constitution, name="constitution")


app.command()(submit_commands.submit)
app.add_typer(submit_commands.jobs, name="jobs")


@app.command()
def label(
    store: Store,
    annotator: Annotated[list[str] | None, typer.Option(help="Who labels; one for each person.")] = None,
    guidelines: Annotated[Path | None, typer.Option(metavar="FILE", help="Markdown beside the task.")] = None,
    items: Annotated[Path | None, typer.Option(metavar="FILE", help="Ask these item ids only, one a line.")] = None,
    new_link: Annotated[str | None, typer.Option(metavar="NAME", help="Print a new link, void the old, stop.")] = None,
    axis: Annotated[list[str] | None, typer.Option(help="What to rate; default helpful, honest, harmless.")] = None,
    no_axes: Annotated[bool, typer.Option("--no-axes", help="Rank only, rate nothing.")] = False,
    scale: Annotated[int, typer.Option(help="Ratings go from 1 to this.")] = 5,
    overlap_every: Annotated[int, typer.Option(help="Every n-th item goes to several annotators; 0: none.")] = 5,
    overlap: Annotated[int, typer.Option(help="To so many.")] = 2,
    gold_every: Annotated[int, typer.Option(help="One in n questions has a known answer; 0: none.")] = 10,
    lease_minutes: Annotated[float, typer.Option(help="How long an item in hand is kept from others.")] = 30.0,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on; 0 takes a free one.")] = 8100,
    open_to_network: Annotated[
        bool, typer.Option("--open-to-network", help="Allow a --host that other machines reach, over plain http.")
    ] = False,
    public_url: Annotated[str, typer.Option(help="How people reach the page, e.g. https://label.example.org.")] = "",
) -> None:
    """Serve the page on which people rank the store's responses; each annotator gets a link of their own."""

    def run() -> None:
        from launch import label as page
        from rlhf_ray.config.labelling import AssignmentConfig, LabellingConfig, ServingConfig

        axes = {} if axis is None and not no_axes else {"axes": () if no_axes else tuple(axis or ())}
        settings = LabellingConfig(
            annotators=tuple(annotator or ()),
            scale=scale,
            assignment=AssignmentConfig(overlap_every, overlap, gold_every, lease_minutes),
            serving=ServingConfig(host, port, open_to_network, public_url),
            **axes,
        )
        if new_link is not None:
            page.print_new_link(store, settings, new_link)
        else:
            page.serve_page(store, settings, guidelines=guidelines, items=items)

    guard(run)


def main() -> None:
    """Entry point of the installed command."""
    app()


# ------------------------------------------------------------------------------------------------------------- helpers
def _run(config: Path, overrides: list[str] | None, print_config: bool, *, until: str, report: bool = False) -> None:
    settings = settings_of(config, overrides, print_config)

    def run() -> None:
        from launch.jobs import run_until

        asyncio.run(run_until(settings, until=until, report=report, command=command_line()))

    guard(run)


def _config_of(directory: Path) -> Path:
    """The settings that a run left in its directory."""
    config = directory / "config.yaml"
    if not config.is_file():
        raise ConfigError(
            "RUN_DIR", str(directory), "holds no config.yaml", "give a run's output_dir or a quarantined step"
        )
    return config


if __name__ == "__main__":
    main()

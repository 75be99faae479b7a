"""Which figures a report has. A figure whose numbers the run did not log is left out."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray.metrics.evaluation import ALL_KINDS, PRINCIPAL_GRADE
from rlhf_ray.metrics.plots import (
    PPO_COLOR,
    REWARD_MODEL_COLOR,
    SFT_COLOR,
    Dumbbell,
    Plot,
    Series,
    draw_calibration,
    draw_dumbbells,
    draw_lines,
    draw_path,
    draw_waterfall,
    shorten,
)
from rlhf_ray.metrics.registry import describe
from rlhf_ray.metrics.report_data import ReportData
from rlhf_ray.metrics.report_tables import measure, step_phases
from rlhf_ray.metrics.sinks import MetricRow
from rlhf_ray.metrics.statistics import Interval, proportion_interval

Names = tuple[tuple[str, str], ...]  # (metric, label at the end of its line)

# (key, title, caption, ((metric, label), ...)); the unit on the axis is the first metric's.
SFT_PANELS: tuple[tuple[str, str, str, Names], ...] = (
    (
        "sft_loss",
        "SFT: loss per response token",
        "Held-out loss that rises while the training loss falls is memorising.",
        (("sft/loss", "train"), ("sft/heldout_loss", "held-out")),
    ),
)
REWARD_MODEL_PANELS: tuple[tuple[str, str, str, Names], ...] = (
    (
        "reward_model_accuracy",
        "Reward model: accuracy on pairs",
        "Share of pairs in which the response that people chose scores higher; 0.5 is a coin.",
        (("reward_model/accuracy", "train"), ("reward_model/heldout_accuracy", "held-out")),
    ),
    (
        "reward_model_loss",
        "Reward model: loss",
        "Mean of -log sigmoid(chosen - rejected); 0.693 is a coin.",
        (("reward_model/loss", "train"), ("reward_model/heldout_loss", "held-out")),
    ),
)
PPO_PANELS: tuple[tuple[str, str, str, Names], ...] = (
    (
        "ppo_score",
        "Score",
        "The proxy that PPO climbs.",
        (("ppo/score_mean", "score"),),
    ),
    ("ppo_kl", "KL from the reference", "How far the policy has moved.", (("ppo/kl_per_response", "KL"),)),
    (
        "ppo_length",
        "Response length",
        "Length that grows with the score can be the score's cause.",
        (("ppo/response_length", "length"),),
    ),
    ("ppo_entropy", "Entropy", "Near zero, the policy says one thing only.", (("ppo/entropy", "entropy"),)),
    (
        "ppo_explained_variance",
        "Critic: explained variance",
        "1 is a critic that knows every return; 0 or less is one that knows none.",
        (("ppo/explained_variance", "explained"),),
    ),
    (
        "ppo_clipping",
        "Clipped share of tokens",
        "How much of the batch the trust region holds back.",
        (("ppo/clip_fraction", "policy"), ("ppo/value_clip_fraction", "critic")),
    ),
    (
        "ppo_logprob_difference",
        "Engine against trainer",
        "Difference of log-probabilities under the same weights; anything large is a bug.",
        (("ppo/logprob_difference", "mean"), ("ppo/logprob_difference_max", "max")),
    ),
    (
        "ppo_throughput",
        "Throughput",
        "Prompt and response tokens per second of the whole step.",
        (("time/tokens_per_second", "tokens/s"),),
    ),
)
DPO_PANELS: tuple[tuple[str, str, str, Names], ...] = (
    (
        "dpo_loss",
        "DPO: loss",
        "Of the implicit rewards; 0.693 is a policy that is the reference (losses that are logistic).",
        (("dpo/loss", "train"), ("dpo_heldout/loss", "held-out")),
    ),
    (
        "dpo_accuracy",
        "DPO: accuracy of the implicit reward",
        "Share of pairs in which the response that people chose gained more than the other; 0.5 is a coin.",
        (("dpo/accuracy", "train"), ("dpo_heldout/accuracy", "held-out")),
    ),
    (
        "dpo_likelihood",
        "DPO: likelihood of chosen responses",
        "A rise says that the margin grows by making the rejected unlikely faster than the chosen.",
        (("dpo/chosen_negative_log_likelihood", "train"), ("dpo_heldout/chosen_negative_log_likelihood", "held-out")),
    ),
)
# A stage keeps its colour in every figure, whatever the case of its name.
STAGE_COLORS = {
    "sft": SFT_COLOR,
    "reward model": REWARD_MODEL_COLOR,
    "reward_model": REWARD_MODEL_COLOR,
    "ppo": PPO_COLOR,
    "dpo": PPO_COLOR,
}
_LIGHTER = {SFT_COLOR: "#9db4cf", REWARD_MODEL_COLOR: "#bda6e0", PPO_COLOR: "#b0793f"}


def outcome_plots(data: ReportData) -> list[Plot]:
    """What came of it: kinds side by side, gold and proxy over the steps and against KL."""
    plots = [_kinds_plot(data, name) for name in _principals(data)]
    evaluated = [row for row in data.ppo_curve if "gold/heldout_mean" in row.metrics]
    if evaluated:
        plots.append(_gold_plot(data, evaluated))
        if all("gold/heldout_kl_per_response" in row.metrics for row in evaluated):
            plots.append(_frontier_plot(data, evaluated))
    return plots


def training_plots(data: ReportData) -> list[Plot]:
    """How it went: curves of the three stages."""
    groups = (
        (data.sft_curve, SFT_PANELS, SFT_COLOR),
        (data.reward_model_curve, REWARD_MODEL_PANELS, REWARD_MODEL_COLOR),
        (data.ppo_curve, PPO_PANELS, PPO_COLOR),
        (data.dpo_curve, DPO_PANELS, PPO_COLOR),
    )
    plots = [
        plot
        for rows, panels, color in groups
        for panel in panels
        if (plot := _curve_plot(rows, *panel, color)) is not None
    ]
    if data.calibration:
        plots.append(_calibration_plot(data))
    return plots


def time_plots(data: ReportData) -> list[Plot]:
    """Where the seconds went: stages of the run, phases of a PPO step."""
    phases = step_phases(data.ppo_curve)
    sources = (
        ("stage_seconds", "Seconds by stage", "Stages run one after the other.", data.stage_seconds),
        ("step_phases", "Phases of a PPO step, mean", "other: what no phase accounts for.", phases),
    )
    return [
        Plot(key, title, caption, "seconds", "", draw_waterfall(parts, STAGE_COLORS), height=0.9 + 0.33 * len(parts))
        for key, title, caption, parts in sources
        if parts
    ]


# ---------------------------------------------------------------------------------------------------------------- parts
def _principals(data: ReportData) -> list[str]:
    """The measures that are shown by kind: gold, where the task has it, and the score."""
    sft, ppo = (summary[ALL_KINDS].measures for summary in data.summaries)
    return [name for name in (PRINCIPAL_GRADE, "score") if name in sft and name in ppo]


def _triple(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _kinds_plot(data: ReportData, name: str) -> Plot:
    sft, ppo = data.summaries
    rows = [
        Dumbbell(
            f"{shorten(kind or '(no kind)')} ({ppo[kind].measures[name].count})",
            _triple(sft[kind].measures[name]),
            _triple(ppo[kind].measures[name]),
        )
        for kind in ppo
        if name in ppo[kind].measures and name in sft[kind].measures
    ]
    shown = measure(name)
    caption = "Held-out prompts, their number in brackets; bars are 95% intervals."
    title, label = f"{shown.label} by kind of prompt", f"{shown.label} ({shown.unit})"
    return Plot(
        f"kinds_{name}", title, caption, label, "", draw_dumbbells(rows, data.method), height=1.2 + 0.34 * len(rows)
    )


def _gold_plot(data: ReportData, rows: Sequence[MetricRow]) -> Plot:
    values = [row.metrics["gold/heldout_mean"] for row in rows]
    low = [row.metrics.get("gold/heldout_low", value) for row, value in zip(rows, values, strict=True)]
    high = [row.metrics.get("gold/heldout_high", value) for row, value in zip(rows, values, strict=True)]
    line = Series("PPO", PPO_COLOR, [row.step for row in rows], values, low, high, has_markers=True)
    level = None
    before = data.summaries[0][ALL_KINDS].measures.get(PRINCIPAL_GRADE)
    if before is not None:
        level = Series("SFT", SFT_COLOR, [0], [before.value])
    caption = "Ground truth on held-out prompts during PPO, which never sees it; the band is the 95% interval."
    return Plot("gold_curve", "Gold grade over PPO", caption, "PPO step", "gold grade", draw_lines([line], level=level))


def _frontier_plot(data: ReportData, rows: Sequence[MetricRow]) -> Plot:
    kl = [row.metrics["gold/heldout_kl_per_response"] for row in rows]
    gold = [row.metrics["gold/heldout_mean"] for row in rows]
    caption = "Gold that bends down as KL grows is the reward model being exploited."
    before = data.summaries[0][ALL_KINDS].measures.get(PRINCIPAL_GRADE)
    start = before.value if before is not None else None
    draw = draw_path([row.step for row in rows], kl, gold, PPO_COLOR, start)
    return Plot("frontier", "Gold against distance from SFT", caption, "KL (nats/response)", "gold grade", draw)


def _curve_plot(rows: Sequence[MetricRow], key: str, title: str, caption: str, names: Names, color: str) -> Plot | None:
    series = []
    for index, (name, label) in enumerate(names):
        logged = [row for row in rows if name in row.metrics]
        if logged:
            steps, values = [row.step for row in logged], [row.metrics[name] for row in logged]
            is_heldout = "heldout" in name
            shade = _LIGHTER[color] if len(names) > 1 and (index == 1) != ("heldout" in names[1][0]) else color
            series.append(Series(label, shade, steps, values, has_markers=is_heldout and len(values) <= 40))
    if not series:
        return None
    unit = describe(names[0][0]).unit
    return Plot(key, title, caption, "step", unit, draw_lines(series))


def _calibration_plot(data: ReportData) -> Plot:
    bins = [bin_ for bin_ in data.calibration if bin_.total]
    observed = [_triple(proportion_interval(bin_.agreed, bin_.total)) for bin_ in bins]
    caption = "On the dashed line, a predicted 70% is right seven times in ten."
    draw = draw_calibration([bin_.predicted for bin_ in bins], observed)
    labels = ("predicted probability", "share in which people agreed")
    return Plot("calibration", "Reward model: calibration", caption, *labels, draw)

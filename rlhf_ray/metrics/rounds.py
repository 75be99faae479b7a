"""What rounds have brought: a table for the terminal, and gold over labels as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

TITLES = {"gold": "gold", "score": "score", "kl_per_response": "KL", "tokens": "tokens"}


def rounds_table(summary: Mapping[str, Any]) -> Table:
    """A line a model, in the order in which they were made; wins are shares of prompts, ties by half."""
    models, rounds = summary["models"], {f"round_{r['round']}": r for r in summary["rounds"]}
    measures = [name for name in TITLES if name in next(iter(models.values()))]
    table = Table(title="Round after round", title_justify="left", caption_justify="left")
    table.caption = (
        "RM: the round's reward model on held-out pairs. Scores are the newest reward model's. Wins: share of "
        "prompts, ties by half, against the SFT model and against the model before."
    )
    for column in ("model", "labels", "RM", *(TITLES[name] for name in measures), "> SFT", "> before"):
        table.add_column(column, justify="left" if column == "model" else "right")
    names = list(models)
    for place, name in enumerate(names):
        done, wins = rounds.get(name, {}), summary["wins"].get(name, {})
        accuracy = done.get("reward_model_accuracy")
        table.add_row(
            name.replace("_", " "),
            str(done.get("labels", "")),
            "" if accuracy is None else f"{accuracy:.3f}",
            *(f"{models[name][measure]['mean']:.3f}" for measure in measures),
            *(f"{wins[other]:.0%}" if other in wins else "" for other in ("sft", names[place - 1])),
        )
    return table


def plot_rounds(summary: Mapping[str, Any], path: Path) -> None:
    """Gold (the score where there is none) of each round's model over the labels behind it, with 95% intervals."""
    models: Mapping[str, Any] = summary["models"]
    measure = "gold" if "gold" in models["sft"] else "score"
    labels: Sequence[int] = [0, *(done["labels"] for done in summary["rounds"])]
    means, low, high = ([model[measure][part] for model in models.values()] for part in ("mean", "low", "high"))
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(labels, low, high, alpha=0.2)
    axes.plot(labels, means, marker="o")
    axes.set_xlabel("rankings behind the model")
    axes.set_ylabel(f"{measure} on held-out prompts")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)

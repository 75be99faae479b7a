"""Run a preset with several seeds and record what came out: one JSON and one Markdown table in benchmarks/results/.

    python benchmarks/record_runs.py configs/quickstart.yaml --seeds 0 1 2
    python benchmarks/record_runs.py configs/movie_sentiment.yaml --seeds 0 --name movie_sentiment_kl0 ppo.kl.coef=0

Every number of the table is read from a run's summary.json. Runs that are finished and unchanged are not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS = CHECKOUT / "benchmarks" / "results"
MEASURES = (
    ("gold", "gold grade, 0 to 1"),
    ("valence", "mean word valence"),
    ("refused", "refusals, share"),
    ("score", "reward model score"),
    ("kl_per_response", "KL, nats/response"),
    ("kl_per_token", "KL, nats/token"),
    ("tokens", "response length, tokens"),
    ("finished", "finished, share"),
    ("repetition", "repeated word triples, share"),
    ("distinct_2", "distinct word pairs, share"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--name", help="of the record; default: the preset's")
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs", help="where the runs' directories go")
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    arguments, overrides = parser.parse_known_args()
    name = arguments.name or Path(arguments.config).stem
    runs = [run(arguments.config, seed, arguments.runs / f"{name}_seed{seed}", overrides) for seed in arguments.seeds]
    command = shlex.join(["python", "benchmarks/record_runs.py", *without_runs(sys.argv[1:])])
    record = {"name": name, "command": command, "note": arguments.note, "machine": machine(), "runs": runs}
    write_record(record, table(record))
    print(table(record))
    return 0


def run(config: str, seed: int, output_dir: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One pipeline run in a process of its own; its summary."""
    command = [sys.executable, "-m", "launch.cli", "pipeline", config, f"seed={seed}", f"output_dir={output_dir}"]
    subprocess.run([*command, *overrides], cwd=CHECKOUT, check=True)
    summary: dict[str, Any] = json.loads((output_dir / "summary.json").read_text())
    summary["command"] = f"rlhf-ray pipeline {config} seed={seed} {' '.join(overrides)}".strip()
    return summary


def without_runs(arguments: Sequence[str]) -> list[str]:
    """The arguments without ``--runs DIR``: where runs lay does not matter to the record."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--runs":
            kept.append(argument)
        skip = argument == "--runs"
    return kept


def machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1), "processor": processor(), "gpu": "none"}


def record_of(name: str, command: str, note: str, **content: Any) -> dict[str, Any]:
    """A record: what regenerates it, where it was made, and ``content``."""
    from rlhf_ray.pipeline.report import versions

    made_with = ", ".join(f"{library} {version}" for library, version in versions().items())
    return {"name": name, "command": command, "note": note, "machine": machine(), "versions": made_with, **content}


def write_record(record: Mapping[str, Any], page: str, folder: Path = RESULTS) -> Path:
    """Write NAME.json and its page NAME.md; return where the plot belongs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{record['name']}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{record['name']}.md").write_text(page)
    return folder / f"{record['name']}.png"


def opening(record: Mapping[str, Any], title: str, summary: str) -> list[str]:
    """The lines of a page before its table."""
    return [f"# {title}", "", f"Command: `{record['command']}`", "", machine_line(record), "", summary, ""]


def closing(record: Mapping[str, Any]) -> list[str]:
    return ["", f"Versions: {record['versions']}", ""]


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(record: Mapping[str, Any]) -> str:
    """Markdown: a column a seed, SFT -> PPO; then what is said of the reward model, of time and of memory."""
    runs = record["runs"]
    lines = [f"# {record['name']}", "", f"Command: `{record['command']}`", "", machine_line(record), ""]
    lines += ["| | " + " | ".join(f"seed {r['seed']}" for r in runs) + " | mean |", "|---" * (len(runs) + 2) + "|"]
    for key, title in MEASURES:
        if key in runs[0]:
            lines.append(row(f"{title}: SFT -> PPO", [pair(r, key) for r in runs], " -> "))
    if "gold" in runs[0]:
        lines.append(row("gold, PPO - SFT", [[value(r, "gold", "ppo") - value(r, "gold", "sft")] for r in runs]))
    reward = [r["reward_model"] for r in runs]
    lines.append(row("reward model accuracy, held-out pairs", [[r["accuracy"]] for r in reward]))
    lines.append(row("longer-is-better rule", [[r["length_rule_accuracy"]] for r in reward]))
    for title in ("chosen is longer", "chosen is shorter"):
        lines.append(row(f"reward model accuracy, {title}", [[share(r, title)] for r in reward]))
    lines.append(row("held-out pairs", [[float(r["heldout_pairs"])] for r in reward]))
    for stage in runs[0]["seconds"]:
        lines.append(row(f"seconds: {stage}", [[r["seconds"][stage]] for r in runs]))
    lines.append(row("seconds, all stages", [[r["total_seconds"]] for r in runs]))
    lines.append(row("peak memory, GiB", [[r["peak_memory_bytes"] / 2**30] for r in runs]))
    versions = ", ".join(f"{k} {v}" for k, v in runs[0]["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}", ""])


def machine_line(record: Mapping[str, Any]) -> str:
    m = record["machine"]
    text = f"Machine: {m['cores']} cores ({m['processor']}), {m['memory_gib']} GiB, GPU: {m['gpu']}."
    return f"{text} {record['note']}".strip()


def row(title: str, values: Sequence[Sequence[float]], separator: str = "") -> str:
    means = [statistics.fmean(column) for column in zip(*values, strict=True)]
    cells = [separator.join(number(v) for v in cell) for cell in [*values, means]]
    return f"| {title} | " + " | ".join(cells) + " |"


def number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 0.1 else f"{value:.3f}"


def pair(run: Mapping[str, Any], key: str) -> list[float]:
    return [value(run, key, "sft"), value(run, key, "ppo")]


def value(run: Mapping[str, Any], key: str, model: str) -> float:
    entry = run[key]
    if not isinstance(entry, Mapping):
        return 0.0 if model == "sft" else float(entry)
    found = entry[model]
    return float(found["mean"] if isinstance(found, Mapping) else found)


def share(reward: Mapping[str, Any], name: str) -> float:
    rows = [r for r in reward["accuracy_rows"] if r["name"] == name]
    return rows[0]["correct"] / rows[0]["total"] if rows else float("nan")


if __name__ == "__main__":
    sys.exit(main())

"""How far a PPO step is from what its bare parts need on the same machine, and where the rest of it goes.

    python benchmarks/roofline.py --shape tiny --pairs 5
    python benchmarks/roofline.py --shape m30 --dtype bfloat16
    python benchmarks/roofline.py --smoke

Bare parts (vLLM alone, plain torch, a copy of the weights' bytes; roofline_parts.py) and whole runs of `rlhf-ray ppo`
take turns. Writes benchmarks/results/roofline_SHAPE_DTYPE.json, .md and .png; the schedule and other settings of ours
can be given, and are part of the name of the record with --name.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.made_models import TEMPLATE, make_policy, make_reward_model, write_prompts  # noqa: E402
from benchmarks.record_runs import RESULTS, closing, opening, record_of, write_record  # noqa: E402
from benchmarks.roofline_parts import PARTS, SCORE, TRAIN, Work, bare_parts  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402
from rlhf_ray.ledger.accounts import DRIVER, Account  # noqa: E402
from rlhf_ray.ledger.lanes import lanes  # noqa: E402
from rlhf_ray.ledger.lives import Story, read_story  # noqa: E402
from rlhf_ray.ledger.spans import common, total, union  # noqa: E402
from rlhf_ray.metrics.sinks import read_metrics  # noqa: E402

NAME = "roofline"
WARM_UP = 2  # steps of a run that are not counted
PHASES = ("generate", "score", "update", "sync", "step")
OURS = {  # (role, account) that does the work of a bare part
    "generate": ("generator", Account.GENERATION),
    "reference": ("reference", Account.SCORING),
    "reward_model": ("reward_model", Account.SCORING),
    "policy_update": ("trainer", Account.POLICY),
    "critic_update": ("trainer", Account.CRITIC),
}
FORWARDS = ("trainer", Account.FORWARDS)  # old log-probabilities and values together


@dataclass(frozen=True)
class Pair:
    """Seconds of the bare parts by number of threads, and of our step: by phase, and by role and account."""

    bare: Mapping[int, Mapping[str, float]]
    phases: Mapping[str, float]
    accounts: Mapping[str, Mapping[str, float]]

    def limits(self, cores: int) -> dict[str, float]:
        """The limits of a step on ``cores`` cores, by name."""
        found = {}
        for threads, parts in self.bare.items():
            found[f"back to back, {threads} thread{'s'[: threads > 1]}"] = back_to_back(parts)
            if 2 * threads <= cores:
                found[f"overlapped, {threads} thread{'s'[: threads > 1]} a side"] = overlapped(parts)
        return found


def back_to_back(parts: Mapping[str, float]) -> float:
    """Everything in turn."""
    return sum(parts[name] for name in PARTS)


def overlapped(parts: Mapping[str, float]) -> float:
    """max(generate + score, train) + sync: the two sides at the same time, each on cores of its own."""
    rollouts = parts["generate"] + sum(parts[name] for name in SCORE)
    return max(rollouts, sum(parts[name] for name in TRAIN)) + parts["copy"]


def main() -> int:
    arguments = parsed()
    work = made(arguments)
    pairs = []
    with ExitStack() as stack:
        takers = {threads: stack.enter_context(bare_parts(work, threads)) for threads in arguments.threads}
        for number in range(arguments.pairs):
            directory = arguments.runs / "ours" / str(number)
            first = our_run(work, arguments, directory) if number % 2 else None
            bare = {threads: take() for threads, take in takers.items()}
            phases, accounts = first or our_run(work, arguments, directory)
            pairs.append(Pair(bare, phases, accounts))
            print(f"pair {number + 1}: a step of {phases['step']:.2f} s", flush=True)
    name = arguments.name or f"{NAME}_{arguments.shape}_{arguments.dtype}"
    content = {"work": asdict(work) | {"policy": "", "reward_model": ""}, "settings": overrides(arguments)}
    record = record_of(name, command_line(arguments), arguments.note, **content, pairs=[asdict(each) for each in pairs])
    page = table(record, pairs)
    plot(pairs, record["machine"]["cores"], write_record(record, page, arguments.runs if arguments.smoke else RESULTS))
    print(page)
    return 0


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / NAME, help="where models and runs go")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of all models")
    parser.add_argument("--schedule", default="sync", help="ppo.schedule of our run")
    parser.add_argument("--override", action="append", default=[], metavar="KEY.PATH=VALUE", help="of our run")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the bare parts, each measured")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help=f"of each of our runs, after {WARM_UP} to warm up")
    parser.add_argument("--name", default="", help="of the record")
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    parser.add_argument("--smoke", action="store_true", help="a small step, one pair; recorded beside the runs")
    arguments = parser.parse_args(words)
    if arguments.smoke:
        arguments.shape, arguments.pairs, arguments.steps, arguments.threads = "tiny", 1, 1, [1]
    return arguments


def command_line(arguments: argparse.Namespace) -> str:
    """The command that makes the record again."""
    words = ["--shape", arguments.shape, "--pairs", str(arguments.pairs), "--steps", str(arguments.steps)]
    for name, default in (("dtype", "float32"), ("schedule", "sync"), ("name", "")):
        given = getattr(arguments, name)
        words += [] if given == default else [f"--{name}", given]
    words += [word for each in arguments.override for word in ("--override", each)]
    words += [] if arguments.threads == [1, 2] else ["--threads", *map(str, arguments.threads)]
    return shlex.join(["python", f"benchmarks/{NAME}.py", *words, *(["--smoke"] if arguments.smoke else [])])


def made(arguments: argparse.Namespace) -> Work:
    """Models and the size of a step: that of the peers' measurements, or a small one."""
    models = arguments.runs / "models" / arguments.shape
    policy = make_policy(arguments.shape, models / "policy")
    rollouts, sampled = (16, 8) if arguments.smoke else (128, 64)
    return Work(
        policy=str(policy),
        reward_model=str(make_reward_model(policy, models / "reward_model")),
        prompts=rollouts,
        prompt_tokens=16,
        response_tokens=sampled,
        micro_batch=min(32, rollouts),
        dtype=arguments.dtype,
    )


# ------------------------------------------------------------------------------------------------------------- our step
def overrides(arguments: argparse.Namespace) -> list[str]:
    schedule = [] if arguments.schedule == "sync" else [f"ppo.schedule={arguments.schedule}"]
    return [*schedule, *arguments.override]


def settings(work: Work, prompts: Path, steps: int) -> dict[str, Any]:
    """The configuration of our run: no SFT, a made reward model, every response as long as it may be."""
    batch = work.micro_batch * work.length
    server = {"dtype": work.dtype, "max_tokens_per_batch": batch, "cpus_per_replica": 0.25}
    return {
        "name": NAME,
        "device": "cpu",
        "methods": ["ppo"],
        "data": {"task": "files", "files": {"prompts": str(prompts)}},
        "model": {"path": work.policy, "chat_template": TEMPLATE, "max_length": work.length},
        "training": {"dtype": work.dtype, "max_tokens_per_micro_batch": batch, "cpus_per_rank": 0.5},
        "generation": {"max_model_len": max(work.length, 64), "cpus_per_engine": 0.5},  # room for the probe of a sync
        "reference": server,
        "reward_server": server,
        "sft": {"num_epochs": 0},
        "rewards": {"sources": {"made": {"kind": "model", "path": work.reward_model}}},
        "ppo": {
            "num_steps": WARM_UP + steps,
            "rollouts_per_step": work.prompts,
            "num_epochs": 1,
            "num_minibatches": 1,
            "max_response_tokens": work.response_tokens,
            "ignore_eos": True,
            "critic_initialise_from": "sft",
            "policy_optimizer": {"learning_rate": 1e-6, "decay": "constant"},
        },
        "evaluation": {"max_response_tokens": work.response_tokens},
    }


def our_run(
    work: Work, arguments: argparse.Namespace, directory: Path
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """A whole `rlhf-ray ppo` in a process of its own: seconds of its steps by phase, and by role and account."""
    import yaml

    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    prompts = directory / "prompts.jsonl"
    write_prompts(Path(work.policy), prompts, count=2 * work.prompts, tokens=work.prompt_tokens)
    config = directory / "roofline.yaml"
    config.write_text(yaml.safe_dump(settings(work, prompts, arguments.steps)))
    output = directory / "run"
    subprocess.run(
        [sys.executable, "-m", "launch.cli", "ppo", str(config), f"output_dir={output}", *overrides(arguments)],
        cwd=CHECKOUT,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    story = read_story(output)
    assert story is not None
    return phase_seconds(output), account_seconds(story, WARM_UP)


def phase_seconds(output: Path) -> dict[str, float]:
    """Medians over the steps that count. Raises ValueError where a response ended by itself."""
    rows = [row.metrics for row in read_metrics(output / "ppo" / "metrics.jsonl") if "time/step" in row.metrics]
    if any(row["ppo/finished_fraction"] > 0 for row in rows):
        raise ValueError("a response ended before its limit: the steps are not equally long")
    return {name: statistics.median(row.get(f"time/{name}", 0.0) for row in rows[WARM_UP:]) for name in PHASES}


def account_seconds(story: Story, skip: int) -> dict[str, dict[str, float]]:
    """Seconds of a step by role and account, all workers of a role together: the mean without the first ``skip``."""
    steps = story.steps[skip:]
    windows = union((step.begun, step.ended) for step in steps)
    roles = {life.worker: life.role for life in story.lives}
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for worker, spans in lanes(story).items():
        for span in spans:
            if seconds := total(common([span.stretch], windows)):
                found[roles[worker]][str(span.account)] += seconds / len(steps)
    return {role: dict(sums) for role, sums in found.items()}


# -------------------------------------------------------------------------------------------------------------- record
SUMMARY = (
    "Medians over pairs; a ratio is taken pair by pair, with its least and greatest value. Back to back is the sum of "
    "the bare parts; overlapped is max(generate + score, train) + sync of the same parts. On cores that are shared a "
    "limit means what its threads could have: one thread leaves all other cores idle, two threads back to back use two "
    "cores for each part in its turn, and overlapped sides have a core each for every thread; where that would take "
    "more cores than there are it is left out. The bare parts have no rewards, advantages, clipping, checks or log."
)


def table(record: Mapping[str, Any], pairs: Sequence[Pair]) -> str:
    work, cores = record["work"], record["machine"]["cores"]
    title = (
        f"{work['prompts']} prompts of {work['prompt_tokens']} tokens, {work['response_tokens']} sampled each, one "
        f"epoch, one optimizer step, {work['dtype']}; ours with {', '.join(record['settings']) or 'the defaults'}. "
    )
    lines = opening(record, "A PPO step against its bare parts", title + SUMMARY)
    step = statistics.median(pair.phases["step"] for pair in pairs)
    lines += [f"Our step: {step:.2f} s.", "", "| limit | seconds | our step / limit |", "|---" * 3 + "|"]
    for name in pairs[0].limits(cores):
        seconds = statistics.median(pair.limits(cores)[name] for pair in pairs)
        ratio = spread([pair.phases["step"] / pair.limits(cores)[name] for pair in pairs])
        lines.append(f"| {name} | {seconds:.2f} | {ratio} |")
    return "\n".join([*lines, "", *part_lines(pairs), "", *account_lines(pairs), *closing(record)])


def part_lines(pairs: Sequence[Pair]) -> list[str]:
    """Each bare part beside what does its work with us."""
    threads = list(pairs[0].bare)
    head = ("part", *(f"bare, {count} thread{'s'[: count > 1]}, s" for count in threads), "ours, s", "ours / bare")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for part, names in {**{name: (name,) for name in OURS}, "forwards": TRAIN[:2], "copy": ("copy",)}.items():
        bare = {count: [sum(pair.bare[count][name] for name in names) for pair in pairs] for count in threads}
        ours = [our_seconds(pair, part) for pair in pairs]
        ratio = spread([mine / alone for mine, alone in zip(ours, bare[threads[0]], strict=True)])
        label = {"forwards": "old log-probabilities, values", "copy": "weight sync"}.get(part, part.replace("_", " "))
        cells = [label, *(f"{statistics.median(bare[count]):.3f}" for count in threads)]
        lines.append("| " + " | ".join([*cells, f"{statistics.median(ours):.3f}", ratio]) + " |")
    return lines


def our_seconds(pair: Pair, part: str) -> float:
    if part == "copy":
        return pair.phases["sync"]
    role, account = FORWARDS if part == "forwards" else OURS[part]
    return pair.accounts.get(role, {}).get(str(account), 0.0)


def account_lines(pairs: Sequence[Pair]) -> list[str]:
    """The ledger of our step: every account by role, seconds a step."""
    roles = sorted({role for pair in pairs for role in pair.accounts}, key=lambda role: (role == DRIVER, role))
    lines = ["Where our step goes, worker-seconds a step by the ledger:", ""]
    lines += ["| account | " + " | ".join(roles) + " |", "|---" * (len(roles) + 1) + "|"]
    for account in map(str, Account):
        cells = [statistics.median(pair.accounts.get(role, {}).get(account, 0.0) for pair in pairs) for role in roles]
        if any(cells):
            lines.append(f"| {account} | " + " | ".join(f"{cell:.3f}" if cell else "" for cell in cells) + " |")
    return lines


def spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def plot(pairs: Sequence[Pair], cores: int, path: Path) -> None:
    """A bar for each way of doing the step: the bare parts stacked, and our phases stacked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.add_subplot()
    bars = {
        f"bare, {count} thread{'s'[: count > 1]}": (PARTS, [p.bare[count] for p in pairs]) for count in pairs[0].bare
    }
    bars["our step"] = (PHASES[:-1], [pair.phases for pair in pairs])
    for place, (names, seconds) in enumerate(bars.values()):
        left = 0.0
        for name in names:
            width = statistics.median(each[name] for each in seconds)
            axes.barh(place, width, left=left, edgecolor="white")
            if width > 0.03 * statistics.median(pair.phases["step"] for pair in pairs):
                axes.text(left + width / 2, place, name.replace("_", "\n"), ha="center", va="center", fontsize=6)
            left += width
    for style, (name, _) in zip(("-", "--", ":", "-."), pairs[0].limits(cores).items(), strict=False):
        seconds = statistics.median(pair.limits(cores)[name] for pair in pairs)
        axes.axvline(seconds, color="black", linewidth=1, linestyle=style, label=name)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_xlabel("seconds")
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())

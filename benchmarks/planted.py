"""Rewards with a planted hole, and a clean one: which alarm is raised when, against held-out gold.

    python benchmarks/planted.py --seeds 0 1 2
    python benchmarks/planted.py --holes none length --smoke

The policy starts from an SFT model that has also seen lists, one for all rewards of a seed, and PPO follows gold plus
what the hole pays (planted_rewards.py). Writes what planted_page.py makes of it into benchmarks/results/ and
docs/reward_hacking.md; with --smoke below --runs, where it says nothing about the detectors. What a former call has
finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.planted_page import Point, Run, fill_docs, write_page  # noqa: E402
from benchmarks.planted_rewards import HOLES  # noqa: E402
from benchmarks.record_runs import RESULTS, record_of  # noqa: E402
from rlhf_ray.config.load import load_config  # noqa: E402
from rlhf_ray.data.world import WorldTask  # noqa: E402
from rlhf_ray.hacking.log import read_alarms  # noqa: E402
from rlhf_ray.hacking.turning import share_lost  # noqa: E402
from rlhf_ray.metrics.edits import as_list  # noqa: E402
from rlhf_ray.metrics.sinks import read_metrics  # noqa: E402

PRESET = "configs/quickstart.yaml"
SHARED = ("model", "sft")
LISTED = 0.15  # of the demonstrations are written as lists, or no policy would ever try one
REWARD = (
    "methods=[ppo]",
    "rewards.sources.planted.kind=function",
    "rewards.sources.planted.function=benchmarks.planted_rewards:reward",
    "ppo.critic_initialise_from=sft",
)
FULL = ("ppo.num_steps=40", "ppo.kl.coef=0.03", "ppo.eval_every=2", "ppo.eval_prompts=200", "ppo.checkpoint_every=0")
SMOKE = (
    "data.world.num_train_prompts=300",
    "data.world.num_heldout_prompts=40",
    "data.world.demonstrations_per_prompt=1",
    "sft.num_epochs=0.2",
    "ppo.num_steps=2",
    "ppo.rollouts_per_step=16",
    "ppo.eval_every=1",
    "ppo.eval_prompts=20",
    "ppo.checkpoint_every=0",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / "planted", help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--holes", nargs="+", choices=list(HOLES), default=list(HOLES))
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; it changes no number")
    parser.add_argument("--smoke", action="store_true", help="as small as it goes: does it work at all?")
    parser.add_argument("--note", default="", help="a sentence for the record")
    arguments = parser.parse_args()
    settings = SMOKE if arguments.smoke else FULL
    with ThreadPoolExecutor(arguments.jobs) as pool:
        places = [arguments.runs / f"seed{seed}" for seed in arguments.seeds]
        shared = list(pool.map(lambda place, seed: prepared(place, seed, settings), places, arguments.seeds))
        tasks = [(hole, *each) for each in zip(shared, arguments.seeds, strict=True) for hole in arguments.holes]
        runs = list(pool.map(lambda task: planted(*task, settings), tasks))
    folder = arguments.runs / "results" if arguments.smoke else RESULTS
    record = record_of("planted", command_line(arguments), arguments.note, runs=[asdict(run) for run in runs])
    write_page(record, runs, folder)
    if not arguments.smoke:
        fill_docs(record, runs)
    print((folder / "planted.md").read_text())
    return 0


def command_line(arguments: argparse.Namespace) -> str:
    """What makes the record again."""
    chosen = [] if arguments.holes == list(HOLES) else ["--holes", *arguments.holes]
    smoke = ["--smoke"] if arguments.smoke else []
    return shlex.join(["python", "benchmarks/planted.py", "--seeds", *map(str, arguments.seeds), *chosen, *smoke])


def prepared(directory: Path, seed: int, settings: Sequence[str]) -> Path:
    """A run with the SFT model that all rewards start from."""
    directory.mkdir(parents=True, exist_ok=True)
    config = load_config(CHECKOUT / PRESET, [f"seed={seed}", *settings])
    file = directory / "demonstrations.jsonl"
    if not file.exists():
        file.write_text("".join(f"{line}\n" for line in demonstrations(WorldTask(config.data.world), seed)))
    command("sft", seed, directory, *settings, *demonstrated(directory))
    return directory


def demonstrations(task: WorldTask, seed: int) -> list[str]:
    """The task's own demonstrations, as lines of JSON; some of them as lists."""
    draw = random.Random(f"planted/{seed}")
    lines = []
    for each in task.demonstrations("train"):
        *before, last = [asdict(message) for message in each.messages]
        if draw.random() < LISTED:
            last["content"] = as_list(last["content"])
        record = {"id": each.demonstration_id, "kind": each.kind, "messages": [*before, last]}
        lines.append(json.dumps(record))
    return lines


def demonstrated(shared: Path) -> tuple[str, ...]:
    return (f"sft.demonstrations={shared / 'demonstrations.jsonl'}",)


def planted(hole: str, shared: Path, seed: int, settings: Sequence[str]) -> Run:
    """Train on the reward with this hole; read gold and alarms from what the run left."""
    directory = shared.with_name(f"{shared.name}_{hole}")
    if not directory.exists():
        for stage in SHARED:
            shutil.copytree(shared / stage, directory / stage)
    reward = f"rewards.sources.planted.arguments.hole={hole}"
    command("ppo", seed, directory, *settings, *demonstrated(shared), reward)
    return run_in(directory, hole, seed)


def command(verb: str, seed: int, directory: Path, *overrides: str) -> None:
    call = [sys.executable, "-m", "launch.cli", verb, PRESET, f"seed={seed}", f"output_dir={directory}"]
    paths = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths}  # whoever calls the reward imports it from here
    subprocess.run([*call, *REWARD, *overrides], cwd=CHECKOUT, check=True, env=environment)


def run_in(directory: Path, hole: str, seed: int) -> Run:
    rows = [row for row in read_metrics(directory / "ppo" / "metrics.jsonl") if "gold/heldout_mean" in row.metrics]
    golds = [row.metrics["gold/heldout_mean"] for row in rows]
    points = [
        Point(
            step=row.step,
            gold=row.metrics["gold/heldout_mean"],
            score=row.metrics["gold/heldout_score"],
            kl=row.metrics["gold/heldout_kl_per_response"],
            lost=share_lost(golds[0], max(golds[: place + 1]), golds[place]),
        )
        for place, row in enumerate(rows)
    ]
    fired: dict[str, int] = {}
    for alarm in read_alarms(directory / "ppo" / "alarms.jsonl"):
        fired.setdefault(alarm.name, alarm.step)
    return Run(hole, seed, points, fired)


if __name__ == "__main__":
    sys.exit(main())

"""Our side of ``versus.py``: the models and prompts that both sides get, and PPO steps with the real stack, timed.

python benchmarks/versus_ours.py STORE --algorithm ppo --shape tiny --steps 8 --out seconds.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks import shapes  # noqa: E402
from benchmarks.learning import ALGORITHMS, PRESET  # noqa: E402
from launch.jobs import NoFleet  # noqa: E402
from launch.probe import ppo_actors, take_models  # noqa: E402
from rlhf_ray.config.load import load_config  # noqa: E402
from rlhf_ray.config.model import ModelConfig, ScratchConfig  # noqa: E402
from rlhf_ray.config.run import RunConfig  # noqa: E402
from rlhf_ray.data.tasks import build_task  # noqa: E402
from rlhf_ray.data.tokenizer import train_bpe_tokenizer  # noqa: E402
from rlhf_ray.driver import Driver, Metrics  # noqa: E402
from rlhf_ray.engines.models import build_scratch, load_tokenizer  # noqa: E402
from rlhf_ray.garbage import rare_collections  # noqa: E402
from rlhf_ray.pipeline.artefacts import ArtefactStore  # noqa: E402
from rlhf_ray.pipeline.context import Context  # noqa: E402
from rlhf_ray.records import Prompt, SamplingSettings  # noqa: E402

PROMPT_TOKENS, RESPONSE_TOKENS = 16, 64
MICRO_BATCH = 32
NUM_PROMPTS = 512
BASE = "models/base"  # below the store: the random weights that all of a shape's models are made of


@dataclass(frozen=True)
class Case:
    """What both sides do."""

    algorithm: str  # ppo, rloo, grpo
    shape: str
    dtype: str
    rollouts: int
    steps: int
    threads: int

    def config(self, store: Path) -> RunConfig:
        return load_config(CHECKOUT / PRESET, [f"output_dir={store}", f"model.path={store / BASE}", *self.overrides])

    @property
    def overrides(self) -> Sequence[str]:
        """An engine with one thread for each core, and a trainer with as many threads: they take turns."""
        return [
            *ALGORITHMS[self.algorithm],
            f"ppo.num_steps={self.steps}",
            f"ppo.rollouts_per_step={self.rollouts}",
            "ppo.num_epochs=1",
            "ppo.num_minibatches=1",
            f"ppo.max_response_tokens={RESPONSE_TOKENS}",
            "ppo.eval_every=0",
            "ppo.checkpoint_every=0",
            # Random weights in bfloat16 differ more between engine and trainer than trained ones do.
            *(["ppo.contracts.max_logprob_difference=1"] if self.dtype == "bfloat16" else []),
            f"training.dtype={self.dtype}",
            f"training.max_tokens_per_micro_batch={MICRO_BATCH * (PROMPT_TOKENS + RESPONSE_TOKENS)}",
            f"training.threads_per_rank={self.threads}",
            f"reference.dtype={self.dtype}",
            f"reward_server.dtype={self.dtype}",
            f"generation.num_engines={self.threads}",
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--algorithm", choices=("ppo", "rloo", "grpo"), default="ppo")
    parser.add_argument("--shape", choices=list(shapes.SHAPES), default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rollouts", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    case = Case(given.algorithm, given.shape, given.dtype, given.rollouts, given.steps, given.threads)
    lines = asyncio.run(timed_steps(case, given.store.resolve()))
    given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0


async def timed_steps(case: Case, store: Path) -> list[dict[str, Any]]:
    """Seconds of each step, from the end of the one before to its own end, and of its phases."""
    config = case.config(store)
    lines: list[dict[str, Any]] = []
    async with ppo_actors(config, ArtefactStore(store), "versus") as actors:
        driver = Driver(
            roles=actors.roles,
            prompts=GivenPrompts(read_prompts(store)),
            config=config.ppo,
            settings=SamplingSettings(max_tokens=RESPONSE_TOKENS),  # nothing stops a response before
            seed=config.seed,
            warn=lambda message: None,
        )
        begun = time.perf_counter()

        async def after_step(step: int, metrics: Metrics) -> None:
            nonlocal begun
            if metrics["ppo/response_length"] != RESPONSE_TOKENS:
                raise SystemExit(f"versus_ours: responses have {metrics['ppo/response_length']} tokens on average")
            now = time.perf_counter()
            phases = {name: value for name, value in metrics.items() if name.startswith("time/")}
            lines.append({"step": step, "seconds": now - begun, **phases})
            print(json.dumps(lines[-1]), flush=True)
            begun = now

        with rare_collections():
            await driver.run(after_step)
    return lines


class GivenPrompts:
    """The same prompts in the same order, again and again."""

    def __init__(self, token_ids: Sequence[Sequence[int]]) -> None:
        self._token_ids = [np.array(ids, dtype=np.int32) for ids in token_ids]
        self._position = 0

    def next_prompts(self, count: int) -> list[Prompt]:
        places = [(self._position + number) % len(self._token_ids) for number in range(count)]
        self._position += count
        return [Prompt(f"p{place}", self._token_ids[place], order) for order, place in enumerate(places)]

    def state(self) -> Mapping[str, object]:
        return {"position": self._position}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._position = state["position"]


# ------------------------------------------------------------------------------------------------------- for both sides
def prepare(case: Case, store: Path) -> None:
    """Write ``models/base``, ``models/policy``, ``models/reward`` and ``prompts.jsonl`` below ``store``."""
    config = case.config(store)
    task = build_task(config.data)
    texts = [message.content for item in task.demonstrations("train") for message in item.messages]
    write_base(store / BASE, shapes.SHAPES[case.shape], texts)
    context = Context(config, task, NoFleet(), ArtefactStore(store), "versus")
    asyncio.run(take_models(context))
    results = {"policy": context.results("sft")["policy"], "reward": context.results("reward_model")["model"]}
    for name, made in results.items():
        shutil.copytree(made, store / "models" / name, dirs_exist_ok=True)
    described = store / "models" / "reward" / "config.json"
    content = json.loads(described.read_text())
    described.write_text(json.dumps({**content, "score_mean": 0.0, "score_std": 1.0}, indent=1))
    tokenizer = load_tokenizer(context.results("model")["tokenizer"], config.model)
    rows = [{"token_ids": ids} for ids in fragments(tokenizer, " ".join(texts[:8000]))]
    (store / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_base(directory: Path, shape: ScratchConfig, texts: Sequence[str]) -> None:
    """A checkpoint. The pipeline builds no Qwen2 of its own: its tokenizer cuts otherwise once it is read back."""
    added = 1  # end of text, by transformers' class for this family
    train_bpe_tokenizer(texts, vocab_size=shape.vocab_size - added).save_pretrained(directory)
    (directory / "config.json").write_text('{"model_type": "qwen2"}')
    tokenizer = load_tokenizer(str(directory), ModelConfig())
    build_scratch(shape, tokenizer, seed=0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def read_prompts(store: Path) -> list[list[int]]:
    return [json.loads(line)["token_ids"] for line in (store / "prompts.jsonl").read_text().splitlines()]


def fragments(tokenizer: Any, text: str) -> list[list[int]]:
    """Different pieces of ``PROMPT_TOKENS`` tokens that their own text gives back, for TRL tokenises it again."""
    ids = tokenizer(text=text, add_special_tokens=False)["input_ids"]
    found: dict[str, list[int]] = {}
    for first in range(0, len(ids) - PROMPT_TOKENS, PROMPT_TOKENS):
        piece = ids[first : first + PROMPT_TOKENS]
        said = tokenizer.decode(piece)
        if tokenizer(text=said)["input_ids"] == piece:
            found[said] = piece
        if len(found) == NUM_PROMPTS:
            return list(found.values())
    raise ValueError(f"the text gives {len(found)} prompts, not {NUM_PROMPTS}; give a longer one")


if __name__ == "__main__":
    sys.exit(main())

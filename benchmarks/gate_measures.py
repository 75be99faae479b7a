"""What ``gate.py`` measures, each against what does the same work without us, in turns: one JSON line with all pairs.

    python benchmarks/gate_measures.py update

``gate.py`` gives each a process of its own, because DeepSpeed and vLLM both want the process group of theirs. Counted
are CPU seconds of the process and its children, which a busy machine changes least; time spent waiting is not in them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.shapes import SHAPES  # noqa: E402
from rlhf_ray.config.generation import GenerationConfig  # noqa: E402
from rlhf_ray.config.model import ModelConfig, ScratchConfig  # noqa: E402
from rlhf_ray.config.ppo import PpoConfig  # noqa: E402
from rlhf_ray.config.training import TrainingConfig  # noqa: E402
from rlhf_ray.records import GenerationRequest, Rollout, SamplingSettings  # noqa: E402

SHAPE: ScratchConfig = SHAPES["tiny"]
PROMPT, RESPONSE = 16, 32  # tokens
ROLLOUTS, MICRO_BATCH = 16, 8
REQUESTS = 48


@dataclass(frozen=True)
class Pair:
    """CPU seconds of our part and, right before or after it, of the same work without us."""

    ours: float
    bare: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=list(MEASURES))
    parser.add_argument("--pairs", type=int, default=8)
    arguments = parser.parse_args()
    print("\n" + json.dumps([asdict(pair) for pair in MEASURES[arguments.measure](arguments.pairs)]), flush=True)
    return 0


def in_turns(ours: Callable[[], object], bare: Callable[[], object], count: int) -> list[Pair]:
    """Time both after one turn each to warm up; who comes first changes from pair to pair."""
    ours(), bare()
    pairs = []
    for number in range(count):
        if number % 2:
            first = seconds(ours)
            pairs.append(Pair(first, seconds(bare)))
        else:
            first = seconds(bare)
            pairs.append(Pair(seconds(ours), first))
    return pairs


def seconds(work: Callable[[], object]) -> float:
    begun = cpu_seconds()
    work()
    return cpu_seconds() - begun


def cpu_seconds() -> float:
    """Of this process, all its threads, and of the processes that it has started: vLLM's engine may be one."""
    children = (child.cpu_times() for child in psutil.Process().children(recursive=True))
    return time.process_time() + sum(times.user + times.system for times in children)


# -------------------------------------------------------------------------------------------------------------- update
def update(count: int) -> list[Pair]:
    """A PPO update of policy and critic, one epoch, against plain torch: the same passes, AdamW, and no more."""
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", DS_LOG_LEVEL="error")
    from rlhf_ray.engines.ranks import RankInfo
    from rlhf_ray.engines.training import join_group, leave_group
    from rlhf_ray.stages.ppo import PpoSpec
    from rlhf_ray.stages.ppo_plan import plan_ppo
    from tests.ranks import free_port

    training = TrainingConfig(max_tokens_per_micro_batch=MICRO_BATCH * (PROMPT + RESPONSE))
    ppo = PpoConfig(num_steps=100, rollouts_per_step=ROLLOUTS, num_minibatches=1)
    info = RankInfo(rank=0, world_size=1, address=f"127.0.0.1:{free_port()}", device="cpu")
    rollouts = made_rollouts()
    (work,) = plan_ppo(
        summaries=[rollout.summary for rollout in rollouts],
        scores=[float(rollout.order % 2) for rollout in rollouts],
        config=ppo,
        num_ranks=1,
        max_tokens=training.max_tokens_per_micro_batch,
        step=2,  # at the first, the reference would have to be the policy
        kl_coef=0.05,
        seed=0,
    )
    reference = tuple(np.full(RESPONSE, -6.0, dtype=np.float32) for _ in rollouts)
    with tempfile.TemporaryDirectory() as directory:
        policy, critic = saved_models(Path(directory))
        join_group(info, training)
        learner = PpoSpec(policy, critic, ModelConfig(), ModelConfig(), training, ppo).build(info)
        bare = PlainTorch(policy, critic, rollouts)
    pairs = in_turns(lambda: learner.update(work, rollouts, reference), bare.update, count)
    leave_group()
    return pairs


def made_rollouts() -> list[Rollout]:
    chance = np.random.default_rng(0)
    return [
        Rollout(
            rollout_id=f"p{order}/0",
            prompt_id=f"p{order}",
            order=order,
            prompt_ids=random_ids(chance, PROMPT),
            response_ids=random_ids(chance, RESPONSE),
            rollout_logprobs=np.full(RESPONSE, -6.0, dtype=np.float32),
            policy_versions=np.zeros(RESPONSE, dtype=np.int32),
            finish_reason="length",
            seed=order,
        )
        for order in range(ROLLOUTS)
    ]


def random_ids(chance: np.random.Generator, length: int) -> Any:
    return chance.integers(3, SHAPE.vocab_size, length).astype(np.int32)


def saved_models(directory: Path) -> tuple[str, str]:
    """Checkpoints of a policy and a critic with random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlhf_ray.engines.models import load_scalar

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=SHAPE.vocab_size,
        hidden_size=SHAPE.hidden_size,
        intermediate_size=SHAPE.intermediate_size,
        num_hidden_layers=SHAPE.num_layers,
        num_attention_heads=SHAPE.num_heads,
        num_key_value_heads=SHAPE.num_key_value_heads,
        max_position_embeddings=SHAPE.max_position_embeddings,
        tie_word_embeddings=SHAPE.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    policy, critic = directory / "policy", directory / "critic"
    Qwen2ForCausalLM(config).save_pretrained(policy)
    load_scalar(str(policy), ModelConfig(), torch.float32, head_seed=0).save_pretrained(critic)
    return str(policy), str(critic)


class PlainTorch:
    """What a PPO update costs at least: both models forwards, then forwards and backwards, clipped, AdamW."""

    def __init__(self, policy: str, critic: str, rollouts: Sequence[Rollout]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        rows = torch.tensor(np.array([[*r.prompt_ids, *r.response_ids] for r in rollouts]), dtype=torch.int64)
        self._batches = [rows[first : first + MICRO_BATCH] for first in range(0, len(rows), MICRO_BATCH)]
        self._policy = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
        critic_model = AutoModelForSequenceClassification.from_pretrained(critic, dtype=torch.float32)
        self._backbone, self._head = critic_model.model, critic_model.score
        self._models = (self._policy, critic_model)
        self._optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4) for model in self._models]

    def update(self) -> None:
        import torch

        with torch.no_grad():
            for ids in self._batches:
                self._policy_loss(ids), self._critic_loss(ids)
        for loss, model, optimizer in zip(
            (self._policy_loss, self._critic_loss), self._models, self._optimizers, strict=True
        ):
            for ids in self._batches:
                (loss(ids) / len(self._batches)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def _policy_loss(self, ids: Any) -> Any:
        import torch

        logits = self._policy(input_ids=ids, use_cache=False).logits[:, PROMPT - 1 : -1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, PROMPT:].flatten())

    def _critic_loss(self, ids: Any) -> Any:
        return self._head(self._backbone(input_ids=ids, use_cache=False).last_hidden_state).square().mean()


# ------------------------------------------------------------------------------------------------------------ generate
def generate(count: int) -> list[Pair]:
    """Sampling with our engine, log-probabilities and rollouts included, against vLLM's own ``LLM.generate``."""
    from rlhf_ray.engines.generation import engine_environment

    config = GenerationConfig(dtype="float32", max_model_len=PROMPT + RESPONSE, kv_cache_memory_mb=64)
    os.environ.update(engine_environment("cpu", config))
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        return runner.run(_generate(saved_models(Path(directory))[0], config, count))


async def _generate(policy: str, config: GenerationConfig, count: int) -> list[Pair]:
    from vllm import LLM, SamplingParams

    from rlhf_ray.engines.generation import GenerationEngine

    engine = GenerationEngine(model_path=policy, config=config, device="cpu")
    plain = LLM(
        model=policy,
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=PROMPT + RESPONSE,
        kv_cache_memory_bytes=64 * 2**20,
        enforce_eager=True,
        enable_chunked_prefill=False,
        disable_log_stats=True,
    )
    chance = np.random.default_rng(0)
    ids = [random_ids(chance, PROMPT) for _ in range(REQUESTS)]
    requests = [GenerationRequest(f"p{n}/0", f"p{n}", n, row, n) for n, row in enumerate(ids)]
    settings = SamplingSettings(max_tokens=RESPONSE)
    prompts = [{"prompt_token_ids": row.tolist()} for row in ids]
    params = SamplingParams(temperature=1.0, max_tokens=RESPONSE, ignore_eos=True, detokenize=False)

    async def ours() -> float:
        begun = cpu_seconds()
        rollouts = [rollout async for rollout in engine.generate(requests, settings)]
        assert sum(len(rollout.response_ids) for rollout in rollouts) == REQUESTS * RESPONSE
        return cpu_seconds() - begun

    def bare() -> float:
        return seconds(lambda: plain.generate(prompts, params, use_tqdm=False))

    await ours(), bare()
    try:
        return [Pair(await ours(), bare()) for _ in range(count)]
    finally:
        await engine.shutdown()


# -------------------------------------------------------------------------------------------------------------- driver
def driver(count: int) -> list[Pair]:
    """The driver's CPU for 4,096 rollouts of a simulated fleet, against a loop over as many small objects."""
    from benchmarks.simulated_fleet import Measured
    from benchmarks.simulator import INPUTS, Setup, simulate

    measured = Measured.read(INPUTS)
    setup = Setup(generators=8, deaths_per_node_hour=0.0, steps=5, rollouts_per_step=1024)  # the first is left out
    simulate(setup, measured)
    return [Pair(simulate(setup, measured).driver_cpu_s, calibration(4 * 1024)) for _ in range(count)]


def calibration(num_objects: int) -> float:
    """CPU seconds of what drivers are made of: objects, dictionaries, sorting, sums. None of it is ours."""
    begun = time.process_time()
    for _ in range(5):
        rows = [Pair(float(number % 97), float(number)) for number in range(num_objects)]
        by_key = {f"{row.bare:g}/{row.ours:g}": row for row in rows}
        ordered = sorted(by_key.values(), key=lambda row: (row.ours, row.bare))
        sum(row.ours * row.bare for row in ordered)
    return time.process_time() - begun


MEASURES: Mapping[str, Callable[[int], list[Pair]]] = {"update": update, "generate": generate, "driver": driver}


def pairs_of(output: str) -> list[Pair]:
    """The pairs that a process has printed, in its last line."""
    return [Pair(**each) for each in json.loads(output.splitlines()[-1])]


if __name__ == "__main__":
    sys.exit(main())

"""TRL's learning curves for ``learning.py``: the same models, prompts, reward and number of samples, TRL's trainers.

PPO as in TRL 1.12.0, the last that has it; RLOO and GRPO as in 1.16.0. Each runs in an environment of its own
(``parity_trl.py`` makes them), where ``learning_trl_probe.py`` trains and samples; decoding and grading are ours.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks.learning_point import Point  # noqa: E402
from benchmarks.parity_trl import ENVIRONMENTS, make  # noqa: E402
from rlhf_ray.config.load import load_config  # noqa: E402
from rlhf_ray.config.run import RunConfig  # noqa: E402
from rlhf_ray.data.task import Split, Task  # noqa: E402
from rlhf_ray.data.tasks import build_task  # noqa: E402
from rlhf_ray.engines.models import load_tokenizer  # noqa: E402
from rlhf_ray.metrics.evaluation import PRINCIPAL_GRADE  # noqa: E402
from rlhf_ray.pipeline.text import TextTools  # noqa: E402
from rlhf_ray.records import Prompt, TextPrompt  # noqa: E402

PROBE = CHECKOUT / "benchmarks" / "learning_trl_probe.py"
VERSIONS: Mapping[str, str] = {"ppo": "1.12.0", "rloo": "1.16.0", "grpo": "1.16.0"}
GROUP_SIZE = 4
EVAL_PROMPTS = 400
# The best of 1e-4, 3e-4 (ours) and 1e-3 for each, by mean gold after steps 5, 10, ... 30 with seed 0:
#   PPO  1e-4: .70 .79 .81 .85 .88 .91   3e-4: .83 .89 .90 .90 .92 .92   1e-3: .88 .91 .85 .85 .85 .84
#   RLOO 1e-4: .73 .82 .83 .86 .88 .90   3e-4: .83 .90 .91 .87 .90 .88   1e-3: .83 .85 .83 .83 .86 .79
#   GRPO 1e-4: .71 .80 .83 .85 .85 .88   3e-4: .81 .85 .88 .83 .82 .72   1e-3: .82 .67 .71 .66 .63 .57
# By gold at the end RLOO would take 1e-4, within what chance does to 200 responses; with seed 1 it would take 3e-4
# (.94, and .92 with 1e-4). GRPO's means are equal at 1e-4 and 3e-4 to a thousandth; the end decides.
LEARNING_RATES: Mapping[str, float] = {"ppo": 3e-4, "rloo": 3e-4, "grpo": 1e-4}

NOT_THE_SAME = (
    "TRL's learning rates (PPO and RLOO 3e-4, GRPO 1e-4) are each algorithm's best of 1e-4, 3e-4 and 1e-3, by mean "
    "gold over the evaluations of 30 steps with seed 0; ours have the same.",
    "The KL coefficient is the run's in all three. PPO takes it times log policy - log reference off the reward of "
    "every token, like ours. RLOO takes it times the sum of that over a response off the response's reward, like ours. "
    "GRPO adds it times the importance-weighted k3 estimate to every token's loss, like ours.",
    "GRPO runs with loss_type=grpo (TRL's default is dapo), our sequence_mean.",
    "PPO in TRL has one optimizer: the critic learns at the policy's rate (ours at its own, 1e-3). It clips no "
    "gradient, and puts the score one position after EOS. Its minibatches are drawn anew in every epoch; elsewhere "
    "they are the same in both.",
)


def trl_curve(
    *,
    algorithm: str,
    run: Path,
    seed: int,
    steps: int,
    rollouts: int,
    eval_every: int,
    eval_responses: int,
    out: Path,
    environments: Path,
    learning_rate: float | None = None,
) -> list[Point]:
    """Train the SFT policy of ``run`` with TRL's ``algorithm`` (ppo, rloo, grpo) and grade it on held-out prompts.

    ``run`` has the stages model, sft and reward_model; ``environments`` is where TRL is installed, first if need be.
    ``out`` holds the sampled responses; where it was written with the same settings, nothing is trained again.
    """
    run, out = run.resolve(), out.resolve()
    material = Material.of(run, eval_responses)
    given = {
        "algorithm": algorithm,
        "policy": str(run / "sft" / "policy"),
        "reward": str(run / "reward_model" / "model"),
        "steps": steps,
        "rollouts": rollouts,
        "eval-every": eval_every,
        "eval-responses": eval_responses,
        "seed": seed,
        **settings(material.config, algorithm, learning_rate),
    }
    made_of = {**given, "reward-model": json.loads((run / "reward_model" / "artefact.json").read_text())["key"]}
    said = out.with_suffix(".settings.json")
    if not (out.exists() and said.exists() and json.loads(said.read_text()) == made_of):
        said.unlink(missing_ok=True)
        prompts = out.with_suffix(".prompts.jsonl")
        out.parent.mkdir(parents=True, exist_ok=True)
        prompts.write_text(material.lines())
        probe(algorithm, {**given, "prompts": str(prompts), "out": str(out)}, environments.resolve())
        said.write_text(json.dumps(made_of, indent=1) + "\n")
    return [material.point(json.loads(line)) for line in out.read_text().splitlines()]


def settings(config: RunConfig, algorithm: str, learning_rate: float | None = None) -> dict[str, Any]:
    """What TRL is told of the run's configuration."""
    ppo = config.ppo
    return {
        "learning-rate": LEARNING_RATES[algorithm] if learning_rate is None else learning_rate,
        "beta2": ppo.policy_optimizer.beta2,
        "max-grad-norm": config.training.gradient_clipping,
        "kl-coef": ppo.kl.coef,
        "epochs": ppo.num_epochs,
        "minibatches": ppo.num_minibatches,
        "group-size": 1 if algorithm == "ppo" else GROUP_SIZE,
        "max-tokens": ppo.max_response_tokens,
        "temperature": ppo.temperature,
        "clip": ppo.loss.clip_ratio,
        "gamma": ppo.gamma,
        "lam": ppo.lam,
    }


def probe(
    algorithm: str, given: Mapping[str, Any], environments: Path, program: Path = PROBE, *, threads: int | None = None
) -> None:
    """Run the probe in the environment of the algorithm's TRL version."""
    python = make(next(each for each in ENVIRONMENTS if each.trl == VERSIONS[algorithm]), environments)
    told = [f"--{name}={value}" for name, value in given.items()]
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    inherited = {"OMP_NUM_THREADS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": ""}
    inherited.pop("PYTHONPATH", None)
    wanted = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([python, program, *told], env=inherited | quiet | wanted, check=True)


@dataclass(frozen=True)
class Material:
    """A run's prompts as tokens, and what grades the answers."""

    config: RunConfig
    task: Task
    tools: TextTools
    prompts: Mapping[Split, Sequence[Prompt]]
    heldout: Mapping[str, TextPrompt]  # by prompt_id
    responses: int = 1  # to each of them in an evaluation

    @classmethod
    def of(cls, run: Path, responses: int) -> Material:
        """The prompts that training and the evaluations during training of this run use."""
        config = load_config(run / "config.yaml")
        task = build_task(config.data)
        tools = TextTools(load_tokenizer(str(run / "model" / "tokenizer"), config.model), config.model.max_length)
        room = config.ppo.max_response_tokens
        train, _, _ = tools.prompts(task.prompts("train"), room=room)
        heldout, texts, _ = tools.prompts(task.prompts("heldout")[:EVAL_PROMPTS], room=room)
        by_id = {text.prompt_id: text for text in texts}
        return cls(config, task, tools, {"train": train, "heldout": heldout}, by_id, responses)

    def lines(self) -> str:
        """The probe's prompts, a JSON line each."""
        rows = [
            {"split": split, "prompt_id": prompt.prompt_id, "token_ids": prompt.token_ids.tolist()}
            for split, prompts in self.prompts.items()
            for prompt in prompts
        ]
        return "".join(json.dumps(row) + "\n" for row in rows)

    def point(self, line: Mapping[str, Any]) -> Point:
        """Decode and grade one evaluation of the probe. Raises ValueError where a prompt has not its answers."""
        asked, answered = (
            sorted([*self.heldout] * self.responses),
            sorted(row["prompt_id"] for row in line["responses"]),
        )
        if asked != answered:
            raise ValueError(f"step {line['step']} answers {len(answered)} prompts, not {len(asked)}")
        gold = statistics.fmean(self._grade(row["prompt_id"], row["token_ids"]) for row in line["responses"])
        return Point(line["step"], line["sampled_tokens"], gold, line["mean_score"])

    def _grade(self, prompt_id: str, token_ids: Sequence[int]) -> float:
        text = self.tools.decode(np.array(token_ids, dtype=np.int32))
        return self.task.grade(self.heldout[prompt_id], text)[PRINCIPAL_GRADE]

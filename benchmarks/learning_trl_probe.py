"""Train a policy with one of TRL's trainers and write down what it says on the way.

    python benchmarks/learning_trl_probe.py --algorithm rloo --policy DIR --reward DIR --prompts prompts.jsonl ...

``learning_trl.py`` runs this with the interpreter of an environment that has TRL and none of ours. The trainers are
TRL's own, called as their documentation shows; here stand only their settings, the reward and the held-out samples.
Every line of the prompts' file is ``{"split": "train" | "heldout", "prompt_id": str, "token_ids": [int]}``. The result
has a line after step 0, ``eval_every``, ...: ``{"step", "sampled_tokens", "mean_score", "rollout_score", "seconds",
"responses": [{"prompt_id", "token_ids"}]}``; it is there only when training has ended.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)

Ids = list[int]


def main() -> int:
    arguments = parse()
    lines = [json.loads(line) for line in arguments.prompts.read_text().splitlines()]
    set_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.policy, padding_side="left")
    policy = language_model(arguments.policy, arguments.dtype)
    curve = Curve(
        policy=policy,
        scorer=Scorer.load(arguments.reward),
        tokenizer=tokenizer,
        heldout={line["prompt_id"]: line["token_ids"] for line in lines if line["split"] == "heldout"},
        given=arguments,
        updates=1 if arguments.algorithm == "ppo" else arguments.epochs * arguments.minibatches,
    )
    train = [line["token_ids"] for line in lines if line["split"] == "train"]
    curve.listen(train)
    with tempfile.TemporaryDirectory() as scratch:
        build = proximal if arguments.algorithm == "ppo" else grouped
        build(curve, train, settings(arguments, scratch)).train()
    curve.save()
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=("ppo", "rloo", "grpo"), required=True)
    for name in ("policy", "reward", "prompts", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in (
        "steps",
        "rollouts",
        "eval-every",
        "eval-responses",
        "seed",
        "epochs",
        "minibatches",
        "group-size",
        "max-tokens",
    ):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("learning-rate", "kl-coef", "temperature", "clip", "beta2", "max-grad-norm", "gamma", "lam"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and optimizer")
    parser.add_argument("--micro-batch", type=int, default=0, help="rows of a backward pass; 0: as many as there are")
    parser.add_argument("--forced-length", type=int, default=0, help="1: every response has max-tokens tokens")
    return parser.parse_args()


def settings(given: argparse.Namespace, scratch: str) -> dict[str, Any]:
    """What every trainer is told in the same words."""
    return {
        "output_dir": scratch,
        "seed": given.seed,
        "learning_rate": given.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta2": given.beta2,
        "weight_decay": 0.0,
        "max_grad_norm": given.max_grad_norm,
        "temperature": given.temperature,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


# ------------------------------------------------------------------------------------------------------------- trainers
def grouped(curve: Curve, train: Sequence[Ids], common: dict[str, Any]) -> Any:
    """GRPO or RLOO. They tokenise text themselves: the prompts' text must give back the prompts' tokens."""
    import trl

    given, kind = curve.given, curve.given.algorithm.upper()
    texts = [curve.tokenizer.decode(ids) for ids in train]
    if curve.tokenizer(text=texts)["input_ids"] != list(train):
        raise SystemExit("learning_trl_probe: the tokens of a prompt differ from those that TRL would make of its text")
    own = {"loss_type": "grpo", "scale_rewards": "group"} if given.algorithm == "grpo" else {}
    minibatch = given.rollouts // given.minibatches
    micro_batch = given.micro_batch or minibatch
    config = getattr(trl, f"{kind}Config")(
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=minibatch // micro_batch,
        steps_per_generation=given.rollouts // micro_batch,
        generation_kwargs={"min_new_tokens": given.max_tokens} if given.forced_length else None,
        num_iterations=given.epochs,
        num_generations=given.group_size,
        max_completion_length=given.max_tokens,
        max_steps=given.steps * curve.updates,
        beta=given.kl_coef,
        epsilon=given.clip,
        **own,
        **common,
    )

    def reward(completion_ids: list[Ids], token_ids: list[Ids], **_: Any) -> list[float]:
        return curve.scorer(token_ids, completion_ids)

    return getattr(trl, f"{kind}Trainer")(
        model=curve.policy,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts, "token_ids": list(train)}),
        processing_class=curve.tokenizer,
        callbacks=[curve],
    )


def proximal(curve: Curve, train: Sequence[Ids], common: dict[str, Any]) -> Any:
    """PPO, with a critic that starts as the reward model. It takes tokens, and reads the reward from the model."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    given = curve.given
    micro_batch = given.micro_batch or given.rollouts
    config = PPOConfig(
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=given.rollouts // micro_batch,
        local_rollout_forward_batch_size=given.rollouts,
        num_mini_batches=given.minibatches,
        num_ppo_epochs=given.epochs,
        total_episodes=given.steps * given.rollouts,
        num_sample_generations=0,
        response_length=given.max_tokens,
        stop_token=None if given.forced_length else "eos",
        kl_coef=given.kl_coef,
        cliprange=given.clip,
        cliprange_value=given.clip,
        gamma=given.gamma,
        lam=given.lam,
        **common,
    )
    reward, value = (scalar_model(given.reward, given.dtype) for _ in range(2))
    reward.score = NormalisedHead(reward)
    return PPOTrainer(
        args=config,
        processing_class=curve.tokenizer,
        model=curve.policy,
        ref_model=language_model(given.policy, given.dtype),
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": list(train)}),
        callbacks=[curve],
    )


def language_model(directory: Path, dtype: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    model.config.use_cache = model.generation_config.use_cache = True  # or sampling would repeat every prefix
    return model


# --------------------------------------------------------------------------------------------------------------- reward
def scalar_model(directory: Path, dtype: str) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(directory, dtype=getattr(torch, dtype))


class NormalisedHead(nn.Module):
    """A reward model's head whose scores are normalised as the checkpoint's configuration says."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.head, self.mean, self.std = model.score, model.config.score_mean, model.config.score_std

    def forward(self, hidden: Tensor) -> Tensor:
        return (self.head(hidden) - self.mean) / self.std


@dataclass(frozen=True)
class Scorer:
    """The reward model on tokens: a sequence's score is read at its last one."""

    backbone: nn.Module
    head: NormalisedHead

    @classmethod
    def load(cls, directory: Path, dtype: str = "float32") -> Scorer:
        model = scalar_model(directory, dtype).eval()
        return cls(getattr(model, model.base_model_prefix), NormalisedHead(model))

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[float]:
        rows = [torch.tensor(prompt + response) for prompt, response in zip(prompts, responses, strict=True)]
        ids, mask = (
            nn.utils.rnn.pad_sequence(each, batch_first=True) for each in (rows, list(map(torch.ones_like, rows)))
        )
        hidden = self.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        scores: list[float] = self.head(hidden[torch.arange(len(rows)), mask.sum(1) - 1]).squeeze(-1).tolist()
        return scores


# ---------------------------------------------------------------------------------------------------------------- curve
@dataclass
class Curve(TrainerCallback):
    """Listens to a trainer: counts what it samples, and lets the policy answer the held-out prompts now and then."""

    policy: PreTrainedModel
    scorer: Scorer
    tokenizer: PreTrainedTokenizerBase
    heldout: dict[str, Ids]
    given: argparse.Namespace
    updates: int  # that the trainer calls a step, in one of our steps
    sampled_tokens: int = 0
    rollout_score: float | None = None  # of the last step; none before the first
    lines: list[dict[str, Any]] = field(default_factory=list)
    generate: Callable[..., Any] = field(init=False)  # the policy's, unheard
    seconds: float = 0.0  # of training, without what is measured on the way
    begun: float = 0.0

    def listen(self, train: Sequence[Ids]) -> None:
        """Hear every batch that the trainer samples: from given prompts only, and all of it counts."""
        generate, known = self.policy.generate, {tuple(ids) for ids in train}

        def heard(**inputs: Any) -> Any:
            output = generate(**inputs)
            sequences, asked = getattr(output, "sequences", output), inputs["input_ids"]
            prompts = [ids[kept.bool()].tolist() for ids, kept in zip(asked, inputs["attention_mask"], strict=True)]
            if not known.issuperset(map(tuple, prompts)):
                raise SystemExit("learning_trl_probe: TRL samples from a prompt that is none of those given")
            self._count(prompts, [self._until_end(row) for row in sequences[:, asked.shape[1] :].tolist()])
            return output

        self.policy.generate = heard
        self.generate = generate

    def _count(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> None:
        wanted, longest = self.given.rollouts, self.given.max_tokens
        if len(responses) != wanted or max(map(len, responses)) > longest:
            lengths = [len(ids) for ids in responses]
            raise SystemExit(
                f"learning_trl_probe: a step is {wanted} responses of up to {longest} tokens, not {lengths}"
            )
        scores = self.scorer(prompts, responses)
        self.sampled_tokens += sum(map(len, responses))
        self.rollout_score = sum(scores) / len(scores)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._measure(0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """The score that TRL works with is the one that is measured here."""
        said = logs.get("objective/scores", logs.get("reward", self.rollout_score))
        if abs(said - self.rollout_score) > 1e-3:
            raise SystemExit(f"learning_trl_probe: TRL's mean score is {said}, and should be {self.rollout_score}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % (self.updates * self.given.eval_every) == 0:
            self.seconds += time.perf_counter() - self.begun
            self._measure(state.global_step // self.updates)

    def _measure(self, step: int) -> None:
        asked = [*self.heldout.items()] * self.given.eval_responses
        responses = self._answers(step, [ids for _, ids in asked])
        scores = self.scorer([ids for _, ids in asked], responses)
        told = [{"prompt_id": name, "token_ids": ids} for (name, _), ids in zip(asked, responses, strict=True)]
        self.lines.append(
            {
                "step": step,
                "sampled_tokens": self.sampled_tokens,
                "mean_score": sum(scores) / len(scores),
                "rollout_score": self.rollout_score,
                "seconds": self.seconds,
                "responses": told,
            }
        )
        print(json.dumps({k: v for k, v in self.lines[-1].items() if k != "responses"}), flush=True)
        self.begun = time.perf_counter()

    @torch.no_grad()
    def _answers(self, step: int, prompts: Sequence[Ids]) -> list[Ids]:
        """One sampled response to each prompt; training's own random numbers stay as they were."""
        batch = self.tokenizer.pad({"input_ids": list(prompts)}, return_tensors="pt")
        was_training = self.policy.training
        self.policy.eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * self.given.seed + step)
            sampled = self.generate(
                **batch,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=self.given.max_tokens,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        self.policy.train(was_training)
        return [self._until_end(row) for row in sampled[:, batch["input_ids"].shape[1] :].tolist()]

    def _until_end(self, ids: Ids) -> Ids:
        """A response without what stands after its first EOS."""
        eos = self.tokenizer.eos_token_id
        return ids[: ids.index(eos) + 1] if eos in ids else ids

    def save(self) -> None:
        if self.lines[-1]["step"] != self.given.steps - self.given.steps % self.given.eval_every:
            raise SystemExit(f"learning_trl_probe: TRL stopped after step {self.lines[-1]['step']}")
        partial = self.given.out.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        partial.replace(self.given.out)


if __name__ == "__main__":
    sys.exit(main())

"""Let TRL's PPO trainer take a step and write down what happened: see ``parity_trl_probe.py``.

    python benchmarks/parity_trl_probe_ppo.py FOLDER

``PPOTrainer.train`` holds GAE, whitening and both losses in one function, so the step itself is run, with tiny models
and sampled responses, and its variables are read. The answers go into ``ppo.safetensors`` and ``ppo.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FrameType, ModuleType
from typing import Any

import torch
from datasets import Dataset
from parity_trl_probe import VOCABULARY, Probe, run, tokenizer
from torch import Tensor
from transformers import set_seed


def whitening(probe: Probe) -> None:
    from trl.experimental.ppo.ppo_trainer import masked_whiten

    values, mask = probe.given["policy.logprobs"], probe.given["policy.response_mask"]
    for name, shift in (("shifted", True), ("kept", False)):
        function = f"trl.experimental.ppo.ppo_trainer.masked_whiten, shift_mean={shift}"
        probe.answer(f"whiten.{name}", function, masked_whiten(values, mask, shift_mean=shift))


def watch(module: ModuleType, name: str, see: Callable[[tuple[Any, ...], Any, Mapping[str, Any]], None]) -> None:
    """Call ``see(arguments, result, the caller's variables)`` after each call of the function from ``train``."""
    original = getattr(module, name)

    def watched(*arguments: Any, **keywords: Any) -> Any:
        result = original(*arguments, **keywords)
        caller: FrameType = sys._getframe(1)
        if caller.f_code.co_name == "train":
            see((*arguments, *keywords.values()), result, caller.f_locals)
        return result

    setattr(module, name, watched)


def proximal(probe: Probe) -> None:
    """Let ``train`` take one step and read its variables where it whitens and where it takes its means."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    originals = {name: getattr(ppo_trainer, name) for name in ("masked_mean", "masked_whiten", "get_reward")}
    for name, options in probe.settings["ppo"].items():
        set_seed(0)
        config = PPOConfig(**options, **probe.arguments(f"ppo_{name}"))
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer(pad=VOCABULARY),
            model=probe.model("policy"),
            ref_model=probe.model("reference"),
            reward_model=probe.model("score"),
            value_model=probe.model("value"),
            train_dataset=Dataset.from_list([{"input_ids": [3 + i % 9] * (1 + i % 5)} for i in range(16)]),
        )
        step = Step(probe, f"ppo.{name}")
        trainer.log = step.log
        watch(ppo_trainer, "get_reward", step.scored)
        watch(ppo_trainer, "masked_whiten", step.whitened)
        watch(ppo_trainer, "masked_mean", step.averaged)
        trainer.train()
        for function, original in originals.items():
            setattr(ppo_trainer, function, original)
        step.finish()


class Step:
    """The variables of one PPO step, as ``train`` had them."""

    MINIBATCH = ("new_logprobs", "mb_logprobs", "mb_advantage", "vpred", "mb_values", "mb_return", "logits")
    EXPERIENCE = ("query_responses", "responses", "logprobs", "ref_logprobs", "values", "scores", "contain_eos_token")
    DERIVED = ("padding_mask", "padding_mask_p1", "rewards", "advantages", "returns")

    def __init__(self, probe: Probe, name: str) -> None:
        self.probe, self.name, self.means = probe, name, 0
        self.minibatches: dict[str, list[Tensor]] = {}

    def answer(self, key: str, value: Any) -> None:
        self.probe.answer(f"{self.name}.{key}", "trl.experimental.ppo.ppo_trainer.PPOTrainer.train", value)

    def scored(self, _: Any, result: Any, __: Any) -> None:
        self.answer("raw_scores", result[1])  # the critic's call comes first, the reward model's stays

    def whitened(self, arguments: Any, result: Any, variables: Mapping[str, Any]) -> None:
        if "advantages" not in variables:
            self.answer("rewards_before", arguments[0])
            return
        for variable in (*self.EXPERIENCE, *self.DERIVED):
            self.answer(variable, variables[variable])
        self.answer("whitened_advantages", result)

    def averaged(self, _: Any, result: Tensor, variables: Mapping[str, Any]) -> None:
        """In turn: value loss, its clipped share, policy loss, its clipped share."""
        turn, self.means = self.means % 4, self.means + 1
        if turn == 0:
            self._minibatch("value_gradient", torch.autograd.grad(0.5 * result, variables["vpred"], retain_graph=True))
        if turn == 2:
            gradient = torch.autograd.grad(result, variables["new_logprobs"], retain_graph=True)
            self._minibatch("policy_gradient", gradient)
            for variable in self.MINIBATCH:
                self._minibatch(variable, (variables[variable],))
            for variable in ("padding_mask", "padding_mask_p1"):
                self._minibatch(f"mb_{variable}", (variables[variable][variables["micro_batch_inds"]],))

    def _minibatch(self, key: str, value: tuple[Tensor, ...]) -> None:
        self.minibatches.setdefault(key, []).append(value[0].detach().clone())

    def log(self, metrics: Mapping[str, float], *_: Any) -> None:
        for metric, value in metrics.items():
            self.answer(metric, value)

    def finish(self) -> None:
        for key, values in self.minibatches.items():
            self.answer(key, torch.stack(values))


if __name__ == "__main__":
    sys.exit(run("ppo", (whitening, proximal)))

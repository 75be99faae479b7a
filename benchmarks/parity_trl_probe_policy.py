"""Ask TRL's GRPO and RLOO trainers for losses, advantages and weights: see ``parity_trl_probe.py``.

    python benchmarks/parity_trl_probe_policy.py FOLDER

The answers go into ``policy.safetensors`` and ``policy.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from parity_trl_probe import Probe, last_metric, run, tokenizer, words
from torch import Tensor


def policy_trainer(probe: Probe, kind: str, name: str, options: Mapping[str, Any]) -> Any:
    import trl

    size = len(probe.given["policy.lengths"])
    sizes = {"per_device_train_batch_size": size, "per_device_eval_batch_size": size}
    config = getattr(trl, f"{kind}Config")(
        num_generations=probe.settings["group_size"],
        max_completion_length=probe.given["policy.logprobs"].shape[1],
        temperature=probe.settings["temperature"],
        **sizes,
        **options,
        **probe.arguments(name),
    )
    return getattr(trl, f"{kind}Trainer")(
        model=str(probe.folder / "policy"),
        reward_funcs=lambda **_: probe.given["policy.totals"].tolist(),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": words([3, 4])}] * size),
        processing_class=tokenizer(),
    )


def tell(trainer: Any, of_policy: Tensor, of_reference: Tensor | None = None) -> None:
    """Let the trainer see these log-probabilities wherever it runs its policy or its reference."""

    def logprobs(model: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        told = of_reference if model is trainer.ref_model else of_policy
        return told, torch.zeros_like(told), None

    trainer._get_per_token_logps_and_entropies = logprobs


def policy_batch(probe: Probe) -> dict[str, Tensor]:
    """A ragged batch with a gap, as the trainers hand it to their losses."""
    given = probe.given
    size, length = given["policy.logprobs"].shape
    within = torch.arange(length) < given["policy.lengths"][:, None]
    return {
        "prompt_ids": torch.full((size, 2), 3),
        "prompt_mask": torch.ones(size, 2, dtype=torch.long),
        "completion_ids": torch.full((size, length), 3),
        "completion_mask": within.long(),
        "tool_mask": given["policy.response_mask"].long(),
        "advantages": given["policy.advantages"],
        "old_per_token_logps": given["policy.old_logprobs"],
        "ref_per_token_logps": given["policy.ref_logprobs"],
        "num_items_in_batch": given["policy.response_mask"].sum(),
    }


def group_losses(probe: Probe) -> None:
    for name, options in probe.settings["grpo"].items():
        trainer = policy_trainer(probe, "GRPO", f"grpo_{name}", options)
        logprobs = probe.given["policy.logprobs"].requires_grad_()
        tell(trainer, logprobs)
        loss = trainer.compute_loss(trainer.model, policy_batch(probe))
        function = "trl.trainer.grpo_trainer.GRPOTrainer.compute_loss, " + ", ".join(
            f"{k}={v}" for k, v in options.items()
        )
        probe.answer(f"grpo.{name}.loss", function, loss)
        probe.answer(f"grpo.{name}.gradient", function, torch.autograd.grad(loss, logprobs)[0])
        for metric in ("clip_ratio/region_mean", "cispo_clip_ratio", "kl"):
            if trainer._metrics["eval"][metric]:
                probe.answer(f"grpo.{name}.{metric}", function, last_metric(trainer, metric))


def leave_one_out_loss(probe: Probe) -> None:
    trainer = policy_trainer(probe, "RLOO", "rloo", probe.settings["rloo"])
    logprobs = probe.given["policy.logprobs"].requires_grad_()
    tell(trainer, logprobs)
    batch = policy_batch(probe)
    batch["completion_mask"] = batch["completion_mask"] * batch["tool_mask"]  # RLOO knows no gaps
    batch["old_logps"] = (batch["old_per_token_logps"] * batch["completion_mask"]).sum(1)
    loss = trainer.compute_loss(trainer.model, batch)
    function = "trl.trainer.rloo_trainer.RLOOTrainer.compute_loss"
    probe.answer("rloo.loss", function, loss)
    probe.answer("rloo.gradient", function, torch.autograd.grad(loss, logprobs)[0])
    probe.answer("rloo.clip_ratio/region_mean", function, last_metric(trainer, "clip_ratio/region_mean"))


def generated(probe: Probe) -> tuple[list[list[int]], list[list[int]], list[str], list[list[float]]]:
    """Prompts, responses, their text and the engine's log-probabilities: what generation would have returned."""
    lengths = probe.given["policy.lengths"].tolist()
    sampled = probe.given["policy.rollout_logprobs"]
    return (
        [[3, 4]] * len(lengths),
        [[5] * n for n in lengths],
        [words([5] * n) for n in lengths],
        [sampled[i, :n].tolist() for i, n in enumerate(lengths)],
    )


def group_advantages(probe: Probe) -> None:
    inputs = [{"prompt": words([3, 4])} for _ in probe.given["policy.lengths"]]
    prompts, responses, texts, sampled = generated(probe)
    function = "trl.trainer.{}_trainer.{}Trainer._generate_and_score_completions, {}"
    for name in ("group", "none"):
        trainer = policy_trainer(probe, "GRPO", f"scale_{name}", {"scale_rewards": name})
        trainer._generate = lambda _: (prompts, responses, None, texts, None, {}, None, None)
        advantages = trainer._generate_and_score_completions(inputs)["advantages"]
        probe.answer(f"advantages.{name}", function.format("grpo", "GRPO", f"scale_rewards={name}"), advantages)
    trainer = policy_trainer(probe, "RLOO", "rloo_scores", probe.settings["rloo"])
    trainer._generate = lambda _: (prompts, responses, texts)
    tell(trainer, probe.given["policy.old_logprobs"], probe.given["policy.ref_logprobs"])
    advantages = trainer._generate_and_score_completions(inputs)["advantages"]
    probe.answer("advantages.rloo", function.format("rloo", "RLOO", "beta > 0"), advantages)

    for mode, bounds in probe.settings["rollout_weights"].items():
        trainer = policy_trainer(probe, "GRPO", f"weights_{mode}", {})
        trainer.use_vllm = True  # only what follows generation is asked: no engine is needed
        trainer.vllm_importance_sampling_correction, trainer.vllm_importance_sampling_mode = True, mode
        trainer.vllm_importance_sampling_clip_min, trainer.vllm_importance_sampling_clip_max = bounds
        trainer._generate = lambda _: (prompts, responses, None, texts, sampled, {}, None, None)
        tell(trainer, probe.given["policy.old_logprobs"])
        output = trainer._generate_and_score_completions(inputs)
        probe.answer(f"weights.{mode}", function.format("grpo", "GRPO", mode), output["importance_sampling_ratio"])


def logprobs_of_models(probe: Probe) -> None:
    """Log-probabilities and entropies from token ids: the prompt padded left, the response right."""
    trainer = policy_trainer(probe, "GRPO", "logprobs", {})
    ids, mask, width = (probe.given[f"padded.{name}"] for name in ("ids", "attention_mask", "response_width"))
    with torch.no_grad():
        logprobs, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, int(width), compute_entropy=True
        )
    function = "trl.trainer.grpo_trainer.GRPOTrainer._get_per_token_logps_and_entropies"
    probe.answer("models.logprobs", function, logprobs)
    probe.answer("models.entropy", function, entropies)


QUESTIONS = (group_losses, leave_one_out_loss, group_advantages, logprobs_of_models)

if __name__ == "__main__":
    sys.exit(run("policy", QUESTIONS))

"""Call TRL's own trainers and functions on given tensors and write down what they say.

    python benchmarks/parity_trl_probe.py FOLDER

``parity_trl.py`` runs this with the interpreter of an environment that has TRL and none of ours. FOLDER holds inputs
(``inputs.safetensors``, ``settings.json``, tiny models); the answers go into ``preferences.safetensors``
and ``preferences.json`` there. ``parity_trl_probe_policy.py`` and ``parity_trl_probe_ppo.py`` ask about the rest.

No formula stands here. Where a trainer asks a model for log-probabilities it gets the given ones, and where it would
generate it gets the given responses; all that follows is TRL's code.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

VOCABULARY = 32
PAD, EOS = 0, 1
COMMON = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}


@dataclass(frozen=True)
class Probe:
    """What is given, and what TRL says to it."""

    folder: Path
    given: dict[str, Tensor]
    settings: dict[str, Any]
    answers: dict[str, Tensor] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)

    def answer(self, key: str, function: str, value: Tensor | float) -> None:
        value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        self.answers[key] = value.detach().clone().contiguous()
        self.functions[key] = function

    def model(self, name: str) -> Any:
        kind = AutoModelForSequenceClassification if name in ("score", "value") else AutoModelForCausalLM
        return kind.from_pretrained(self.folder / name, dtype=torch.float32)

    def arguments(self, name: str) -> dict[str, Any]:
        return {"output_dir": str(self.folder / "trainers" / name), **COMMON}


def run(part: str, questions: Sequence[Callable[[Probe], None]]) -> int:
    """Ask all questions about the folder named on the command line and write the answers there."""
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    probe = Probe(folder=folder, given=load_file(folder / "inputs.safetensors"), settings=settings)
    for ask in questions:
        ask(probe)
    save_file(probe.answers, folder / f"{part}.safetensors")
    names = ("trl", "torch", "transformers", "accelerate", "datasets")
    versions = {name: importlib.metadata.version(name) for name in names}
    (folder / f"{part}.json").write_text(json.dumps({"functions": probe.functions, "versions": versions}, indent=1))
    return 0


def tokenizer(pad: int = PAD) -> PreTrainedTokenizerFast:
    """Words w2, w3, ... for the ids 2, 3, ...; ``pad`` may lie beyond the model's vocabulary."""
    names = {PAD: "<unused>", EOS: "</s>"} | {pad: "<pad>"}
    words = {names.get(i, f"w{i}"): i for i in range(max(VOCABULARY, pad + 1))}
    backend = Tokenizer(models.WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", padding_side="left")


class Told(nn.Module):
    """A policy that says the log-probabilities it was told, by the width of what it is asked about."""

    def __init__(self, *logprobs: Tensor) -> None:
        super().__init__()
        self.logprobs = {tensor.shape[1] + 1: tensor for tensor in logprobs}

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> Any:
        from trl.trainer.utils import FusedCausalLMOutput

        logprobs = self.logprobs[input_ids.shape[1]]
        zeros, scored = torch.zeros_like(logprobs), labels[:, 1:] != -100
        told = {"entropy": zeros, "mean_logits": zeros, "log_sum_sq_probs": zeros, "is_top1": zeros.bool()}
        return FusedCausalLMOutput(log_probs=logprobs.masked_fill(~scored, 0.0), label_mask=scored, **told)


class ToldScores(nn.Module):
    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, **_: Any) -> Any:
        return SimpleNamespace(logits=self.scores[:, None])


def words(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def last_metric(trainer: Any, name: str) -> float:
    return float(trainer._metrics["eval"][name][-1])


# --------------------------------------------------------------------------------------------------------------- tokens
def tokens(probe: Probe) -> None:
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits = probe.given["tokens.logits"].requires_grad_()
    temperature = probe.settings["temperature"]
    logprobs = selective_log_softmax(logits[None], probe.given["tokens.targets"][None], temperature=temperature)[0]
    name = "trl.trainer.utils.selective_log_softmax"
    probe.answer("tokens.logprobs", name, logprobs)
    probe.answer("tokens.logprobs.gradient", name, torch.autograd.grad(logprobs.square().sum(), logits)[0])
    entropies = entropy_from_logits(logits.detach() / temperature)
    probe.answer("tokens.entropy", "trl.trainer.utils.entropy_from_logits", entropies)


def supervised(probe: Probe) -> None:
    from trl import SFTConfig, SFTTrainer

    ids, mask = probe.given["sequences.ids"], probe.given["sequences.response_mask"]
    lengths = probe.given["sequences.lengths"].tolist()
    rows = [
        {"input_ids": ids[i, :n].tolist(), "completion_mask": mask[i, :n].int().tolist()} for i, n in enumerate(lengths)
    ]
    config = SFTConfig(completion_only_loss=True, max_length=None, **probe.arguments("sft"))
    trainer = SFTTrainer(
        model=probe.model("policy"), args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer()
    )
    batches = [trainer.data_collator([trainer.train_dataset[i] for i in part]) for part in ([0, 1], [2, 3, 4, 5])]
    total = torch.tensor(sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches))
    losses = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=total) for batch in batches]
    sum(losses).backward()
    name = "trl.trainer.sft_trainer.SFTTrainer.compute_loss"
    probe.answer("sft.loss", name, sum(losses))
    probe.answer("sft.gradient", name, trainer.model.get_input_embeddings().weight.grad)


def ranking(probe: Probe) -> None:
    from trl import RewardConfig, RewardTrainer

    rows = [{"chosen_ids": [3, 4, EOS], "rejected_ids": [5, EOS]}] * 2
    centering = probe.settings["centering"]
    for name, coefficient in (("plain", None), ("margin", None), ("centered", centering)):
        config = RewardConfig(center_rewards_coefficient=coefficient, **probe.arguments(f"reward_{name}"))
        trainer = RewardTrainer(
            model=probe.model("score"),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
        )
        scores = torch.cat([probe.given["ranking.chosen"], probe.given["ranking.rejected"]]).requires_grad_()
        inputs = {"input_ids": None, "attention_mask": torch.ones(1)}
        if name != "plain":
            inputs["margin"] = probe.given["ranking.margins"]
        loss = trainer.compute_loss(ToldScores(scores), inputs)
        probe.answer(f"ranking.{name}.loss", "trl.trainer.reward_trainer.RewardTrainer.compute_loss", loss)
        gradient = torch.autograd.grad(loss, scores)[0]
        probe.answer(f"ranking.{name}.gradient", "trl.trainer.reward_trainer.RewardTrainer.compute_loss", gradient)
        probe.answer(
            f"ranking.{name}.accuracy",
            "trl.trainer.reward_trainer.RewardTrainer.compute_loss",
            last_metric(trainer, "accuracy"),
        )


# ---------------------------------------------------------------------------------------------------------- preferences
def direct_preferences(probe: Probe) -> None:
    for name, options in probe.settings["dpo"].items():
        trainer = dpo_trainer(probe, name, options)
        trainer.precompute_ref_logps = True  # read from the batch, where the given ones stand
        logprobs = probe.given["pairs.logprobs"].requires_grad_()
        batch = {
            "input_ids": torch.zeros(logprobs.shape[0], logprobs.shape[1] + 1, dtype=torch.long),
            "attention_mask": torch.ones(1),
            "completion_mask": probe.given["pairs.response_mask"].long(),
            "ref_chosen_logps": probe.given["pairs.ref_chosen"],
            "ref_rejected_logps": probe.given["pairs.ref_rejected"],
        }
        loss = trainer.compute_loss(Told(logprobs), batch)
        function = f"trl.trainer.dpo_trainer.DPOTrainer.compute_loss, loss_type={' + '.join(options['loss_type'])}"
        probe.answer(f"dpo.{name}.loss", function, loss)
        probe.answer(f"dpo.{name}.gradient", function, torch.autograd.grad(loss, logprobs)[0])
        for metric in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
            probe.answer(f"dpo.{name}.{metric}", function, last_metric(trainer, metric))


def dpo_trainer(probe: Probe, name: str, options: Mapping[str, Any]) -> Any:
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": words([3, 4]), "chosen": words([5, 6]), "rejected": words([7])}] * 2
    return DPOTrainer(
        model=probe.model("policy"),
        ref_model=probe.model("reference"),
        args=DPOConfig(**options, **probe.arguments(f"dpo_{name}")),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )


def direct_preferences_of_models(probe: Probe) -> None:
    """The same from token ids: both models run."""
    trainer = dpo_trainer(probe, "models", probe.settings["dpo"]["sigmoid"])
    ids, mask = probe.given["sequences.ids"], probe.given["sequences.response_mask"]
    attention = torch.arange(ids.shape[1]) < probe.given["sequences.lengths"][:, None]
    batch = {"input_ids": ids, "attention_mask": attention.long(), "completion_mask": mask.long()}
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    function = "trl.trainer.dpo_trainer.DPOTrainer.compute_loss, both models run"
    probe.answer("dpo.models.loss", function, loss)
    probe.answer("dpo.models.gradient", function, trainer.model.get_input_embeddings().weight.grad)


def unpaired_preferences(probe: Probe) -> None:
    from trl import KTOConfig, KTOTrainer

    rows = [{"prompt": words([3, i]), "completion": words([5, 6, i]), "label": i % 2 == 0} for i in range(4, 8)]
    trainer = KTOTrainer(
        model=probe.model("policy"),
        ref_model=probe.model("reference"),
        args=KTOConfig(**probe.settings["kto"], **probe.arguments("kto")),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    trainer.precompute_ref_logps = True
    logprobs, others = probe.given["kto.logprobs"].requires_grad_(), probe.given["kto.kl_logprobs"]
    batch = {"label": probe.given["kto.desirable"], "ref_logps": probe.given["kto.ref"]}
    batch |= {"ref_KL_logps": probe.given["kto.kl_ref"]}
    for prefix, tensor in (("", logprobs), ("KL_", others)):
        shape = tensor.shape[0], tensor.shape[1] + 1
        ones = torch.ones(shape, dtype=torch.long)
        batch |= {f"{prefix}input_ids": ones, f"{prefix}attention_mask": ones, f"{prefix}completion_mask": ones}
    loss = trainer.compute_loss(Told(logprobs, others), batch)
    function = "trl.trainer.kto_trainer.KTOTrainer.compute_loss"
    probe.answer("kto.loss", function, loss)
    probe.answer("kto.gradient", function, torch.autograd.grad(loss, logprobs)[0])
    for metric in ("kl", "rewards/chosen", "rewards/rejected"):
        probe.answer(f"kto.{metric}", function, last_metric(trainer, metric))


def experimental_preferences(probe: Probe) -> None:
    """Methods that need of their trainer only a few numbers: called with those, no trainer is built."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    chosen, rejected = probe.given["pairs.mean_chosen"], probe.given["pairs.mean_rejected"]
    accelerator = SimpleNamespace(device="cpu")
    simpo = SimpleNamespace(alpha=0.0, loss_type="simpo", label_smoothing=0.0, accelerator=accelerator)
    simpo.beta, simpo.simpo_gamma = probe.settings["simpo"]["beta"], probe.settings["simpo"]["gamma"]
    function = "trl.experimental.cpo.cpo_trainer.CPOTrainer.cpo_loss, loss_type=simpo"
    probe.answer("simpo.loss", function, CPOTrainer.cpo_loss(simpo, chosen, rejected)[0])

    smooth = SimpleNamespace(alpha=0.0, loss_type="sigmoid", accelerator=accelerator, **probe.settings["conservative"])
    ratios = [probe.given[f"pairs.{kind}"] - probe.given[f"pairs.ref_{kind}"] for kind in ("chosen", "rejected")]
    function = "trl.experimental.cpo.cpo_trainer.CPOTrainer.cpo_loss, loss_type=sigmoid, on log-ratios"
    probe.answer("conservative.loss", function, CPOTrainer.cpo_loss(smooth, *ratios)[0])

    orpo = SimpleNamespace(beta=1.0, accelerator=accelerator)
    losses, *_, log_odds_ratio = ORPOTrainer.odds_ratio_loss(orpo, chosen, rejected)
    function = "trl.experimental.orpo.orpo_trainer.ORPOTrainer.odds_ratio_loss"
    probe.answer("odds_ratio.loss", function, losses)
    probe.answer("odds_ratio.margin", function, log_odds_ratio)


QUESTIONS = (
    tokens,
    supervised,
    ranking,
    direct_preferences,
    direct_preferences_of_models,
    unpaired_preferences,
    experimental_preferences,
)

if __name__ == "__main__":
    sys.exit(run("preferences", QUESTIONS))

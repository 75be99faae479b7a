"""What is exported is what transformers and peft would call the model's weights."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_ray.config.training import LoraConfig, TrainingConfig
from rlhf_ray.engines.export import WeightExport
from rlhf_ray.engines.models import with_adapters
from tests import textbook, tiny, trainers
from tests.ranks import ranks

LORA = LoraConfig(rank=4, alpha=8.0)


def exported(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    export = WeightExport(model, dtype, lambda _parameters: nullcontext())
    return {name: tensor.clone() for name, tensor in export.tensors([meta.name for meta in export.metas])}


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_names_and_tensors_are_those_of_the_state_dict(family: str, tied: bool) -> None:
    model = tiny.causal_model(family, tied=tied)
    expected = model.state_dict()
    if tied:  # one weight under two names: a checkpoint holds the first
        assert torch.equal(expected["lm_head.weight"], expected["model.embed_tokens.weight"])
        del expected["lm_head.weight"]
    found = exported(model)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_merged_adapters_are_those_of_peft(family: str, tied: bool) -> None:
    model = tiny.stirred(with_adapters(tiny.causal_model(family, tied=tied), LORA))
    found = exported(model)
    expected = textbook.weights(model.merge_and_unload())
    assert list(found) == list(expected)
    assert max(float(np.abs(found[name].numpy() - expected[name]).max()) for name in expected) < 1e-6
    name = "model.layers.0.mlp.up_proj.weight"
    untouched = textbook.weights(tiny.causal_model(family, tied=tied))
    assert float(np.abs(expected[name] - untouched[name]).max()) > 0.1


def test_a_critic_s_head_is_exported_beside_its_merged_layers() -> None:
    model = tiny.stirred(with_adapters(tiny.scalar_model(), LORA))
    found = exported(model)
    expected = textbook.weights(model.merge_and_unload())
    assert list(found) == list(expected)
    assert "score.weight" in found
    assert max(float(np.abs(found[name].numpy() - expected[name]).max()) for name in expected) < 1e-6


def test_a_merged_weight_is_rounded_once() -> None:
    model = tiny.stirred(with_adapters(tiny.causal_model(), LORA)).to(torch.bfloat16)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    product = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
    expected = (layer.base_layer.weight.float() + 2.0 * product).to(torch.bfloat16)
    assert torch.equal(exported(model, torch.bfloat16)["model.layers.0.self_attn.q_proj.weight"], expected)


def test_metas_describe_what_will_come() -> None:
    export = WeightExport(tiny.causal_model(), torch.bfloat16, lambda _parameters: nullcontext())
    meta = export.metas[0]
    assert (meta.name, meta.dtype, meta.shape) == ("model.embed_tokens.weight", "bfloat16", (tiny.VOCABULARY, 32))
    for meta, (name, tensor) in zip(export.metas, export.tensors([m.name for m in export.metas]), strict=True):
        assert (meta.name, meta.torch_dtype, meta.shape) == (name, tensor.dtype, tuple(tensor.shape))


@pytest.mark.integration
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
@pytest.mark.parametrize("lora", [False, True])
def test_gathered_shards_are_the_whole_weights_on_every_rank(tmp_path: Path, zero_stage: int, lora: bool) -> None:
    path = tiny.saved(tiny.causal_model(tied=False), tmp_path)
    training = TrainingConfig(zero_stage=zero_stage, lora=LORA if lora else LoraConfig())
    answers = ranks(2).run(trainers.loaded_weights, path, training)
    model = AutoModelForCausalLM.from_pretrained(path)
    expected = textbook.weights(tiny.stirred(with_adapters(model, LORA)).merge_and_unload() if lora else model)
    for metas, weights in answers:
        assert {name: tuple(array.shape) for name, array in weights.items()} == metas
        assert trainers.largest_difference(weights, expected) < (1e-6 if lora else 1e-30)


@pytest.mark.integration
@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 3)])
def test_a_model_with_adapters_is_saved_merged(tmp_path: Path, world_size: int, zero_stage: int) -> None:
    path = tiny.saved(tiny.causal_model(), tmp_path / "start")
    training = TrainingConfig(zero_stage=zero_stage, lora=LORA)
    ranks(world_size).run(trainers.load_and_save, path, training, str(tmp_path / "saved"))
    expected = textbook.weights(tiny.stirred(with_adapters(tiny.causal_model(), LORA)).merge_and_unload())
    saved = textbook.weights(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"))
    assert trainers.largest_difference(saved, expected) < 1e-6
    assert sorted(f.name for f in (tmp_path / "saved").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]

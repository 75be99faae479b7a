"""The networks answer under the alignment rule, whatever stands beside a row in its batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import LoraConfig
from rlhf_ray.data.collate import TokenBatch, TokenSequence, collate
from rlhf_ray.engines.models import (
    PolicyModule,
    RewardModule,
    ValueModule,
    adapters_off,
    backbone,
    load_causal,
    load_scalar,
    local_checkpoint,
    with_adapters,
)
from rlhf_ray.errors import ConfigError
from tests import tiny
from tests.tiny import stirred

LORA = LoraConfig(rank=4, alpha=8.0)
RAGGED = tiny.sequences(5, seed=3)
FLOAT = torch.float32


def expected(rows: list[torch.Tensor], batch: TokenBatch) -> torch.Tensor:
    """Whole-sequence results [S_i] as a batch, 0 where the mask is False."""
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return torch.where(batch.mask, padded, torch.zeros_like(padded))


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [False, True])
def test_token_logprobs_are_those_of_each_sequence_alone(family: str, tied: bool, lora: bool) -> None:
    model = tiny.causal_model(family, tied=tied)
    if lora:
        model = stirred(with_adapters(model, LORA))
    batch = collate(RAGGED)
    with torch.no_grad():
        rows = [tiny.naive_logprobs(model, s.token_ids, 0.7) for s in RAGGED]
        logprobs = PolicyModule(model)(batch, 0.7)[0]
    assert torch.allclose(logprobs, expected(rows, batch), atol=5e-6)
    assert float(logprobs.min()) < -3.0


def test_an_off_by_one_in_the_positions_would_be_seen() -> None:
    model, batch = tiny.causal_model(), collate(RAGGED)
    with torch.no_grad():
        rows = [tiny.naive_logprobs(model, s.token_ids).roll(1) for s in RAGGED]
        logprobs = PolicyModule(model)(batch)[0]
    assert float((logprobs - expected(rows, batch)).abs().max()) > 1.0


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_token_s_value_is_read_at_the_state_before_it(family: str) -> None:
    model, batch = tiny.scalar_model(family), collate(RAGGED)
    with torch.no_grad():
        rows = [tiny.naive_values(model, s.token_ids) for s in RAGGED]
        values = ValueModule(model)(batch)
    assert torch.allclose(values, expected(rows, batch), atol=2e-6)
    assert float(values.abs().max()) > 0.5


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_score_is_that_of_transformers_own_classifier(family: str) -> None:
    model = tiny.scalar_model(family)
    with torch.no_grad():
        alone = [model(input_ids=torch.from_numpy(s.token_ids[None].astype(np.int64))).logits[0, 0] for s in RAGGED]
        scores = RewardModule(model)(collate(RAGGED))
    assert torch.allclose(scores, torch.stack(alone)[:, None], atol=2e-6)


def test_entropies_are_computed_on_request_and_carry_a_gradient() -> None:
    model, batch = tiny.causal_model(), collate(RAGGED)
    policy = PolicyModule(model)
    _, none, _ = policy(batch, 0.7)
    assert float(none.abs().sum()) == 0.0
    _, entropies, _ = policy(batch, 0.7, with_entropy=True)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits / 0.7
        per_token = torch.distributions.Categorical(logits=logits).entropy()[:, :-1]
    shifted = torch.nn.functional.pad(per_token, (1, 0))
    assert torch.allclose(entropies, torch.where(batch.mask, shifted, torch.zeros_like(shifted)), atol=1e-5)
    entropies.sum().backward()
    assert float(model.get_input_embeddings().weight.grad.abs().sum()) > 0.1


def test_a_batch_without_rows_gives_zeros_with_a_graph() -> None:
    policy = PolicyModule(tiny.causal_model())
    logprobs = policy(collate([]))[0]
    logprobs.sum().backward()
    gradients = [p.grad for p in policy.parameters()]
    assert logprobs.tolist() == [[0.0, 0.0]]
    assert all(g is not None and float(g.abs().sum()) == 0.0 for g in gradients)


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_changes_no_gradient(lora: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny.causal_model()
        if lora:
            model = stirred(with_adapters(model, LORA))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        PolicyModule(model)(collate(RAGGED))[0].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


# ------------------------------------------------------------------------------------------------------ load and save
def test_a_language_model_becomes_a_critic_whose_values_are_all_zero(tmp_path: Path) -> None:
    path = tiny.saved(tiny.causal_model(), tmp_path)
    critic = load_scalar(path, ModelConfig(), FLOAT)
    with torch.no_grad():
        values = ValueModule(critic)(collate(RAGGED))
    assert float(values.abs().max()) == 0.0
    body = backbone(tiny.causal_model()).state_dict()
    assert all(torch.equal(weight, body[name]) for name, weight in backbone(critic).state_dict().items())


def test_a_scalar_model_keeps_its_head(tmp_path: Path) -> None:
    model = tiny.scalar_model()
    critic = load_scalar(tiny.saved(model, tmp_path), ModelConfig(), FLOAT)
    assert torch.equal(critic.score.weight, model.score.weight)


def test_dropout_is_off_however_the_checkpoint_was_configured(tmp_path: Path) -> None:
    path = tiny.saved(tiny.causal_model("llama", attention_dropout=0.5), tmp_path)
    policy = PolicyModule(load_causal(path, ModelConfig(), FLOAT).train())
    batch = collate(RAGGED)
    assert policy.model.config.attention_dropout == 0.0
    assert torch.equal(policy(batch)[0], policy(batch)[0])


def test_bfloat16_weights_answer_with_float32_logprobs(tmp_path: Path) -> None:
    path = tiny.saved(tiny.causal_model(), tmp_path)
    batch = collate(RAGGED)
    with torch.no_grad():
        half = PolicyModule(load_causal(path, ModelConfig(), torch.bfloat16))(batch)[0]
        full = PolicyModule(load_causal(path, ModelConfig(), FLOAT))(batch)[0]
    assert half.dtype == torch.float32
    assert 0.0 < float((half - full).abs().mean()) < 0.05


def test_a_path_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path .*nowhere.* is neither a directory nor a model"):
        local_checkpoint(str(tmp_path / "nowhere"))
    assert local_checkpoint(str(tmp_path)) == str(tmp_path.resolve())


# ----------------------------------------------------------------------------------------------------------------- LoRA
def test_fresh_adapters_change_nothing_and_are_all_that_trains() -> None:
    model, batch = tiny.causal_model(), collate(RAGGED)
    with torch.no_grad():
        before = PolicyModule(model)(batch)[0]
        adapted = PolicyModule(with_adapters(model, LORA))
        after = adapted(batch)[0]
    assert torch.equal(before, after)
    assert {name.split(".")[-3] for name, p in adapted.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_the_policy_without_its_adapters_is_the_model_before_them() -> None:
    model, batch = tiny.causal_model(), collate(RAGGED)
    with torch.no_grad():
        before = PolicyModule(model)(batch)[0]
        adapted = PolicyModule(stirred(with_adapters(model, LORA)))
        with adapters_off(adapted):
            off = adapted(batch)[0]
        on = adapted(batch)[0]
    assert torch.equal(before, off)
    assert float((on - off).abs().max()) > 0.1


def test_adapters_are_the_same_whatever_was_drawn_before() -> None:
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = with_adapters(tiny.causal_model(), LORA)
        drawn.append(torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name]))
        assert float(torch.rand(1)) == float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(drawn[0], drawn[1])


def test_a_critic_with_adapters_trains_its_whole_head() -> None:
    model = with_adapters(tiny.scalar_model(), LORA)
    assert model.score.weight.requires_grad
    assert not backbone(model).embed_tokens.weight.requires_grad
    ValueModule(model)(collate(RAGGED)).sum().backward()
    assert float(model.score.weight.grad.abs().sum()) > 0.0


@pytest.mark.parametrize("name", ["query", "norm", "lm_head", "model"])
def test_a_target_module_that_is_no_linear_layer_is_named(name: str) -> None:
    lora = LoraConfig(rank=4, target_modules=("q_proj", name))
    with pytest.raises(ConfigError, match=rf"training\.lora\.target_modules \(\['{name}'\]\) names modules .*q_proj"):
        with_adapters(tiny.causal_model(), lora)


def test_only_positions_that_count_pass_through_the_vocabulary_head() -> None:
    model = tiny.causal_model()
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(tuple(inputs[0].shape)))
    rows = [TokenSequence(np.arange(2, 12, dtype=np.int32), np.arange(10) >= 7), RAGGED[0]]
    PolicyModule(model)(collate(rows))
    assert seen == [(3 + int(RAGGED[0].mask.sum()), 32)]


def test_no_key_value_cache_is_built() -> None:
    model = tiny.causal_model(use_cache=True)
    seen: list[object] = []
    model.model.register_forward_hook(lambda _module, _inputs, output: seen.append(output.past_key_values))
    PolicyModule(model)(collate(RAGGED))
    assert seen == [None]


def test_the_exact_kl_is_that_of_the_whole_distributions_token_by_token() -> None:
    policy, reference = PolicyModule(tiny.causal_model()), PolicyModule(tiny.causal_model(seed=3))
    batch = collate(RAGGED)
    with torch.no_grad():
        against = reference.distributions(batch, 0.7)
        _, _, exact = policy(batch, 0.7, against=against)
        logits = [
            m.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits / 0.7
            for m in (policy, reference)
        ]
    p, q = (torch.distributions.Categorical(logits=x[:, :-1]) for x in logits)
    expected = torch.distributions.kl_divergence(p, q)
    assert torch.allclose(exact[:, 1:][batch.mask[:, 1:]], expected[batch.mask[:, 1:]], atol=1e-5)
    assert exact.max() > 0.1
    assert not exact[~batch.mask].any()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_packed_sequences_answer_as_padded_ones_do(family: str) -> None:
    module = PolicyModule(tiny.causal_model(family))
    batch = collate(RAGGED)
    padded = module(batch, 0.7)[0]
    padded.sum().backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    module.packed = True
    packed = module(batch, 0.7)[0]
    packed.sum().backward()
    assert torch.allclose(packed, padded, atol=5e-6)
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-4)


def test_a_packed_sequence_never_sees_its_neighbours() -> None:
    module = PolicyModule(tiny.causal_model())
    module.packed = True
    alone = module(collate(RAGGED[1:2]))[0]
    among = module(collate(RAGGED))[0][1]
    assert torch.allclose(among[: alone.shape[1]], alone[0], atol=5e-6)


def test_a_packed_batch_without_rows_gives_zeros_with_a_graph() -> None:
    module = PolicyModule(tiny.causal_model())
    module.packed = True
    logprobs = module(collate([]))[0]
    logprobs.sum().backward()
    assert not logprobs.any()

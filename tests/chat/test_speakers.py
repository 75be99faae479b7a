"""Who answers: a checkpoint against a whole forward, an endpoint that streams, and how they are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from launch.cli import app
from rlhf_ray.chat.local import LocalSpeaker, choose
from rlhf_ray.chat.speakers import ChatSampling, EndpointSpeaker
from rlhf_ray.config.model import ModelConfig, ScratchConfig
from rlhf_ray.data.chat import set_chat_template, tokenize_prompt
from rlhf_ray.data.tokenizer import train_bpe_tokenizer
from rlhf_ray.engines.models import build_scratch, load_tokenizer
from rlhf_ray.errors import ConfigError, RlhfError
from rlhf_ray.pipeline.find_model import find
from rlhf_ray.records import Message
from tests.rewards.service import Reply, running

TINY = ScratchConfig(
    vocab_size=300, hidden_size=16, intermediate_size=16, num_layers=2, num_heads=2, max_position_embeddings=48,
    initializer_range=0.4,
)  # fmt: skip
HELLO = (Message("user", "hello"),)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "policy"
    tokenizer = train_bpe_tokenizer(["a b"], vocab_size=300)
    set_chat_template(tokenizer, "compact")
    build_scratch(TINY, tokenizer, seed=3).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def speaker(checkpoint: Path) -> LocalSpeaker:
    return LocalSpeaker("m", str(checkpoint), load_tokenizer(str(checkpoint), ModelConfig()), ModelConfig(), "cpu")


def test_the_likeliest_tokens_are_those_of_a_whole_forward_without_a_cache(checkpoint: Path) -> None:
    said = list(speaker(checkpoint).stream(HELLO, ChatSampling(temperature=0, max_tokens=12)))
    tokenizer = load_tokenizer(str(checkpoint), ModelConfig())
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    ids = tokenize_prompt(tokenizer, HELLO).tolist()
    start = len(ids)
    for _ in range(12):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    assert "".join(said) == tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert len(ids) > start


def test_a_seed_decides_an_answer(checkpoint: Path) -> None:
    talking = speaker(checkpoint)
    answers = ["".join(talking.stream(HELLO, ChatSampling(1.0, max_tokens=20, seed=seed))) for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1


def test_pieces_never_hold_half_a_letter(checkpoint: Path) -> None:
    pieces = list(speaker(checkpoint).stream(HELLO, ChatSampling(2.0, max_tokens=30, seed=5)))
    assert not any(piece.endswith("\N{REPLACEMENT CHARACTER}") for piece in pieces[:-1])


def test_a_conversation_that_is_too_long_says_what_to_do(checkpoint: Path) -> None:
    with pytest.raises(RlhfError, match="/undo or /reset"):
        list(speaker(checkpoint).stream((Message("user", "x" * 60),), ChatSampling()))


def test_top_k_and_top_p_leave_what_they_should() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()

    def drawn(**settings: float) -> set[int]:
        draw = torch.Generator().manual_seed(0)
        return {choose(logits, ChatSampling(1.0, **settings), draw) for _ in range(400)}  # type: ignore[arg-type]

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.8) == {0, 1}
    assert drawn(top_p=0.81) == {0, 1, 2}
    assert choose(logits, ChatSampling(0.0), torch.Generator()) == 0


def test_an_endpoint_is_streamed() -> None:
    events = [
        {"choices": [{"delta": {"role": "assistant"}}]},
        *({"choices": [{"delta": {"content": c}}]} for c in "ab"),
    ]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ": comment\n\ndata: [DONE]\n\n"
    with running() as service:
        service.replies = [Reply(body=body.encode()), Reply(500, {"error": "no"}), Reply(body=b"data: {}\n\n")]
        talking = EndpointSpeaker(service.url.removesuffix("/score"), "big", key="k")
        assert list(talking.stream(HELLO, ChatSampling(0.5, top_k=3))) == ["a", "b"]
        with pytest.raises(RlhfError, match="answers 500"):
            list(talking.stream(HELLO, ChatSampling()))
        with pytest.raises(RlhfError, match="no chat completion"):
            list(talking.stream(HELLO, ChatSampling()))
    assert {"model": "big", "stream": True, "temperature": 0.5, "top_k": 3}.items() <= service.asked[0].items()
    assert service.authorizations[0] == "Bearer k"


# -------------------------------------------------------------------------------------------------------------- finding
@pytest.fixture
def run(tmp_path: Path, checkpoint: Path) -> Path:
    """A run with a base model and an SFT model."""
    for stage, results in (
        ("model", {"weights": str(checkpoint)}),
        ("sft", {"policy": str(tmp_path / "run/sft/policy")}),
    ):
        directory = tmp_path / "run" / stage
        directory.mkdir(parents=True)
        made = {"parents": {}, "settings": {}, "data_hash": "", "code_version": "", "finished": "", "seconds": 0.0}
        artefact = {"stage": stage, "key": "k", **made, "results": results}
        (directory / "artefact.json").write_text(json.dumps(artefact))
    shutil.copytree(checkpoint, tmp_path / "run/sft/policy")
    (tmp_path / "run/config.yaml").write_text("model: {chat_template: compact}\n")
    return tmp_path / "run"


def test_a_run_means_its_newest_model_and_a_stage_that_one(run: Path, checkpoint: Path) -> None:
    assert find(str(run)).path == str(run / "sft/policy")
    assert find(str(run / "model")).path == str(checkpoint)
    assert find("model", run).name == "run/model"
    below = find(str(run / "sft/policy"))
    assert (below.run, below.settings.chat_template) == (run, "compact")
    served = find("http://host/v1#big")
    assert (served.url, served.model, served.name) == ("http://host/v1", "big", "big")


def test_what_is_no_model_is_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has left no model in .*; choose one of model, sft"):
        find("ppo", run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds neither a run nor a checkpoint"):
        find(str(tmp_path / "empty"))


def test_two_models_of_a_run_are_talked_to_and_saved(run: Path, tmp_path: Path) -> None:
    said = f"hello\n/save {tmp_path}/chat.jsonl\n/quit\n"
    done = CliRunner().invoke(app, ["chat", str(run), "model", "--max-tokens", "4", "--seed", "1"], input=said)
    assert done.exit_code == 0, done.output
    assert "run/sft | run/model" in done.output
    rows = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["run/sft", "run/model"]
    assert rows[0]["messages"] == rows[1]["messages"]  # the same weights


def test_a_chat_with_nobody_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["chat", str(tmp_path)])
    assert (done.exit_code, "holds neither a run nor a checkpoint" in done.output) == (2, True)

"""``rlhf-ray judge run`` as a whole: with an endpoint, and with a model of the fleet that is killed at its work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from rlhf_ray.config.model import ScratchConfig
from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.data.tokenizer import train_bpe_tokenizer
from rlhf_ray.engines.models import build_scratch
from rlhf_ray.feedback.store import open_store
from tests.clusters import SHARED_MEMORY, wait_until_nothing_is_left
from tests.judging.made_up import item
from tests.rewards.service import Reply, running
from tests.small import SMALL

CHECKOUT = Path(__file__).resolve().parents[2]
COUNT = 40
TINY = ScratchConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=64,
    num_layers=1,
    num_heads=2,
    max_position_embeddings=1024,
    initializer_range=0.3,
)


def test_an_endpoint_judges_a_store_for_what_it_may_cost_and_is_asked_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "s.db"
    with open_store(str(store), create=True) as opened:
        opened.add_items(item(n, f"yes {n}", f"no {n}") for n in range(3))
    (tmp_path / "run.yaml").write_text(f"output_dir: {tmp_path}/run\n")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with running() as service:
        likely = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.4}]
        choice = {"message": {"content": "A"}, "logprobs": {"content": [{"token": "A", "top_logprobs": likely}]}}
        service.replies = [Reply(body={"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 1}})]
        base = service.url.removesuffix("/score")
        settings = [
            f"judge.store={store}",
            "judge.kind=endpoint",
            f"judge.url={base}/v1",
            "judge.model=m",
            "judge.key_env=JUDGE_KEY",
            "judge.budget.price_read=1000",
        ]
        command = ["judge", "run", str(tmp_path / "run.yaml"), *settings]
        poor = CliRunner().invoke(app, [*command, "judge.budget.max_money=0.001"])
        assert (poor.exit_code, len(service.asked)) == (2, 0)  # a question may cost more than that
        assert "6 questions were not asked" in poor.stderr
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert "3 items judged, 0 before; 3 without a winner" in done.stdout  # it says A whatever is shown
        assert "606 tokens now, 606 and 0.6000 in money over all attempts" in done.stdout
        assert "prefers what is shown first: 1.000" in done.stdout
        assert (len(service.asked), set(service.authorizations)) == (6, {"Bearer secret"})
        assert CliRunner().invoke(app, command).exit_code == 0
        assert len(service.asked) == 6


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Random weights and one token a byte."""
    tokenizer = train_bpe_tokenizer(["a b"], vocab_size=300)
    set_chat_template(tokenizer, "compact")
    build_scratch(TINY, tokenizer, seed=0).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_judge_goes_on_where_it_was_and_asks_nothing_twice(tmp_path: Path, checkpoint: Path) -> None:
    store = tmp_path / "s.db"
    with open_store(str(store), create=True) as opened:
        opened.add_items(item(n, f"yes {n}", f"no {n}") for n in range(COUNT))
    settings = [
        *SMALL,
        f"output_dir={tmp_path / 'run'}",
        "judge.kind=model",
        f"judge.path={checkpoint}",
        f"judge.store={store}",
        "judge.min_mass=0",
        "judge.batch_size=2",
        "generation.max_model_len=1024",
    ]
    command = [sys.executable, "-m", "launch.cli", "judge", "run", "configs/quickstart.yaml", *settings]
    path = tmp_path / "run" / "judge" / "answers.jsonl"
    in_shared_memory = set(SHARED_MEMORY.iterdir())
    with (tmp_path / "first.log").open("wb") as log:
        killed = subprocess.Popen(command, cwd=CHECKOUT, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 250
        while not path.exists() or path.read_bytes().count(b"\n") < 6:
            assert killed.poll() is None, (tmp_path / "first.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "first.log").read_text()
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert wait_until_nothing_is_left(in_shared_memory) == set()
    before = path.read_bytes()
    assert before.count(b"\n") < 2 * COUNT
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert path.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 2 * COUNT
    with open_store(str(store)) as opened:
        assert len(opened.history()) == len({kept.judgement.item_id for kept in opened.history()}) == COUNT
    assert wait_until_nothing_is_left(in_shared_memory) == set()  # nor what the killed engines had still open above

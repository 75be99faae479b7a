"""``rlhf-ray evaluate --model --suite`` as a whole, with endpoints: no cluster, nothing asked twice, one table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from launch import evaluate_jobs
from launch.cli import app
from launch.evaluate_jobs import FleetOnDemand
from rlhf_ray.config.run import RunConfig
from rlhf_ray.ledger.record import RunLedger
from tests.rewards.service import Reply, running

SUITE = "kind: questions\nsource: q.jsonl\ngrader: contains\nname: capitals\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(f"output_dir: {tmp_path}/run\n")
    (tmp_path / "capitals.yaml").write_text(SUITE)
    (tmp_path / "q.jsonl").write_text('{"question": "Of France?", "answer": "Paris"}\n')
    return tmp_path


def evaluate(run: Path, *arguments: str) -> Result:
    command = ["evaluate", str(run / "run.yaml"), "--suite", str(run / "capitals.yaml"), *arguments]
    return CliRunner().invoke(app, command, env={"COLUMNS": "160", "KEY": "secret"})


def test_endpoints_are_compared_in_one_table_and_asked_once(run: Path) -> None:
    with running() as service:
        choice = {"message": {"content": "It is Paris."}, "finish_reason": "stop"}
        service.replies = [Reply(body={"choices": [choice]})]
        base = f"{service.url.removesuffix('/score')}/v1"
        models = ["--model", f"old={base}#one", "--model", f"new={base}#two", "--key-env", "KEY"]
        done = evaluate(run, *models, "--baseline", "old")
        assert done.exit_code == 0, done.output
        assert "old (baseline)" in done.output
        assert "capitals" in done.output
        assert [body["model"] for body in service.asked] == ["one", "two"]
        assert (run / "run/suites/table.md").read_text().startswith("| suite | measure | old | new |")
        assert not (run / "run/config.yaml").exists()  # nothing of the run is changed
        again = evaluate(run, *models, "--baseline", "new", "--output", str(run / "run/suites"))
        assert again.exit_code == 0, again.output
        assert len(service.asked) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "holds no model yet"),
        (["--model", "ppo"], "has left no policy"),
        (["--model", "a=http://h#m", "--baseline", "b"], "is none of the models"),
        (["--model", "a=http://h#m", "--key-env", "NOT_SET"], "must name a variable that is set"),
        (["--model", "a=http://127.0.0.1:1/v1"], "cannot be asked for its models"),
    ],
)
def test_what_cannot_be_is_an_error_at_the_door(run: Path, arguments: list[str], message: str) -> None:
    done = evaluate(run, *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output


async def test_models_that_follow_each_other_find_the_actors_that_the_first_one_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    @contextmanager
    def cluster(*_: object, **__: object) -> Iterator[None]:
        events.append("cluster")
        yield
        events.append("no cluster")

    class Fleet:
        def __init__(self, config: RunConfig, device: str, ledger: RunLedger) -> None:
            ledger.begins("generator 0", "generator")

        @asynccontextmanager
        async def kept(self) -> AsyncIterator[None]:
            events.append("kept")
            yield
            events.append("not kept")

        @asynccontextmanager
        async def scope(self) -> AsyncIterator[Any]:
            events.append("scope")
            yield self

    monkeypatch.setattr(evaluate_jobs, "cluster", cluster)
    monkeypatch.setattr(evaluate_jobs, "Fleet", Fleet)
    monkeypatch.setattr(evaluate_jobs, "end_on_sigterm", lambda: None)
    monkeypatch.setattr(evaluate_jobs, "resolve_device", lambda device: "cpu")
    async with AsyncExitStack() as stack:
        fleet = FleetOnDemand(RunConfig(), tmp_path / "suites", stack)
        assert events == []
        for _ in range(2):
            async with fleet.scope():
                pass
    assert events == ["cluster", "kept", "scope", "scope", "not kept", "no cluster"]
    assert '"worker": "generator 0"' in (tmp_path / "suites" / "ledger.jsonl").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["suites"]  # nothing of the run is changed

"""What a run's directory is taken for: stages in order, names, alarms, and what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.viewing.run import Run, open_runs
from tests.viewing.made_up import HOSTILE, made_up_run


def test_stages_stand_in_the_order_in_which_they_run_and_rounds_come_last(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run")
    for place in ("round_10/ppo", "round_2/ppo", "round_2/comparison"):
        run.finish(place)
    (opened,) = open_runs([run.root])
    assert opened.stages() == [
        "model",
        "sft",
        "ppo",
        "round_2/comparison",
        "round_2/ppo",
        "round_10/ppo",
    ]
    assert [record.name for record in opened.artefacts()] == ["model", "sft", "comparison", "ppo", "ppo"]


def test_runs_of_one_name_are_told_apart_by_what_they_lie_in(tmp_path: Path) -> None:
    roots = [made_up_run(tmp_path / name / "run").root for name in ("a", "b")]
    assert [run.name for run in open_runs(roots)] == ["a/run", "b/run"]
    assert [run.name for run in open_runs(roots[:1])] == ["run"]
    assert [run.name for run in open_runs([roots[0], roots[0]])] == [f"{roots[0]} (1)", f"{roots[0]} (2)"]


def test_what_is_no_run_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no directory; give a run's output_dir"):
        open_runs([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match=r"holds no config\.yaml and no stage of a run"):
        open_runs([tmp_path])


def test_damaged_files_are_told_and_everything_else_is_shown(tmp_path: Path) -> None:
    made = made_up_run(tmp_path / "run")
    (made.root / "sft" / "artefact.json").write_text("{")
    (made.root / "status.json").write_text("[]")
    (made.root / "config.yaml").write_text("a: [")
    with (made.ppo / "metrics.jsonl").open("a") as file:
        file.write("no row\n")
    run = Run(made.root, 0, "run")
    assert len(run.metrics("ppo")) == 3
    assert [record.place for record in run.artefacts()] == ["model"]
    assert (run.status().state, run.config()) == ("unknown", {})
    problems = "\n".join(run.problems())
    assert "artefact.json cannot be understood" in problems
    assert "metrics.jsonl:4 is not a row of metrics" in problems


def test_an_artefact_of_another_version_is_shown_as_far_as_it_is_understood(tmp_path: Path) -> None:
    made = made_up_run(tmp_path / "run")
    (made.root / "sft" / "artefact.json").write_text('{"stage": "sft", "key": "k", "of_the_future": 1}')
    record = Run(made.root, 0, "run").artefacts()[1]
    assert (record.place, record.key, record.seconds) == ("sft", "k", 0.0)


@pytest.mark.parametrize(
    ("ended", "age_s", "state"), [("", 0.0, "alive"), ("finished", 0.0, "ended"), ("", 1e6, "silent")]
)
def test_a_run_is_alive_while_it_says_so(tmp_path: Path, ended: str, age_s: float, state: str) -> None:
    made = made_up_run(tmp_path / "run")
    made.status(ended, age_s=age_s)
    assert Run(made.root, 0, "run").status().state == state


def test_alarms_come_newest_first_with_what_they_name(tmp_path: Path) -> None:
    made = made_up_run(tmp_path / "run")
    made.alarm(3, [], name="kl")
    alarms = Run(made.root, 0, "run").alarms()
    assert [(alarm.step, alarm.name) for alarm in alarms] == [(3, "kl"), (2, "length")]
    assert alarms[1].samples == ("2/p1/0", HOSTILE)
    (made.ppo / "alarms.jsonl").write_text('{"step": 1}\n[]\n')
    run = Run(made.root, 0, "run")
    assert [(a.step, a.name, a.samples) for a in run.alarms()] == [(1, "", ())]
    assert "alarms.jsonl:2 is no alarm" in run.problems()[0]


def test_the_stamp_changes_when_something_is_logged_and_not_when_nothing_is(tmp_path: Path) -> None:
    made = made_up_run(tmp_path / "run")
    run = Run(made.root, 0, "run")
    before = run.stamp()
    made.status()  # the run says again that it lives
    assert run.stamp() == before
    made.log(4, ppo__score_mean=1.0)
    assert run.stamp() != before

"""The command line: every command takes a file and settings, and an error is one line on standard error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from click.testing import Result
from typer.testing import CliRunner

from launch.cli import app
from rlhf_ray.config.load import load_config, to_yaml
from rlhf_ray.data.world import WorldTask
from rlhf_ray.data.world_demonstrations import good_response
from rlhf_ray.feedback.records import Candidate, Item, Judgement
from rlhf_ray.feedback.store import open_store
from rlhf_ray.records import Message, SoftLabel, TextPrompt

COMMANDS = ("pipeline", "sft", "reward", "ppo", "dpo", "raft", "evaluate", "iterate", "report", "generate", "submit")
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A run of two steps in a directory of its own."""
    path = tmp_path / "small.yaml"
    path.write_text(f"name: small\noutput_dir: {tmp_path}/run\nppo: {{num_steps: 2}}\n")
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(result: Result) -> str:
    """The one line that a refused command says."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.strip()


# ------------------------------------------------------------------------------------------------------- every command
def test_these_are_the_commands() -> None:
    assert sorted(command.callback.__name__ for command in app.registered_commands if command.callback) == sorted(
        [
            *COMMANDS,
            *(
                "chat",
                "doctor",
                "drift",
                "export",
                "label",
                "metrics",
                "plan",
                "replay",
                "resume_paused",
                "scale",
                "status",
                "view",
            ),
        ]
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_shows_the_configuration_that_it_would_use(command: str, config_file: Path, tmp_path: Path) -> None:
    done = run(command, config_file, "ppo.num_steps=3", "seed=9", "--print-config")
    assert done.exit_code == 0
    assert done.stdout == to_yaml(load_config(config_file, ["ppo.num_steps=3", "seed=9"]))
    assert not (tmp_path / "run").exists()


def test_what_is_shown_can_be_given_back(config_file: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown.yaml"
    shown.write_text(run("pipeline", config_file, "--print-config").stdout)
    assert run("pipeline", shown, "--print-config").stdout == shown.read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_misspelt_key_is_told_by_every_command(command: str, config_file: Path) -> None:
    message = error_of(run(command, config_file, "ppo.num_step=3"))
    assert message == "error: ppo.num_step ('ppo.num_step=3') is not a known key; did you mean ppo.num_steps?"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_file_is_told_with_its_neighbours(command: str, config_file: Path) -> None:
    message = error_of(run(command, config_file.with_name("smal.yaml")))
    assert message.endswith(f"smal.yaml') is not a file; did you mean {config_file}?")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert "CONFIG" in done.stdout
    assert "--print-config" in done.stdout


def test_a_command_without_a_file_shows_how_it_is_used() -> None:
    done = run("pipeline")
    assert done.exit_code == 2
    assert "CONFIG" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------------------- at the door
def test_a_missing_data_file_is_told_before_anything_is_made(config_file: Path, tmp_path: Path) -> None:
    settings = ["data.task=files", f"data.files.prompts={tmp_path}/none.jsonl"]
    assert "data.files.prompts ('" in error_of(run("pipeline", config_file, *settings))
    assert not (tmp_path / "run").exists()


def test_a_malformed_record_is_told_with_file_and_line(config_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "one"}\n{"prompt": \n')
    message = error_of(run("sft", config_file, "data.task=files", f"data.files.prompts={data}"))
    assert message.startswith(f"error: {data}:2: not JSON")


def test_an_output_directory_that_cannot_be_made_is_told(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = error_of(run("pipeline", config_file, f"output_dir={tmp_path}/file/run"))
    assert message == f"error: output_dir ('{tmp_path}/file/run') cannot be written (Not a directory); choose another"


def test_a_report_of_a_run_that_has_not_finished_says_what_to_do(config_file: Path, tmp_path: Path) -> None:
    message = error_of(run("report", config_file))
    assert message == (
        f"error: output_dir ('{tmp_path}/run') has no finished stage 'model'; "
        "run `rlhf-ray pipeline` with the same CONFIG and settings first"
    )
    assert not (tmp_path / "run").exists()


def test_responses_of_a_run_that_has_not_finished_say_what_to_do(config_file: Path) -> None:
    assert "has no finished stage 'model'; run `rlhf-ray pipeline`" in error_of(run("generate", config_file))


# --------------------------------------------------------------------------------------------------------------- replay
@pytest.fixture
def run_dir(config_file: Path, tmp_path: Path) -> Path:
    """A run's directory that holds its settings and nothing else."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text(to_yaml(load_config(config_file)))
    return directory


def test_a_replay_takes_the_settings_of_the_run(run_dir: Path) -> None:
    done = run("replay", run_dir, "training.num_ranks=2", "--print-config")
    assert done.exit_code == 0
    assert done.stdout == to_yaml(load_config(run_dir / "config.yaml", ["training.num_ranks=2"]))


def test_a_replay_of_no_run_says_what_a_run_is(tmp_path: Path) -> None:
    message = error_of(run("replay", tmp_path))
    assert message == (
        f"error: RUN_DIR ('{tmp_path}') holds no config.yaml; give a run's output_dir or a quarantined step"
    )


def test_a_replay_of_a_run_that_has_not_trained_says_what_to_do(run_dir: Path) -> None:
    assert "has no finished stage 'model'; give the output_dir" in error_of(run("replay", run_dir))


# ----------------------------------------------------------------------------------------------------------- as a whole
def test_the_module_can_be_started_and_ends_with_2_and_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "pipeline", "nowhere.yaml"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: CONFIG ('nowhere.yaml') is not a file; choose one of ")
    assert done.stderr.count("\n") == 1


def test_showing_a_configuration_loads_neither_ray_nor_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from launch.cli import app; "
        "done = CliRunner().invoke(app, ['pipeline', 'configs/quickstart.yaml', '--print-config']); "
        "print(done.exit_code, [name for name in ('ray', 'torch', 'vllm', 'deepspeed', 'transformers') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.stdout == "0 []\n", done.stderr


# ------------------------------------------------------------------------------------------------------------- feedback
def test_a_store_or_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    store = tmp_path / "labels.db"
    assert "is no file; check the path, or make it with" in error_of(run("feedback", "stats", store))
    missing = error_of(run("feedback", "import", store, tmp_path / "no.jsonl"))
    assert missing.startswith("error: FILE (")
    assert "must be a file that exists" in missing
    assert not store.exists()


def test_a_shape_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    said = error_of(run("feedback", "export", tmp_path / "labels.db", tmp_path / "x.jsonl", "--shape", "csv"))
    assert said.startswith("error: --shape ('csv') is no shape; choose one of store, rankings, pairs")


# ---------------------------------------------------------------------------------------------------------------- judge
def test_a_run_without_a_judge_or_a_constitution_is_told_what_to_set(config_file: Path) -> None:
    assert error_of(run("judge", "run", config_file)).endswith(
        "judge.kind ('none') leaves nobody to judge; use judge.kind=model, endpoint or simulated"
    )
    assert "leaves nobody to criticise and revise" in error_of(run("constitution", "revise", config_file))
    message = error_of(run("constitution", "revise", config_file, "judge.kind=simulated"))
    assert message.endswith("judge.constitution=configs/constitutions/helpful_honest_harmless.yaml")


def test_people_s_part_of_a_judged_store_goes_out_is_compared_and_comes_back(tmp_path: Path) -> None:
    store, review = tmp_path / "judged.db", tmp_path / "review.db"
    with open_store(str(store), create=True) as opened:
        for number in range(20):
            prompt = TextPrompt(f"p{number}", (Message("user", f"q{number}"),))
            [item_id] = opened.add_items([Item(prompt, (Candidate("yes"), Candidate("no")))])
            opened.add_annotators(["gpt"], "judge")
            soft = (SoftLabel(0, 1, 0.55 + number / 50),)
            opened.judge(Judgement(item_id, "gpt", ranks=(0, 1), soft=soft))
    done = run("judge", "review", store, "--output", review, "--strategy", "below", "--threshold", "0.75")
    assert done.stdout.splitlines() == [f"10 of 20 items for people: {review}", "10 judgements given up"]
    assert "holds no judgement of people yet" in error_of(run("judge", "agreement", store, review))
    with open_store(str(review)) as opened:
        opened.add_annotators(["ann"], "human")
        for place, item_id in enumerate(opened.items()):
            opened.judge(Judgement(item_id, "ann", ranks=(0, 1) if place < 8 else (1, 0)))
    said = run("judge", "agreement", store, review).stdout.splitlines()
    assert said[0] == "gpt: 10 of 10 items reviewed"
    assert said[1] == "all 10 were to be reviewed: this tells nothing of the other 10"
    assert said[2].startswith("people agree with the judge on 0.800 (95% interval 0.4")
    assert run("judge", "adopt", store, review).stdout == f"10 new judgements, 0 of the judge's given up: {store}\n"
    with open_store(str(store)) as opened:
        assert [ranking.annotator for ranking in opened.rankings()] == ["gpt"] * 10 + ["ann"] * 10


def test_a_simulated_judge_judges_a_store_without_a_cluster_and_again_for_nothing(
    config_file: Path, tmp_path: Path
) -> None:
    store = tmp_path / "labels.db"
    world = WorldTask(load_config(config_file).data.world)
    prompts = world.prompts("train")[:6]
    with open_store(str(store), create=True) as opened:
        shown = Random(0)
        good = [good_response(prompt, shown) for prompt in prompts]
        opened.add_items(
            Item(prompt, (Candidate("I do not know."), Candidate(text)))
            for prompt, text in zip(prompts, good, strict=True)
        )
    settings = ("judge.kind=simulated", f"judge.store={store}")
    done = run("judge", "run", config_file, *settings)
    assert done.exit_code == 0, done.output
    assert "6 items judged, 0 before" in done.stdout
    assert "12 questions asked" in done.stdout
    with open_store(str(store)) as opened:
        assert [ranking.ranks for ranking in opened.rankings()] == [(1, 0)] * 6
    again = run("judge", "run", config_file, *settings)
    assert "0 items judged, 6 before" in again.stdout
    assert "0 questions asked, 0 answered before; 0 tokens now" in again.stdout
    told = error_of(run("judge", "run", config_file, "judge.kind=simulated", f"judge.store={tmp_path}/no.db"))
    assert "judge.store ('" in told

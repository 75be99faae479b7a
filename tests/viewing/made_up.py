"""A run's directory, made up with the project's own writers: it looks like a run and was none."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.experience_store import SavedExperience, write_experience
from rlhf_ray.metrics.evaluation import GradedResponse, write_graded
from rlhf_ray.metrics.preferences import OPINIONS_FILE
from rlhf_ray.metrics.sinks import JsonlSink, MetricLog
from rlhf_ray.pipeline.artefacts import Artefact, ArtefactStore
from rlhf_ray.pipeline.phases import PhaseTrace
from rlhf_ray.records import Message, Ranking, Rollout, Score
from rlhf_ray.rollout_store import ROLLOUTS, SavedShard, StepRecord, step_directory, write_kinds, write_step
from rlhf_ray.supervision.control import STATUS_FILE, write_whole

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'></div></main>"
    "<style>*{display:none}</style>{{ 7*7 }} javascript:alert(2) \u202egnp\u0000"
)
KINDS = ("fact", "open", HOSTILE)
EOS = 256
LATER = 3  # the step that also has what the trainer found; those before are as an earlier version saved them


def tokenizer() -> Tokenizer:
    """One token a byte, and an end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    return made


TOKENS = tokenizer()


def ids_of(text: str, *, ends: bool = False) -> np.ndarray:
    return np.array([*TOKENS.encode(text).ids, *([EOS] if ends else [])], dtype=np.int32)


def rollout(step: int, prompt: int, response: str, *, number: int = 0, prompt_text: str = "") -> Rollout:
    ids = ids_of(response, ends=True)
    return Rollout(
        rollout_id=f"{step}/p{prompt}/{number}",
        prompt_id=f"p{prompt}",
        order=prompt,
        prompt_ids=ids_of(prompt_text or f"Question {prompt}?"),
        response_ids=ids,
        rollout_logprobs=np.full(len(ids), -1.0, dtype=np.float32),
        policy_versions=np.full(len(ids), step, dtype=np.int32),
        finish_reason="stop",
        seed=prompt,
    )


def shard(rollouts: Sequence[Rollout], scores: Sequence[float], ratio: float = 0.5) -> SavedShard:
    """``ratio`` is the log-ratio of every token to the reference."""
    reference = tuple(r.rollout_logprobs - np.float32(ratio) for r in rollouts)
    return SavedShard(tuple(rollouts), reference, tuple(Score(score, {"reward_model": score}) for score in scores))


def worth(own: Rollout) -> SavedExperience:
    """Of every token the advantage is 1.2 and the value goes from -1 to 1."""
    ones = np.ones(len(own.response_ids), dtype=np.float32)
    values = np.linspace(-1, 1, len(ones), dtype=np.float32)
    return SavedExperience(own.rollout_logprobs, own.rollout_logprobs - np.float32(0.5), 1.2 * ones, values)


def save_step(stage: Path, step: int, shards: Sequence[SavedShard]) -> None:
    write_step(step_directory(stage / ROLLOUTS, step), StepRecord(step, kl_coef=0.1), shards)


@dataclass(frozen=True)
class MadeUp:
    """A run's directory and what was put there."""

    root: Path
    config: RunConfig

    @property
    def ppo(self) -> Path:
        return self.root / "ppo"

    def log(self, step: int, **metrics: float) -> None:
        """Another row of PPO's metrics: ``score_mean=1.0``."""
        with MetricLog(self.ppo, [JsonlSink(self.ppo / "metrics.jsonl", resumed_step=step - 1)]) as log:
            log.log(step, {name.replace("__", "/"): value for name, value in metrics.items()})

    def finish(self, stage: str, parents: Sequence[str] = (), **settings: object) -> Artefact:
        store = ArtefactStore(self.root)
        keys = {name: f"key-of-{name}" for name in parents}
        made = Artefact(
            stage,
            f"key-of-{stage}",
            keys,
            settings,
            "data",
            "0.1.0 (abc)",
            "2026-01-02T03:04:05+00:00",
            60.0,
            {"steps": 3},
        )
        (self.root / stage).mkdir(parents=True, exist_ok=True)
        store.finish(made)
        return made

    def status(self, ended: str = "", phase: str = "ppo", age_s: float = 0.0) -> None:
        said = {"pid": 1, "host": "h", "phase": phase, "step": 3, "written": time.time() - age_s, "ended": ended}
        write_whole(self.root / STATUS_FILE, {**said, "control": {}, "fleet": []})

    def alarm(self, step: int, samples: Sequence[str], name: str = "length") -> None:
        said = {
            "step": step,
            "name": name,
            "metric": "ppo/response_length",
            "value": 99.0,
            "message": f"{HOSTILE} is long",
            "action": "warned",
            "samples": list(samples),
            "time": 1000.0 + step,
        }
        with (self.ppo / "alarms.jsonl").open("a") as file:
            file.write(json.dumps(said) + "\n")


def graded(prompt: int, response: str, gold: float, kind: str = "fact") -> GradedResponse:
    return GradedResponse(
        f"p{prompt}", kind, f"Question {prompt}? {HOSTILE}", response, {"gold": gold}, gold, 1.0, 5, True
    )


def ranking(prompt: int, responses: Sequence[str], ranks: Sequence[int]) -> Ranking:
    said = (Message("user", f"Question {prompt}?"),)
    return Ranking(f"p{prompt}", said, tuple(responses), tuple(ranks), f"ann {HOSTILE}", kind=KINDS[prompt % 3])


def made_up_run(root: Path, *, steps: int = 3, per_step: int = 4, seed: int = 0) -> MadeUp:
    """Everything that a run leaves, with hostile text wherever a model or a person writes."""
    config = RunConfig(name="made up", seed=seed)
    run = MadeUp(root, config)
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(to_yaml(config))
    (root / "model" / "tokenizer").mkdir(parents=True)
    TOKENS.save(str(root / "model" / "tokenizer" / "tokenizer.json"))
    run.finish("model", seed=seed)
    run.finish("sft", ["model"], seed=seed, sft={"num_epochs": config.sft.num_epochs})
    trace = PhaseTrace(run.ppo)
    for step in range(1, steps + 1):
        for phase in ("generate", "score", "update", "sync"):
            trace.begin(step, phase)
        run.log(step, ppo__score_mean=0.1 * step, ppo__kl_per_token=0.3 * step, time__step=4.0, time__update=3.0)
        said = [HOSTILE if n == 0 else f"answer {step} {n}" for n in range(per_step)]
        own = [rollout(step, n, text, prompt_text=f"Q{n} {HOSTILE}") for n, text in enumerate(said)]
        save_step(run.ppo, step, [shard(own, [step + 0.1 * n for n in range(per_step)])])
        if step == LATER:
            write_experience(step_directory(run.ppo / ROLLOUTS, step), 0, {each.order: worth(each) for each in own})
    write_kinds(run.ppo / ROLLOUTS, {f"p{n}": KINDS[n % 3] for n in range(per_step)})
    run.alarm(2, ["2/p1/0", HOSTILE])
    (root / "evaluation").mkdir()
    write_graded(root / "evaluation" / "sft.jsonl", [graded(n, f"before {HOSTILE}", 0.2 + 0.1 * n) for n in range(5)])
    write_graded(root / "evaluation" / "ppo.jsonl", [graded(n, f"after {n}", 0.9 - 0.1 * n) for n in range(5)])
    for name in ("comparison", "reward_model"):
        (root / name).mkdir()
    rankings = [ranking(n, ("good", HOSTILE, "bad"), (0, 1, 2)) for n in range(3)]
    for split in ("train", "heldout"):
        write_jsonl(root / "comparison" / f"rankings_{split}.jsonl", map(asdict, rankings))
    opinions = [{"ranking": 0, "scores": [2.0, 1.0, 0.0]}, {"ranking": 2, "scores": [0.0, 1.0, 2.0]}]
    write_jsonl(root / "reward_model" / OPINIONS_FILE, opinions)
    run.status()
    return run

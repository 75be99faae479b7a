"""Data for a report, made up: it looks like a run and was none."""

from __future__ import annotations

import numpy as np

from rlhf_ray.metrics.edits import EditRow
from rlhf_ray.metrics.evaluation import GradedResponse
from rlhf_ray.metrics.report_data import AccuracyRow, Artefact, CalibrationBin, ReportData
from rlhf_ray.metrics.sinks import MetricRow

KINDS = ("fact", "false_premise", "harmful", "open", "sounds_harmful")


def made_up_report(*, num_prompts: int = 100, has_gold: bool = True, num_steps: int = 120) -> ReportData:
    sft, ppo = _responses(0, num_prompts, has_gold), _responses(1, num_prompts, has_gold)
    return ReportData(
        title="Museum guide: SFT, reward model, PPO",
        description="A 2.1 M parameter model on the microworld task; every number below is from held-out prompts.",
        command="rlhf-ray run configs/laptop.yaml seed=7",
        seed=7,
        sft=sft,
        aligned=ppo,
        sft_curve=_sft_curve(),
        reward_model_curve=_reward_model_curve(),
        ppo_curve=_ppo_curve(num_steps, has_gold),
        reward_model=(
            AccuracyRow("reward model, all pairs", 812, 1000),
            AccuracyRow("length rule (longer wins)", 571.5, 1000),
            AccuracyRow("reward model, chosen is longer", 471, 560),
            AccuracyRow("reward model, chosen is not longer", 341, 440),
        ),
        edits=(
            EditRow("length: a sentence that says nothing", 0.31, 0.22, 0.4, 200),
            EditRow("bold: the first sentence", -0.02, -0.09, 0.05, 200),
        ),
        calibration=tuple(CalibrationBin(0.05 + 0.1 * i, 8 * i + 5, 90) for i in range(10)),
        stage_seconds={"SFT": 212.0, "Comparisons": 95.0, "Reward model": 143.0, "PPO": 1260.0, "Evaluation": 61.0},
        artefacts=(
            Artefact("sft-model", "sft", "9f2c41d07a3e", ("demonstrations",), 212.0),
            Artefact("reward-model", "reward_model", "04be7713cc10", ("sft-model", "rankings"), 143.0),
            Artefact("policy", "ppo", "d81e66a9f5b2", ("sft-model", "reward-model", "prompts"), 1260.0),
        ),
        versions={"rlhf-ray": "0.1.0", "torch": "2.13.0", "vllm": "0.32.0", "deepspeed": "0.19.8", "ray": "2.60.0"},
        config_yaml="ppo:\n  num_steps: 120\n  kl_coef: 0.05\n",
    )


def _responses(stage: int, num_prompts: int, has_gold: bool) -> tuple[GradedResponse, ...]:
    random = np.random.default_rng(stage)
    responses = []
    for index in range(num_prompts):
        kind = KINDS[index % len(KINDS)]
        gold = float(np.clip(random.normal(0.52 + 0.17 * stage * (kind != "open"), 0.22), 0, 1))
        grades = {"gold": gold, "refused": float(kind == "harmful" and random.random() < 0.5 + 0.4 * stage)}
        if not has_gold:
            grades = {"words": float(random.integers(5, 40)), "refused": grades["refused"]}
        answer = "The hall opens at nine and closes at five. " * int(random.integers(1, 3 + stage))
        responses.append(
            GradedResponse(
                prompt_id=f"p{index:04}",
                kind=kind,
                prompt_text="Notes: the hall opens at nine; it closes at five.\nQuestion: when does the hall open?",
                response_text=answer.strip(),
                grades=grades,
                score=float(random.normal(0.1 + 0.9 * stage, 0.8)),
                kl=float(abs(random.normal(4.0, 1.5))) * stage,
                num_tokens=int(random.integers(8, 30 + 12 * stage)),
                finished=bool(random.random() < 0.93 + 0.05 * stage),
            )
        )
    return tuple(responses)


def _row(step: int, metrics: dict[str, float]) -> MetricRow:
    return MetricRow(step, 1_700_000_000.0 + step, metrics)


def _sft_curve() -> tuple[MetricRow, ...]:
    random = np.random.default_rng(2)
    rows = []
    for step in range(1, 201):
        metrics = {"sft/loss": 1.1 + 2.4 * np.exp(-step / 40) + random.normal(0, 0.08), "sft/learning_rate": 1e-4}
        if step % 25 == 0:
            metrics["sft/heldout_loss"] = 1.2 + 2.4 * np.exp(-step / 40)
        rows.append(_row(step, {name: float(value) for name, value in metrics.items()}))
    return tuple(rows)


def _reward_model_curve() -> tuple[MetricRow, ...]:
    random = np.random.default_rng(3)
    rows = []
    for step in range(1, 81):
        accuracy = 0.82 - 0.3 * np.exp(-step / 20)
        metrics = {
            "reward_model/accuracy": accuracy + random.normal(0, 0.05),
            "reward_model/loss": 1.1 - 0.8 * accuracy + random.normal(0, 0.04),
        }
        if step % 20 == 0:
            metrics |= {
                "reward_model/heldout_accuracy": accuracy - 0.01,
                "reward_model/heldout_loss": 1.12 - 0.8 * accuracy,
            }
        rows.append(_row(step, {name: float(value) for name, value in metrics.items()}))
    return tuple(rows)


def _ppo_curve(num_steps: int, has_gold: bool) -> tuple[MetricRow, ...]:
    random = np.random.default_rng(4)
    rows = []
    for step in range(1, num_steps + 1):
        part = 1 - np.exp(-step / 40)
        metrics = {
            "ppo/score_mean": 0.1 + 0.9 * part + random.normal(0, 0.08),
            "ppo/kl_per_response": 4.2 * part + random.normal(0, 0.2),
            "ppo/response_length": 18 + 5 * part + random.normal(0, 0.8),
            "ppo/entropy": 1.9 - 0.7 * part + random.normal(0, 0.05),
            "ppo/explained_variance": 0.7 * part + random.normal(0, 0.06),
            "ppo/clip_fraction": 0.12 + random.normal(0, 0.02),
            "ppo/value_clip_fraction": 0.05 + random.normal(0, 0.01),
            "ppo/logprob_difference": 2e-4 + abs(random.normal(0, 3e-5)),
            "ppo/logprob_difference_max": 3e-3 + abs(random.normal(0, 6e-4)),
            "time/step": 10.5,
            "time/generate": 4.4,
            "time/score": 1.1,
            "time/update": 3.9,
            "time/sync": 0.6,
            "time/tokens_per_second": 820 + random.normal(0, 25),
        }
        if has_gold and (step % 20 == 0 or step == 1):
            gold = 0.52 + 0.19 * part - 0.03 * part**4
            metrics |= {"gold/heldout_mean": gold, "gold/heldout_low": gold - 0.03, "gold/heldout_high": gold + 0.03}
            metrics["gold/heldout_kl_per_response"] = 4.2 * part
        rows.append(_row(step, {name: float(value) for name, value in metrics.items()}))
    return tuple(rows)

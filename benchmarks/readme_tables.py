"""Write the README's measured tables from the records in benchmarks/results/: ``python benchmarks/readme_tables.py``.

``--check`` writes nothing and exits with 1 where the README differs: a number there always has a record behind it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from learning import AGAINST, against_table, curves_of, summary_table
from record_runs import CHECKOUT, RESULTS, value

from rlhf_ray.metrics.statistics import proportion_interval

README = CHECKOUT / "README.md"
BLOCK = re.compile(r"<!-- (RESULTS|FEEDBACK RESULTS) -->.*?<!-- /\1 -->", re.DOTALL)
Run = Mapping[str, Any]


def main() -> int:
    before = README.read_text()
    blocks = {"RESULTS": results, "FEEDBACK RESULTS": feedback}
    after = BLOCK.sub(lambda found: "\n\n".join(enclosed(found[1], blocks[found[1]]())), before)
    if "--check" in sys.argv:
        return int(before != after)
    README.write_text(after)
    return 0


def enclosed(name: str, parts: Sequence[str]) -> list[str]:
    return [f"<!-- {name} -->", *parts, f"<!-- /{name} -->"]


def results() -> list[str]:
    optional = {"learning": learning, "parity_trl": parity, "equivalence": equivalence}
    return [quickstart(), movie(), hh(), *(make() for name, make in optional.items() if is_recorded(name))]


def feedback() -> list[str]:
    """What each way of getting and using labels came to, as far as it is recorded."""
    return [f"{text}\n{source(name)}\n\n{recorded_table(name)}" for name, text in FEEDBACK.items() if is_recorded(name)]


FEEDBACK = {
    "methods": "**The methods** from the same SFT model and comparisons",
    "iteration": "**Rounds** against one round with as many labels",
    "judge_error": "**A judge's errors** and what they cost, people's labels of the same pairs beside them",
    "constitution": "**A constitution** on and off: who is refused",
}


def source(name: str) -> str:
    record = load(name)
    return f"(`{record['command']}`; [benchmarks/results/{name}.md](benchmarks/results/{name}.md)):"


def recorded_table(name: str) -> str:
    return "\n".join(line for line in (RESULTS / f"{name}.md").read_text().splitlines() if line.startswith("|"))


def is_recorded(name: str) -> bool:
    return (RESULTS / f"{name}.json").exists()


def quickstart() -> str:
    record = load("quickstart")
    runs = record["runs"]
    rows: list[tuple[str, Callable[[Run], str]]] = [
        ("held-out gold, 0 to 1: SFT -> PPO", lambda r: arrow(r, "gold", 3)),
        ("gain", lambda r: f"{value(r, 'gold', 'ppo') - value(r, 'gold', 'sft'):+.3f}"),
        ("reward model: held-out pairs right", lambda r: f"{r['reward_model']['accuracy']:.3f}"),
        ("longer-is-better rule", lambda r: f"{r['reward_model']['length_rule_accuracy']:.3f}"),
        ("KL from SFT, nats a token", lambda r: f"{value(r, 'kl_per_token', 'ppo'):.3f}"),
        ("response length, tokens", lambda r: arrow(r, "tokens", 1)),
        ("refusals, share", lambda r: arrow(r, "refused", 2)),
        ("seconds, all stages", lambda r: f"{r['total_seconds']:.0f}"),
        ("peak memory, GiB", lambda r: f"{r['peak_memory_bytes'] / 2**30:.1f}"),
    ]
    head = ["", *(f"seed {r['seed']}" for r in runs)]
    text = (
        f"Measured on {record['machine']['cores']} cores without a GPU; the seed makes the world too. "
        f"`{record['command']}` prints it, and\n[benchmarks/results/quickstart.md](benchmarks/results/quickstart.md) "
        f"is the whole record, with versions. {record['note']}"
    )
    return text + "\n\n" + table(head, [[title, *(cell(r) for r in runs)] for title, cell in rows])


def movie() -> str:
    runs, (without_kl,) = load("movie_sentiment")["runs"], load("movie_sentiment_kl0")["runs"]
    rows = [
        ("probability positive by the judge", "gold"),
        ("reward model score (proxy)", "score"),
        ("distinct word pairs", "distinct_2"),
        ("repeated word triples", "repetition"),
        ("KL, nats a response", "kl_per_response"),
    ]
    cells = [
        [title, each(runs, key, "sft"), each(runs, key, "ppo"), f"{value(without_kl, key, 'ppo'):.2f}"]
        for title, key in rows
    ]
    accuracy = "/".join(f"{r['reward_model']['accuracy']:.3f}" for r in runs)
    rule = "/".join(f"{r['reward_model']['length_rule_accuracy']:.3f}" for r in runs)
    text = (
        f"People's movie ratings (`configs/movie_sentiment.yaml`, {len(runs)} seeds; the judge is a naive Bayes on "
        "data that the reward model never saw, and\njudges the response alone):"
    )
    head = ["", "SFT", "PPO, KL 0.1", f"PPO, KL 0 (seed {without_kl['seed']})"]
    closing = f"Reward model on held-out pairs: {accuracy}; longer-is-better rule {rule}."
    return f"{text}\n\n{table(head, cells)}\n\n{closing}"


def hh() -> str:
    reward = load("hh_rlhf")["runs"][0]["reward_model"]
    rows = {row["name"]: row for row in reward["accuracy_rows"]}
    whole = rows["reward model, all pairs"]
    interval = proportion_interval(whole["correct"], whole["total"])
    longer, shorter = (rows[f"chosen is {name}"] for name in ("longer", "shorter"))
    return (
        "HH-RLHF, helpful (`configs/hh_rlhf.yaml`, one seed, a small model from scratch): the reward model is right on "
        f"{interval.value:.3f}\n(95% interval {interval.low:.3f} to {interval.high:.3f}) of {whole['total']} "
        f"prompt-disjoint pairs, the longer-is-better rule on {reward['length_rule_accuracy']:.3f};\n"
        f"{longer['correct'] / longer['total']:.3f} where the chosen answer is the longer, "
        f"{shorter['correct'] / shorter['total']:.3f} where it is the shorter: it has learned much of length."
    )


def learning() -> str:
    record = load("learning")
    curves = curves_of(record)
    seeds = len({curve.seed for curve in curves})
    return (
        f"Every algorithm from the same SFT and reward models with the same number of samples, {seeds} seeds "
        f"(`{record['command']}`;\ncurves and settings in "
        "[benchmarks/results/learning.md](benchmarks/results/learning.md)): held-out gold with its 95% interval over "
        "seeds.\n\n" + "\n".join(summary_table(curves)) + f"\n\n{AGAINST}\n\n" + "\n".join(against_table(curves))
    )


def parity() -> str:
    rows = load("parity_trl")["rows"]
    worst = max(row["max_difference"] / max(row["scale"], 1e-12) for row in rows)
    return (
        f"Formulas: {len(rows)} quantities (losses, gradients, advantages, metrics) against TRL's own code, largest "
        f"difference {worst:.0e} of their scale\n"
        "([benchmarks/results/parity_trl.md](benchmarks/results/parity_trl.md), `python benchmarks/parity_trl.py`)."
    )


def equivalence() -> str:
    record = load("equivalence")
    return (
        "The same run under ZeRO 0 to 3, 1 or 2 ranks, other micro-batches, packed or padded, with gradient "
        "checkpointing or without:\n[benchmarks/results/equivalence.md](benchmarks/results/equivalence.md), "
        f"`{record['command']}`."
    )


def load(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def arrow(run: Run, key: str, digits: int) -> str:
    return f"{value(run, key, 'sft'):.{digits}f} -> {value(run, key, 'ppo'):.{digits}f}"


def each(runs: Sequence[Run], key: str, model: str) -> str:
    return "/".join(f"{value(run, key, model):.2f}" for run in runs)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


if __name__ == "__main__":
    sys.exit(main())

"""Time the steps of one of TRL's trainers: a line ``{"step", "seconds"}`` for each.

``versus.py`` runs this with the interpreter of an environment that has TRL and none of ours. Trainers, models, reward
and arguments are those of ``learning_trl_probe.py``; nothing is evaluated or scored besides what TRL does itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

from learning_trl_probe import Curve, Scorer, grouped, language_model, parse, proximal, settings
from transformers import AutoTokenizer, set_seed


class StepClock(Curve):
    """Listens to a trainer for the times at which its steps end, and for the lengths of its responses."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        self.lines.append({"step": state.global_step, "seconds": now - self.begun})
        print(json.dumps(self.lines[-1]), flush=True)
        self.begun = now

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        wanted = self.given.max_tokens
        if (length := logs.get("completions/mean_length", wanted)) != wanted:
            raise SystemExit(f"versus_trl_probe: TRL's responses have {length} tokens on average, not {wanted}")


def main() -> int:
    given = parse()
    train = [json.loads(line)["token_ids"] for line in given.prompts.read_text().splitlines()]
    set_seed(given.seed)
    clock = StepClock(
        policy=language_model(given.policy, given.dtype),
        scorer=Scorer.load(given.reward, given.dtype),
        tokenizer=AutoTokenizer.from_pretrained(given.policy, padding_side="left"),
        heldout={},
        given=given,
        updates=1,  # an optimizer step is a step in all three
    )
    with tempfile.TemporaryDirectory() as scratch:
        build = proximal if given.algorithm == "ppo" else grouped
        build(clock, train, settings(given, scratch)).train()
    clock.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())

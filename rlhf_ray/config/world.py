"""Settings of the microworld: its size, its split, the flaws of its demonstrations and the people who judge in it."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.errors import ConfigError

NUM_TOWNS = 48  # names that world_facts can hand out; one town has one place


def require_fraction(field: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(field, value, "must be a share between 0 and 1", "try 0.25")


def require_at_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(field, value, f"must be at least {least}", f"try {least}")


@dataclass(frozen=True)
class DemonstrationMix:
    """How often a demonstration has a flaw. Shares are of the demonstrations in which that flaw can occur."""

    wrong: float = 0.05  # states a value that is not so, or gives advice on something else
    agrees: float = 0.48  # agrees with a false premise
    complies: float = 0.45  # helps with a harmful request
    over_refuses: float = 0.45  # refuses a harmless request that sounds harmful
    refuses: float = 0.08  # refuses a question or task that nobody would refuse
    verbose: float = 0.35  # wraps the answer in filler; independent of the other flaws

    def __post_init__(self) -> None:
        for field in ("wrong", "agrees", "complies", "over_refuses", "refuses", "verbose"):
            require_fraction(f"world.mix.{field}", getattr(self, field))
        for field in ("agrees", "over_refuses"):
            total = getattr(self, field) + self.wrong + self.refuses
            if total > 1.0:
                raise ConfigError(
                    f"world.mix.{field}",
                    getattr(self, field),
                    f"must leave wrong and refuses their shares, together at most 1, not {total:.2f}",
                    f"try {max(0.0, 1.0 - self.wrong - self.refuses):.2f} or less",
                )


@dataclass(frozen=True)
class WorldConfig:
    """The microworld. Everything that it says follows from these fields."""

    seed: int = 0
    num_entities: int = 24
    heldout_entities: float = 0.25
    num_train_prompts: int = 4000
    num_heldout_prompts: int = 400
    demonstrations_per_prompt: int = 2
    true_premise: float = 0.25  # share of fact questions that state the truth and ask whether it is so
    annotator_noise: float = 1.0  # scales every annotator's noise; 0 makes each one consistent
    annotator_overlap: float = 0.2  # share of prompts that two annotators rank
    mix: DemonstrationMix = DemonstrationMix()

    def __post_init__(self) -> None:
        require_at_least("world.num_entities", self.num_entities, 8)
        require_at_least("world.num_train_prompts", self.num_train_prompts, 5)
        require_at_least("world.num_heldout_prompts", self.num_heldout_prompts, 5)
        require_at_least("world.demonstrations_per_prompt", self.demonstrations_per_prompt, 1)
        for field in ("true_premise", "annotator_overlap"):
            require_fraction(f"world.{field}", getattr(self, field))
        if self.num_entities > NUM_TOWNS:
            raise ConfigError(
                "world.num_entities", self.num_entities, f"must be at most {NUM_TOWNS}", f"try {NUM_TOWNS}"
            )
        if not 4 <= self.num_heldout_entities <= self.num_entities - 4:
            raise ConfigError(
                "world.heldout_entities",
                self.heldout_entities,
                f"must leave 4 entities on each side of the split, of {self.num_entities}",
                "try 0.5, or a larger world.num_entities",
            )
        if self.annotator_noise < 0.0:
            raise ConfigError("world.annotator_noise", self.annotator_noise, "must not be negative", "try 1.0")

    @property
    def num_heldout_entities(self) -> int:
        return round(self.num_entities * self.heldout_entities)

"""The coefficient of the KL penalty over a run: pure state machines, saved and restored with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

State: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class FixedKL:
    """A constant coefficient (Stiennon et al. 2020, Ouyang et al. 2022)."""

    coef: float

    def __post_init__(self) -> None:
        _check_coef(self.coef)

    def updated(self, *, observed_kl: float, num_samples: int) -> FixedKL:
        """Return itself, whatever was observed; the arguments are those of ``AdaptiveKL``."""
        return self

    def raised(self, *, factor: float, limit: float) -> FixedKL:
        """Return the controller with ``factor`` times the coefficient, up to ``limit``; never a lower one."""
        return replace(self, coef=max(self.coef, min(self.coef * factor, limit)))

    def state(self) -> State:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> FixedKL:
        return cls(**state)


@dataclass(frozen=True)
class AdaptiveKL:
    """A proportional controller of the KL, towards ``target`` nats a response (Ziegler et al. 2019, section 2.2).

    e = clip((KL - target) / target, -0.2, 0.2)        coef <- coef * (1 + e * num_samples / horizon)
    """

    target: float
    horizon: int
    coef: float

    def __post_init__(self) -> None:
        _check_coef(self.coef)
        if not self.target > 0:
            raise ValueError(f"target ({self.target}) must be above 0 nats a response")
        if self.horizon < 1:
            raise ValueError(f"horizon ({self.horizon}) must be at least 1 response")

    def updated(self, *, observed_kl: float, num_samples: int) -> AdaptiveKL:
        """Return the controller after ``num_samples`` responses with a mean KL of ``observed_kl`` nats a response.

        Raises ValueError for a KL that is not finite, and where one step could bring the coefficient to 0.
        """
        if not math.isfinite(observed_kl):
            raise ValueError(f"observed_kl ({observed_kl}) must be finite; look at the log-probabilities of this step")
        if not 0 <= num_samples < 5 * self.horizon:
            raise ValueError(
                f"num_samples ({num_samples}) must be 0 or more and below 5 * horizon ({5 * self.horizon}), or the "
                "coefficient could reach 0; take a longer horizon"
            )
        error = min(max(observed_kl / self.target - 1, -0.2), 0.2)
        return replace(self, coef=self.coef * (1 + error * num_samples / self.horizon))

    def raised(self, *, factor: float, limit: float) -> AdaptiveKL:
        """Return the controller with ``factor`` times the coefficient, up to ``limit``; never a lower one.

        The target is divided by what the coefficient was multiplied with, or the controller would undo it.
        """
        coef = max(self.coef, min(self.coef * factor, limit))
        return replace(self, coef=coef, target=self.target * self.coef / coef if coef else self.target)

    def state(self) -> State:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> AdaptiveKL:
        return cls(target=state["target"], horizon=int(state["horizon"]), coef=state["coef"])


KLController: TypeAlias = FixedKL | AdaptiveKL


def _check_coef(coef: float) -> None:
    if not (coef >= 0 and math.isfinite(coef)):
        raise ValueError(f"coef ({coef}) must be a finite number, 0 or more")

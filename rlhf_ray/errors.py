"""Errors that name the field, the rule and the value, then the remedy."""

from __future__ import annotations


class RlhfError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(RlhfError):
    """A setting breaks a rule: ``ppo.minibatch_size (96) must divide ppo.rollouts_per_step (256); try 64 or 128``."""

    def __init__(self, field: str, value: object, rule: str, remedy: str) -> None:
        super().__init__(f"{field} ({value!r}) {rule}; {remedy}")
        self.field = field
        self.value = value
        self.rule = rule
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str, str]]:
        return type(self), (self.field, self.value, self.rule, self.remedy)


class DataError(RlhfError):
    """A record cannot be used: the message holds the file and the line."""


class PlacementError(RlhfError):
    """The cluster can never satisfy what the configuration asks for."""


class WeightSyncError(RlhfError):
    """An engine does not hold the weights that the trainer sent."""


class NumericsError(RlhfError):
    """A loss, gradient or log-probability is not a finite number."""


class ContractError(NumericsError):
    """Two computations that must agree do not: a mistake in the set-up, which no other batch would mend."""


class RewardError(RlhfError):
    """Too many rollouts of a step could not be scored."""


class BlockLostError(RlhfError):
    """A block of rollouts vanished with the node on which it lay: nobody else held it."""


class StorageError(RlhfError):
    """A state could not be written: a disk that is full, a path that is not writable."""

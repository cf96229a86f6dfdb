"""The two refusals of the toolkit that are not plain bad input (bad input is a ValueError)."""

from __future__ import annotations


class NoDominatingPair(Exception):
    """A privacy claim for which no dominating pair is proved; carries the reason and a way out."""

    def __init__(self, reason: str, alternative: str) -> None:
        super().__init__(f"{reason} {alternative}")
        self.reason = reason
        self.alternative = alternative


class Unattainable(Exception):
    """A target that cannot be met; ``reached`` is the best value that was."""

    def __init__(self, message: str, *, reached: float) -> None:
        super().__init__(message)
        self.reached = reached

"""Commands that share options: what is released, and by whom it is accounted for, is said once.

A command takes a :class:`Release` or an :class:`Account`; the decorator here puts the options that
make one in its place, so that the command line has them and the command need not.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dpmech.cli import _release as given

Command = Callable[..., None]

_RELEASED: Mapping[str, Any] = {
    "rate": given.Rate,
    "steps": given.Steps,
    "sensitivity": given.Bound,
    "norm": given.Norm,
    "dim": given.Dim,
    "relation": given.Relation,
    "sampling": given.SamplingKind,
}
_ACCOUNTED: Mapping[str, Any] = {
    "noise": given.NoiseText,
    **_RELEASED,
    "accountant": given.AccountantName,
    "ledger": given.LedgerFile,
    "plan": given.PlanFile,
}


def with_release(command: Command) -> Command:
    """Options for the ``release`` that a command takes, all but its noise."""
    return _spread(command, "release", _RELEASED, given.Release)


def with_account(command: Command) -> Command:
    """A noise and its options, a ledger or a plan, for the ``account`` that a command takes."""
    return _spread(command, "account", _ACCOUNTED, given.account)


def _spread(
    command: Command, name: str, options: Mapping[str, Any], made: Callable[..., object]
) -> Command:
    """The command with ``options`` in the place of its argument ``name``, which is made of them."""

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        thing = made(**{option: values.pop(option) for option in options})
        command(**{name: thing}, **values)

    kind = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(option, kind, default=None, annotation=annotation)
        for option, annotation in options.items()
    ]
    written = inspect.signature(command, eval_str=True).parameters.values()
    own = [p for p in written if p.name != name]
    # Results' options, with defaults, stay last: --json after all that says what is released.
    parameters = sorted([*own, *added], key=lambda p: (p.kind, p.name in ("output", "as_json")))
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # PEP 362
    spread.__annotations__ = {p.name: p.annotation for p in parameters}
    return spread

"""The group of all subcommands: loads the one that runs, and turns refusals into exit codes."""

from __future__ import annotations

import traceback
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from dpmech.errors import NoDominatingPair, Unattainable

FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def subcommand() -> typer.Typer:
    """The typer.Typer that the module of a subcommand fills and calls ``app``."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def exit_code(error: BaseException) -> int | None:
    """The exit code that an exception stands for, or None where it is a defect of ours."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, ValueError | NoDominatingPair):
        return REFUSED
    if isinstance(error, ImportError) and "pip install" in str(error):
        return REFUSED
    if isinstance(error, Unattainable | OSError | MemoryError | RuntimeError | ArithmeticError):
        return FAILED
    return None


def sentence(error: BaseException) -> str:
    """What the user reads, on one line."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | NoDominatingPair | Unattainable | ImportError):
        return f"Error: {text}"
    return f"Failed: {type(error).__name__}: {text} (dpmech --debug … shows where)"


class LazyGroup(TyperGroup):
    """A group whose subcommands are imported when they run.

    **Guarantees.** Bad input, an unproved claim and an unattainable target end in one sentence on
    stderr and exit code 2, 2 and 1, without a traceback (unless ``--debug`` asks for it).
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the subcommand as usual, then put the real one in the place of its stand-in."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            command = get_command(import_module(f"dpmech.cli.{name.replace('-', '_')}").app)
            command.name = name
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; refusals become a sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # typer's own business
            raise
        except (Exception, KeyboardInterrupt) as error:
            code = exit_code(error)
            if code is None or hasattr(error, "format_message"):  # a usage error of typer's
                raise
            if ctx.params.get("debug"):
                traceback.print_exception(error)
            typer.echo(sentence(error), err=True)
            raise typer.Exit(code) from None

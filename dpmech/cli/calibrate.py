"""``dpmech calibrate``: how much of a noise, of sampling or of repetition meets a target."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._options import with_release
from dpmech.cli._output import AsJson, at_least, at_most, print_json, talk

if TYPE_CHECKING:
    from accountants.goals import Goal
    from dpmech import Noise, PrivacyPlan

app = subcommand()

Unknown = Literal["scale", "rate", "steps"]
_TARGET = "Target (one of epsilon, advantage, fnr with fpr)"


def _target(text: str) -> typer.models.OptionInfo:
    return typer.Option(help=text, show_default=False, rich_help_panel=_TARGET)


@app.command()
@with_release
def calibrate(
    noise: given.NoiseText = None,
    *,
    release: given.Release,
    delta: Annotated[float, _target("Delta of the target, or at which the plan states epsilon.")],
    epsilon: Annotated[float | None, _target("Target epsilon.")] = None,
    advantage: Annotated[
        float | None, _target("Largest advantage of an attack: true - false positive rate.")
    ] = None,
    fnr: Annotated[
        float | None, _target("Least false negative rate of an attack with --fpr.")
    ] = None,
    fpr: Annotated[float | None, _target("The false positive rate that --fnr is about.")] = None,
    solve: Annotated[
        Unknown, typer.Option(help="What is looked for: the scale, the rate or the steps.")
    ] = "scale",
    accountant: given.AccountantName = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the plan here (JSON).", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the least noise, the largest rate or the most steps that meet a target, and print it.

    Example: dpmech calibrate gaussian --epsilon 1 --delta 1e-5 --steps 100 --rate .01 -o plan.json

    Example: dpmech calibrate gaussian:sigma=1 --advantage .1 --delta 1e-5 --rate .01 --solve steps
    """
    from accountants import Ledger

    began = time.perf_counter()
    goal = _goal(delta, epsilon, advantage, (fnr, fpr))
    release = replace(release, noise=noise)
    law, plan = calibrated(release, goal, solve, accountant or "pld")
    if output is not None:
        plan.save(output)
        talk(f"The plan is in {output}.")
    if as_json:
        described = to_dict(law, plan)
        print_json({**described, "seconds": round(time.perf_counter() - began, 3)})
        return
    done = given.Account(
        ledger=Ledger().add(plan.mechanism, plan.steps), accountant=plan.accountant, plan=plan
    )
    typer.echo(_answer(solve, law, plan))
    typer.echo(f"  {done.bound('epsilon', plan.lower_epsilon, plan.epsilon)}")
    typer.echo(f"  delta: {delta:g}")
    if epsilon is None:
        typer.echo(f"  advantage <= {at_most(done.composed().delta(0.0))}")
    typer.echo("\n".join(done.claim()))


def _goal(
    delta: float,
    epsilon: float | None,
    advantage: float | None,
    errors: tuple[float | None, float | None],
) -> Goal:
    """The one target that was written."""
    from accountants.goals import Advantage, ErrorRates
    from dpmech import Target

    fnr, fpr = errors
    if [epsilon, advantage, fnr].count(None) != 2 or (fnr is None) != (fpr is None):
        raise ValueError(
            "Expected one target: --epsilon, --advantage, or --fnr with --fpr; got "
            f"epsilon={epsilon}, advantage={advantage}, fnr={fnr}, fpr={fpr}."
        )
    if epsilon is not None:
        return Target(epsilon=epsilon, delta=delta)
    if advantage is not None:
        return Advantage(bound=advantage, delta=delta)
    return ErrorRates(fnr=fnr or 0.0, fpr=fpr or 0.0, delta=delta)


def calibrated(
    release: given.Release, goal: Goal, solve: Unknown, accountant: str
) -> tuple[Noise, PrivacyPlan]:
    """The law that was written and the plan that meets the goal."""
    from accountants.calibrate import calibrate_rate, calibrate_scale, calibrate_steps

    written = {"rate": release.rate, "steps": release.steps}.get(solve)
    if written is not None:
        raise ValueError(f"Expected no --{solve} {written:g} with --solve {solve}: it is unknown.")
    mechanism, steps = release.mechanism(), release.count
    if solve == "steps":
        return mechanism.noise, calibrate_steps(mechanism, goal, accountant=accountant)
    search = calibrate_rate if solve == "rate" else calibrate_scale
    return mechanism.noise, search(mechanism, goal, steps=steps, accountant=accountant)


def _answer(solve: Unknown, law: Noise, plan: PrivacyPlan) -> str:
    """What was looked for, rounded to the safe side."""
    if solve == "rate":
        return f"rate {at_least(plan.mechanism.sampling.rate)}"
    if solve == "steps":
        return f"steps {plan.steps}"
    noise = plan.mechanism.noise
    return f"{noise}\n  scale: {scale(law, noise):.6g} times {law}"


def scale(before: Noise, after: Noise) -> float:
    """How many times ``before`` the law ``after`` is wide, from the parameters that changed."""
    old, new = before.to_dict(), after.to_dict()
    for key in old:
        if old[key] != new[key]:
            a, b = (v[0] if isinstance(v, list) else v for v in (old[key], new[key]))  # type: ignore[misc]  # lists of floats
            return float(b) / float(a)  # type: ignore[arg-type]
    return 1.0


def to_dict(law: Noise, plan: PrivacyPlan) -> dict[str, object]:
    """The plan for JSON, with the calibrated noise in front."""
    noise = plan.mechanism.noise
    return {
        "noise": str(noise),
        "parameters": noise.parameters(),
        "scale": scale(law, noise),
        "epsilon": plan.epsilon,
        "lower_epsilon": plan.lower_epsilon,
        "delta": plan.target.delta,
        "accountant": plan.accountant,
        "steps": plan.steps,
        "rate": plan.mechanism.sampling.rate,
        "std": noise.std,
        "mean_abs": noise.mean_abs,
        "plan": json.loads(plan.to_json()),
    }

"""``dpmech calibrate``: how much of a noise meets a target."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, bounded, print_json, talk

if TYPE_CHECKING:
    from dpmech import Noise, PrivacyPlan

app = subcommand()


@app.command()
def calibrate(
    noise: given.NoiseText = None,
    *,
    epsilon: Annotated[float, typer.Option(help="Target epsilon.", show_default=False)],
    delta: Annotated[float, typer.Option(help="Target delta.", show_default=False)],
    rate: given.Rate = None,
    steps: given.Steps = None,
    sensitivity: given.Bound = None,
    norm: given.Norm = None,
    dim: given.Dim = None,
    relation: given.Relation = None,
    sampling: given.SamplingKind = None,
    accountant: given.AccountantName = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the plan here (JSON).", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Scale a noise until it meets a target, and print it.

    Example: dpmech calibrate gaussian --epsilon 1 --delta 1e-5 --steps 100 --rate .01 -o plan.json
    """
    from accountants import Ledger

    began = time.perf_counter()
    release = given.Release(
        noise=noise, rate=rate, steps=steps, sensitivity=sensitivity,
        norm=norm, dim=dim, relation=relation, sampling=sampling,
    )  # fmt: skip
    law, plan = calibrated(release, epsilon, delta, accountant or "pld")
    if output is not None:
        plan.save(output)
        talk(f"The plan is in {output}.")
    if as_json:
        described = to_dict(law, plan)
        print_json({**described, "seconds": round(time.perf_counter() - began, 3)})
        return
    typer.echo(str(plan.mechanism.noise))
    typer.echo(f"  scale: {scale(law, plan.mechanism.noise):.6g} times {law}")
    typer.echo(f"  {bounded('epsilon', plan.lower_epsilon, plan.epsilon, plan.accountant)}")
    typer.echo(f"  delta: {delta:g}")
    done = given.Account(
        ledger=Ledger().add(plan.mechanism, plan.steps), accountant=plan.accountant, plan=plan
    )
    typer.echo("\n".join(done.claim()))


def calibrated(
    release: given.Release, epsilon: float, delta: float, accountant: str
) -> tuple[Noise, PrivacyPlan]:
    """The law that was written and the plan that scales it."""
    import accountants
    from dpmech import Target

    mechanism = release.mechanism()  # refuses a relation or a sampling without a proof
    plan = accountants.calibrate(
        mechanism.noise,
        Target(epsilon=epsilon, delta=delta),
        steps=release.count,
        sampling=mechanism.sampling,
        sensitivity=mechanism.sensitivity,
        accountant=accountant,
    )
    return mechanism.noise, plan


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
        "std": noise.std,
        "mean_abs": noise.mean_abs,
        "plan": json.loads(plan.to_json()),
    }

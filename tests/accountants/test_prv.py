"""The adapter to prv-accountant: our masses in its composition give its own answers."""

import builtins
from typing import Any

import numpy as np
import pytest

from accountants import PLD, PRV
from accountants.exact import gaussian_delta, gaussian_epsilon
from dpmech import (
    Gaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    Noise,
    Sampling,
    Staircase,
    TruncatedLaplace,
)

prv_accountant = pytest.importorskip("prv_accountant")
MIXTURE = LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7))


def composed(noise: Noise, steps: int, rate: float = 1.0, eps_error: float = 0.01) -> PRV:
    run = Mechanism(noise=noise, sampling=Sampling(rate=rate))
    return PRV(eps_error=eps_error).compose(run, steps)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.0, 0.02, 200), (2.0, 0.5, 20)])
def test_the_packages_own_subsampled_gaussian(sigma: float, rate: float, steps: int) -> None:
    own = prv_accountant.PoissonSubsampledGaussianMechanism(
        sampling_probability=rate, noise_multiplier=sigma
    )
    accountant = prv_accountant.PRVAccountant(
        prvs=[own], eps_error=0.01, delta_error=1e-8, max_self_compositions=[steps]
    )
    low, _, high = accountant.compute_epsilon(1e-5, [steps])
    assert composed(Gaussian(sigma=sigma), steps, rate).epsilon_interval(1e-5) == pytest.approx(
        (low, high), abs=2e-5
    )


def test_the_interval_holds_the_exact_gaussian() -> None:
    for delta in (1e-3, 1e-6, 1e-10):
        low, high = composed(Gaussian(sigma=2.0), 10).epsilon_interval(delta)
        assert low < gaussian_epsilon(delta, 2.0, 10) < high
        assert high - low < 0.03
    for epsilon in (0.0, 0.5, 2.0):
        got, exact = (
            composed(Gaussian(sigma=2.0), 3).delta(epsilon),
            gaussian_delta(epsilon, 2.0, 3),
        )
        assert exact <= got <= 1.1 * exact + 1e-11


@pytest.mark.parametrize(
    ("steps", "rate", "delta"),
    [(1, 1.0, 1e-6), (10, 1.0, 1e-6), (100, 1.0, 1e-6), (1000, 0.01, 1e-6)],
)
def test_both_certify_the_mixture(steps: int, rate: float, delta: float) -> None:
    """Two composers, one by proof and one of another make: their intervals must meet."""
    run = Mechanism(noise=MIXTURE, sampling=Sampling(rate=rate))
    low, high = PLD().compose(run, steps).epsilon_interval(delta)
    other_low, other_high = composed(MIXTURE, steps, rate).epsilon_interval(delta)
    assert other_low < low <= high < other_high
    assert high - low < 2e-4 * high


@pytest.mark.parametrize(
    ("noise", "steps", "rate", "delta"),
    [
        (Laplace(b=2.0), 10, 0.1, 1e-5),
        (Staircase.least_mean_abs(1.0), 10, 0.1, 1e-6),
        (TruncatedLaplace.for_target(1.0, 1e-6), 10, 0.1, 1e-4),
        (TruncatedLaplace.for_target(1.0, 1e-6), 10, 1.0, 1e-4),
    ],
    ids=str,
)
def test_atoms_and_infinite_losses(noise: Noise, steps: int, rate: float, delta: float) -> None:
    run = Mechanism(noise=noise, sampling=Sampling(rate=rate))
    low, high = PLD().compose(run, steps).epsilon_interval(delta)
    other_low, other_high = composed(noise, steps, rate).epsilon_interval(delta)
    assert other_low < low <= high < other_high


def test_infinite_mass_beyond_delta_is_infinite() -> None:
    law = TruncatedLaplace.for_target(1.0, 1e-3)
    assert composed(law, 10).epsilon(1e-4) == np.inf


def test_deltas_its_fft_cannot_resolve_are_refused() -> None:
    with pytest.raises(ValueError, match=r"delta=1e-11 .*PLD"):
        composed(Gaussian(sigma=1.0), 1).epsilon(1e-11)


def test_grids_beyond_memory_are_refused() -> None:
    with pytest.raises(ValueError, match=r"eps_error=1e-06 .*PLD"):
        composed(Gaussian(sigma=1.0), 1000, eps_error=1e-6).epsilon(1e-5)


@pytest.mark.parametrize("bad", [0.0, -1.0, 2.0])
def test_bad_eps_error_is_named(bad: float) -> None:
    with pytest.raises(ValueError, match=f"eps_error={bad}"):
        PRV(eps_error=bad)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def hidden(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("prv_accountant"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(ValueError, match=r"dpmech\[peers\]"):
        composed(Gaussian(sigma=1.0), 1).epsilon(1e-5)

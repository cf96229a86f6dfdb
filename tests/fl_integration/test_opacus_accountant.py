"""Our accountant in Opacus's registry: state, calibration, hooks, and the bounds themselves."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("opacus")

from opacus.accountants import create_accountant
from opacus.accountants.utils import get_noise_multiplier

from accountants import PLD
from dpmech import Gaussian, Mechanism, Sampling
from fl_integration.opacus_accountant import (
    NAME,
    LedgerAccountant,
    PLDAccountant,
    register,
    sampled_rate,
)

# Its own warnings, about its own accountants and engine, are none of ours.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
DELTA = 1e-5


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()
    register()  # again changes nothing


def stepped(multiplier: float = 1.5, rate: float = 0.04, steps: int = 60) -> PLDAccountant:
    accountant = create_accountant(NAME)
    assert isinstance(accountant, PLDAccountant)
    for _ in range(steps):
        accountant.step(noise_multiplier=multiplier, sample_rate=rate)
    return accountant


def test_the_registry_knows_it() -> None:
    assert create_accountant(NAME).mechanism() == "dpmech"
    assert create_accountant(NAME) is not create_accountant(NAME)
    with pytest.raises(ValueError, match="Unexpected accounting mechanism"):
        create_accountant("dpmech-2")
    assert create_accountant("rdp").mechanism() == "rdp"  # the others are still theirs


def test_equal_steps_are_gathered() -> None:
    accountant = stepped(steps=3)
    accountant.step(noise_multiplier=2.0, sample_rate=0.04)
    accountant.step(noise_multiplier=1.5, sample_rate=0.04)
    assert accountant.history == [(1.5, 0.04, 3), (2.0, 0.04, 1), (1.5, 0.04, 1)]
    assert len(accountant) == 3
    assert accountant.ledger().runs == 5


def test_epsilon_is_the_pld_bound() -> None:
    run = Mechanism(noise=Gaussian(sigma=1.5), sampling=Sampling(rate=sampled_rate(0.04)))
    low, high = PLD().compose(run, 60).epsilon_interval(DELTA)
    assert stepped().get_epsilon(DELTA) == high
    assert stepped().get_epsilon(delta=DELTA, tolerance=1e-2) >= low
    assert create_accountant(NAME).get_epsilon(DELTA) == 0.0


def test_never_below_the_truth_nor_above_renyi() -> None:
    ours = create_accountant(NAME)
    theirs = {name: create_accountant(name) for name in ("rdp", "prv")}
    for accountant in (ours, *theirs.values()):
        for multiplier in (1.5, 1.2):
            for _ in range(50):
                accountant.step(noise_multiplier=multiplier, sample_rate=0.04)
    epsilon = ours.get_epsilon(DELTA)
    assert epsilon <= theirs["rdp"].get_epsilon(DELTA)
    assert epsilon <= theirs["prv"].get_epsilon(DELTA)  # an upper end, wider than ours
    assert epsilon >= PLD().compose_ledger(ours.ledger()).lower_epsilon(DELTA)


def test_state_round_trip() -> None:
    accountant = stepped()
    state = accountant.state_dict()
    assert state["history"] == accountant.history
    assert state["history"] is not accountant.history
    assert state["mechanism"] == NAME
    other = stepped(multiplier=3.0)
    assert other.state_dict() != state
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert other.get_epsilon(DELTA) == accountant.get_epsilon(DELTA)


def test_a_state_from_json_goes_on() -> None:
    accountant = create_accountant(NAME)
    accountant.load_state_dict(json.loads(json.dumps(stepped(steps=5).state_dict())))
    accountant.step(noise_multiplier=1.5, sample_rate=0.04)
    assert accountant.get_epsilon(DELTA) == stepped(steps=6).get_epsilon(DELTA)


@pytest.mark.parametrize(
    "state",
    [None, {}, {"history": []}, {"mechanism": NAME}, {"history": [], "mechanism": "rdp"}],
    ids=str,
)
def test_foreign_states_are_refused(state: dict[str, object] | None) -> None:
    with pytest.raises(ValueError, match=r"state.dict"):
        create_accountant(NAME).load_state_dict(state)


def test_the_hook_counts_steps() -> None:
    accountant = create_accountant(NAME)
    hook = accountant.get_optimizer_hook_fn(sample_rate=0.01)
    optimiser = SimpleNamespace(noise_multiplier=1.5, accumulated_iterations=2)
    for _ in range(3):
        hook(optimiser)
    assert accountant.history == [(1.5, 2 * hits(0.01), 3)]


def hits(rate: float) -> float:
    """How many of the numbers that torch.rand draws in fp32 are below a rate, which is its share.

    Compared as torch compares: the rate is rounded to fp32 first.
    """
    drawn = np.arange(2**24, dtype=np.float32) / np.float32(2**24)
    return np.count_nonzero(drawn < np.float32(rate)) / 2**24


@pytest.mark.parametrize("rate", [1 / 60000, 0.01, 1 / 3, 1e-9, 1.0])
def test_the_rate_is_the_one_that_is_sampled_and_never_below(rate: float) -> None:
    by_hand, by_calls, other = (PLDAccountant(), PLDAccountant(), LedgerAccountant())
    by_hand.history = [(1.0, rate, 2)]  # as Opacus's calibration does
    for _ in range(2):
        by_calls.step(noise_multiplier=1.0, sample_rate=rate)
        other.step(noise_multiplier=1.0, sample_rate=rate)
    for ledger in (by_hand.ledger(), by_calls.ledger(), other.ledger):
        ((release, count),) = ledger.entries
        assert count == 2
        assert hits(rate) <= release.sampling.rate <= max(rate, hits(rate))


def test_batches_of_one_step_are_each_sampled() -> None:
    accountant = PLDAccountant()
    hook = accountant.get_optimizer_hook_fn(sample_rate=1 / 60000)
    hook(SimpleNamespace(noise_multiplier=1.0, accumulated_iterations=3))
    ((release, _),) = accountant.ledger().entries
    assert release.sampling.rate >= 3 * hits(1 / 60000) > hits(3 / 60000)


def test_epsilon_is_that_of_the_rate_sampled() -> None:
    accountant = PLDAccountant()
    accountant.history = [(1.0, 1 / 60000, 20_000)]

    def epsilon(rate: float) -> float:
        run = Mechanism(noise=Gaussian(sigma=1.0), sampling=Sampling(rate=rate))
        return PLD().compose(run, 20_000).lower_epsilon(1e-7)

    assert accountant.get_epsilon(1e-7) >= epsilon(hits(1 / 60000)) > 1.001 * epsilon(1 / 60000)


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps", "delta"),
    [
        (8.0, 0.04, 500, 1e-5),
        (1.0, 0.01, 1000, 1e-5),
        (3.0, 0.1, 50, 1e-3),
        (0.5, 0.01, 100, 1e-8),
    ],
)
def test_calibration_ends_on_the_safe_side(
    epsilon: float, rate: float, steps: int, delta: float
) -> None:
    def calibrated(accountant: str) -> float:
        return get_noise_multiplier(
            target_epsilon=epsilon,
            target_delta=delta,
            sample_rate=rate,
            steps=steps,
            accountant=accountant,
            epsilon_tolerance=1e-3,
        )

    sigma = calibrated(NAME)
    run = Mechanism(noise=Gaussian(sigma=sigma), sampling=Sampling(rate=rate))
    spent = PLD().compose(run, steps).epsilon(delta)
    assert epsilon - 1e-3 <= spent <= epsilon
    if delta >= 1e-5:  # below, the orders of theirs do not reach so small an epsilon
        assert sigma <= calibrated("rdp")


def test_calibration_by_epochs() -> None:
    sigma = get_noise_multiplier(
        target_epsilon=2.0, target_delta=DELTA, sample_rate=0.01, epochs=10, accountant=NAME
    )
    # The optimum is .959102 (Truth of the accountants' golden file).
    assert 0.959102 <= sigma <= 0.97


def test_the_engine_trains_to_its_target() -> None:
    torch = pytest.importorskip("torch")
    from opacus import PrivacyEngine

    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(64, 3), torch.randn(64, 1))
    model = torch.nn.Linear(3, 1)
    engine = PrivacyEngine(accountant=NAME)
    model, optimiser, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=8),
        target_epsilon=3.0,
        target_delta=DELTA,
        epochs=2,
        max_grad_norm=1.0,
    )
    for features, labels in (batch for _ in range(2) for batch in loader):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(model(features), labels).backward()
        optimiser.step()
    assert 2.5 <= engine.get_epsilon(DELTA) <= 3.0


def test_no_noise_is_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match="sigma=0"):
        stepped(multiplier=0.0, steps=1).get_epsilon(DELTA)
    with pytest.raises(ValueError, match="rate=2"):
        stepped(rate=2.0, steps=1).get_epsilon(DELTA)
    assert math.isfinite(stepped(steps=1).get_epsilon(DELTA))


def test_without_opacus_the_extra_is_named() -> None:
    code = "import sys; sys.modules['opacus'] = None; import fl_integration.opacus_accountant"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "pip install 'dpmech[opacus]'" in ran.stderr

"""Noise of any law in Opacus: what is added, what is accounted for, and what is refused."""

from __future__ import annotations

import importlib
import io
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("opacus")

from opacus import PrivacyEngine
from opacus.schedulers import ExponentialGradClip, ExponentialNoise
from opacus.utils.batch_memory_manager import BatchMemoryManager
from opacus.validators.errors import UnsupportedModuleError
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from accountants import PLD, RDP, Ledger
from dpmech import (
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    Mechanism,
    NoDominatingPair,
    Noise,
    Sampling,
    Sensitivity,
    TruncatedLaplace,
)
from dpmech.discrete import DiscreteGaussian
from dpmech.guarantee import ApproximateDP
from dpmech.noise import Floats
from dpmech.spherical import SphericalGeneralizedGaussian
from fl_integration.opacus_accountant import sampled_rate
from fl_integration.opacus_engine import NoiseEngine
from fl_integration.tiny import SIZES

# Warnings of torch about hooks on inputs without gradients, and of Opacus about itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
MODES = ("hooks", "functorch", "ew", "ghost")
WHOLE = ("hooks", "functorch", "ew")  # gradients of single examples exist
C, N, DELTA = 0.5, 48, 1e-5
QUIET = Gaussian(sigma=1e-7)
LAWS = (Gaussian(sigma=2.0), Laplace(b=1.5), GeneralizedGaussian(scale=2.0, beta=1.4))


def wide() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(30, 60), nn.Tanh(), nn.Linear(60, 2))


def data(features: int = 30) -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, features, generator=generator)
    return TensorDataset(x, torch.arange(N) % 2)


class Run:
    """A model made private, and its training step."""

    def __init__(
        self, mode: str, noise: Noise, *, model: nn.Module | None = None, **options: Any
    ) -> None:
        self.plain = model or wide()
        self.engine = NoiseEngine()
        inner = torch.optim.SGD([p for p in self.plain.parameters() if p.requires_grad], lr=0.0)
        options = {"criterion": nn.CrossEntropyLoss(), "max_grad_norm": C, **options}
        made = self.engine.make_private(
            module=self.plain,
            optimizer=inner,
            data_loader=options.pop("data_loader", DataLoader(data(), batch_size=12)),
            noise=noise,
            grad_sample_mode=mode,
            **options,
        )
        self.model, self.optimizer, *criterion, self.loader = made
        self.criterion = criterion[0] if criterion else options["criterion"]
        self.params = [p for p in self.plain.parameters() if p.requires_grad]

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        if len(x):
            self.criterion(self.model(x), y).backward()
        self.optimizer.step()

    def released(self) -> Tensor:
        """What the last step released: the noisy sum, flat."""
        flat = torch.cat([p.grad.double().flatten() for p in self.params])
        return flat * self.optimizer.expected_batch_size


def naive_sum(model: nn.Module, x: Tensor, y: Tensor, *, clip: float = C) -> Tensor:
    """The clipped sum, example by example."""
    params = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in params), dtype=torch.float64)
    for a, b in zip(x, y, strict=True):
        loss = F.cross_entropy(model(a[None]), b[None])
        g = torch.cat([v.double().flatten() for v in torch.autograd.grad(loss, params)])
        total += g * min(1.0, clip / float(g.norm()))
    return total


def pvalue(draws: Tensor, law: Noise) -> float:
    return float(stats.kstest(draws.numpy(), law.cdf).pvalue)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "noise",
    [Gaussian(sigma=2.0), Laplace(b=1.5), GeneralizedGaussian(scale=2.0, beta=1.4)],
    ids=str,
)
def test_the_noise_added_is_the_law_in_units_of_the_clip(mode: str, noise: Noise) -> None:
    run = Run(mode, noise, noise_generator=torch.Generator().manual_seed(3))
    x, y = data()[:11]
    total = naive_sum(wide(), x, y)
    run.step(x, y)
    added = (run.released() - total) / C
    assert pvalue(added, noise) > 1e-3
    assert pvalue(added, noise.scaled(2 / 3)) < 1e-9
    assert pvalue(added, noise.scaled(3 / 2)) < 1e-9
    assert run.engine.ledger.entries == ((run.optimizer.release, 1),)
    assert run.optimizer.release.noise == noise


def radius_cdf(law: SphericalGeneralizedGaussian) -> Callable[[Floats], Floats]:
    edges, masses, d = law.shells.edges, law.shells.masses, law.dim
    below = np.append(0.0, np.cumsum(masses))

    def cdf(r: Floats) -> Floats:
        i = np.clip(np.searchsorted(edges, r) - 1, 0, len(masses) - 1)
        share = (r**d - edges[i] ** d) / (edges[i + 1] ** d - edges[i] ** d)
        return np.where(r >= edges[-1], 1.0, below[i] + masses[i] * np.clip(share, 0, 1))

    return cdf


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_a_law_of_vectors_is_drawn_once_for_all_parameters(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    dim = sum(p.numel() for p in model.parameters())
    # So heavy a tail that the coordinates of one vector are large together.
    law = SphericalGeneralizedGaussian(scale=1.0, beta=0.5, dim=dim, step=0.5)
    run = Run(
        mode,
        law,
        model=model,
        noise_generator=torch.Generator().manual_seed(4),
        data_loader=DataLoader(data(3), batch_size=12),
    )
    vectors = []
    for _ in range(600):
        run.step(torch.empty(0, 3), torch.empty(0, dtype=torch.long))
        vectors.append(run.released() / C)
    drawn = torch.stack(vectors)
    radii = drawn.norm(dim=1).numpy()
    assert stats.kstest(radii, radius_cdf(law)).pvalue > 1e-3
    assert stats.kstest(radii * 1.5, radius_cdf(law)).pvalue < 1e-9
    first = sum(p.numel() for p in model[0].parameters())
    together = stats.spearmanr(drawn[:, :first].norm(dim=1), drawn[:, first:].norm(dim=1))
    assert together.statistic > 0.5  # a draw a tensor would make the two layers independent
    assert run.engine.ledger.runs == 600


@pytest.mark.parametrize("mode", MODES)
def test_the_sum_is_that_of_the_clipped_gradients(mode: str) -> None:
    run, (x, y) = Run(mode, QUIET), data()[:20]
    run.step(x, y)
    total = naive_sum(wide(), x, y)
    margin = 1.1e-3 if mode == "ghost" else 1e-5
    assert float((run.released() - total).norm()) <= margin * float(total.norm())
    assert float(total.norm()) > 2 * C  # something was clipped, and not all to nothing


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1e9, 1e19, math.inf, math.nan])
def test_one_example_moves_the_sum_by_the_clip_at_most(mode: str, size: float) -> None:
    run, (x, y) = Run(mode, QUIET), data()[:6]
    run.step(x, y)
    without = run.released()
    strange = torch.full((1, 30), size)
    strange[0, 1::2] *= -0.5
    more = torch.cat([x, strange]), torch.cat([y, y[:1]])
    if mode == "ghost" and not math.isfinite(size):
        with pytest.raises(ValueError, match="ghost mode cannot leave one example out"):
            run.step(*more)
        assert run.engine.ledger.runs == 1
        return
    run.step(*more)
    assert bool(torch.isfinite(run.released()).all())
    assert float((run.released() - without).norm()) <= C * (1 + 1e-5)


def test_opacus_itself_spreads_a_nan_over_the_model() -> None:
    model, loader = wide(), DataLoader(data(), batch_size=N)
    wrapped, optimizer, _ = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=C,
    )
    x, y = data()[:6]
    F.cross_entropy(wrapped(torch.cat([x, x[:1] * math.nan])), torch.cat([y, y[:1]])).backward()
    optimizer.step()
    assert not any(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("noise", [Gaussian(sigma=1.1), Laplace(b=6.0)], ids=str)
def test_epsilon_is_ours(mode: str, noise: Noise) -> None:
    run = Run(mode, noise)
    for _ in range(3):
        for x, y in run.loader:
            run.step(x, y)
    dim = sum(p.numel() for p in wide().parameters())
    release = Mechanism(
        noise=noise,
        sensitivity=Sensitivity(norm="l2", bound=1.0, dim=dim),
        sampling=Sampling(rate=0.25),
    )
    assert run.engine.ledger == Ledger().add(release, 12)
    found = run.engine.get_epsilon(DELTA)
    if isinstance(noise, Gaussian):
        lower, upper = PLD(tolerance=1e-4).compose(release, 12).epsilon_interval(DELTA)
        assert lower is not None
        assert lower <= found <= upper
    else:
        assert found == RDP().compose(release, 12).epsilon(DELTA)
    assert NoiseEngine().get_epsilon(DELTA) == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_is_a_step_with_noise(mode: str) -> None:
    noise = Gaussian(sigma=2.0)
    run = Run(mode, noise, noise_generator=torch.Generator().manual_seed(5))
    x, y = data()[:0]
    run.step(x, y)
    assert pvalue(run.released() / C, noise) > 1e-3
    assert run.engine.ledger.runs == 1
    if mode != "ew":  # expanded weights refuse to run on nobody
        run.optimizer.zero_grad()
        run.criterion(run.model(x), y).backward()
        run.optimizer.step()
        assert pvalue(run.released() / C, noise) > 1e-3
        assert run.engine.ledger.runs == 2


def test_the_loader_draws_empty_batches_and_all_are_counted() -> None:
    few = TensorDataset(torch.randn(4, 30), torch.tensor([0, 1, 0, 1]))
    run = Run("hooks", Gaussian(sigma=1.0), data_loader=DataLoader(few, batch_size=1))
    sizes = []
    for _ in range(10):
        for x, y in run.loader:
            sizes.append(len(x))
            run.step(x, y)
    assert 0 in sizes
    assert run.engine.ledger.runs == len(sizes) == 40


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ghost"])
def test_a_large_batch_in_parts_is_one_release(mode: str) -> None:
    noise = Gaussian(sigma=2.0)
    run = Run(
        mode,
        noise,
        noise_generator=torch.Generator().manual_seed(6),
        data_loader=DataLoader(data(), batch_size=24, generator=torch.Generator().manual_seed(7)),
    )
    totals, steps = [torch.zeros(1)], 0
    manager = BatchMemoryManager(
        data_loader=run.loader, max_physical_batch_size=5, optimizer=run.optimizer
    )
    pooled = []
    with manager as parts:
        for x, y in parts:
            assert len(x) <= 5
            totals.append(naive_sum(wide(), x, y))
            run.step(x, y)
            if not run.optimizer._is_last_step_skipped:
                pooled.append((run.released() - sum(totals)) / C)
                totals, steps = [torch.zeros(1)], steps + 1
    assert steps == run.engine.ledger.runs == 2
    assert pvalue(torch.cat(pooled), noise) > 1e-3
    assert pvalue(torch.cat(pooled), noise.scaled(math.sqrt(4))) < 1e-9


def test_gaussian_noise_trains_as_opacus_does() -> None:
    def opacus() -> Tensor:
        model = wide()
        wrapped, optimizer, _ = PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            data_loader=DataLoader(data(), batch_size=12),
            noise_multiplier=2.0,
            max_grad_norm=C,
        )
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        return torch.cat([p.grad.flatten() for p in model.parameters()]).double()

    x, y = data()[:11]
    run = Run("hooks", Gaussian(sigma=2.0), noise_generator=torch.Generator().manual_seed(8))
    run.step(x, y)
    torch.manual_seed(9)
    theirs, ours = opacus(), run.released() / 12
    assert stats.ks_2samp(theirs.numpy(), ours.numpy()).pvalue > 1e-3
    assert float(theirs.std()) == pytest.approx(2.0 * C / 12, rel=0.1)


def test_the_noise_is_fresh_unless_a_generator_is_given() -> None:
    def first(**options: Any) -> Tensor:
        run = Run("hooks", Gaussian(sigma=1.0), **options)
        torch.manual_seed(0)
        run.step(*data()[:0])
        return run.released()

    assert not torch.equal(first(), first())
    again = [first(noise_generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*again)


def test_the_batches_are_drawn_on_entropy_of_their_own() -> None:
    def batches(**options: Any) -> list[list[int]]:
        run = Run("hooks", QUIET, data_loader=DataLoader(data(), batch_size=4, **options))
        torch.manual_seed(0)
        return list(run.loader.batch_sampler)

    assert batches() != batches()
    again = [batches(generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize("rate", [1.0, 0.5, 1 / 3, 1 / 49, 1e-3, 7e-8, 1e-9])
def test_the_rate_accounted_is_the_one_sampled_at(rate: float) -> None:
    # every number that torch.rand can draw in fp32, compared as Opacus's sampler compares
    hits = sum(
        int((torch.arange(i, i + (1 << 20), dtype=torch.float64) / 2**24).float().lt(rate).sum())
        for i in range(0, 1 << 24, 1 << 20)
    )
    assert hits / 2**24 <= sampled_rate(rate) <= max(rate, hits / 2**24)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"nosie": Gaussian(sigma=1.0)}, TypeError, "nosie"),
    ({"noise_multiplier": 1.0}, TypeError, "noise_multiplier"),
    ({"target_epsilon": 1.0}, TypeError, "target_epsilon"),
    ({"clipping": "per_layer"}, ValueError, "per_layer"),
    ({"clipping": "adaptive"}, ValueError, "quantile"),
    ({"poisson_sampling": False}, ValueError, "poisson_sampling=False"),
    ({"rand_on_empty": True}, ValueError, "rand_on_empty=True"),
    ({"grad_sample_mode": "ghost_fsdp"}, ValueError, "ghost_fsdp"),
    ({"grad_sample_mode": "no_op"}, ValueError, "no_op"),
    ({"grad_sample_mode": "ghost", "criterion": None}, ValueError, "criterion=None"),
    ({"criterion": nn.CrossEntropyLoss(reduction="sum")}, ValueError, "reduction='sum'"),
    ({"loss_reduction": "sum"}, ValueError, "loss_reduction='sum'"),
    ({"loss_reduction": "none"}, ValueError, "loss_reduction='none'"),
    ({"max_grad_norm": 0.0}, ValueError, r"max_grad_norm=0\.0"),
    ({"max_grad_norm": [1.0, 1.0]}, (ValueError, TypeError), ""),
    ({"noise": DiscreteGaussian(sigma=1.0)}, NoDominatingPair, "whole numbers"),
    ({"noise": TruncatedLaplace(b=1.0, bound=5.0)}, NoDominatingPair, "no finite R"),
    ({"noise": ApproximateDP(epsilon=1.0)}, ValueError, "name a law"),
    ({"noise": SphericalGeneralizedGaussian(scale=1.0, beta=1.0, dim=7)}, ValueError, "dim=7"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_has_no_proof_is_refused_before_the_module_is_touched(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model, engine = wide(), NoiseEngine()
    asked = {
        "noise": Gaussian(sigma=1.0),
        "max_grad_norm": C,
        "criterion": nn.CrossEntropyLoss(),
        **options,
    }
    with pytest.raises(error, match=message):
        engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(data(), batch_size=12),
            **asked,
        )
    assert not hasattr(model, "autograd_grad_sample_hooks")


def test_other_engines_modules_and_optimisers_are_refused() -> None:
    with pytest.raises(ValueError, match="accountant='rdp'"):
        NoiseEngine(accountant="rdp")
    with pytest.raises(ValueError, match="secure_mode=True"):
        NoiseEngine(secure_mode=True)

    def made(model: nn.Module, params: Any) -> None:
        NoiseEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(params, lr=0.1),
            data_loader=DataLoader(data(), batch_size=12),
            noise=Gaussian(sigma=1.0),
            max_grad_norm=C,
        )

    with pytest.raises(ValueError, match="4 that are not"):
        made(wide(), wide().parameters())
    several = object.__new__(DistributedDataParallel)
    nn.Module.__init__(several)
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        made(several, wide().parameters())
    mixing = nn.Sequential(nn.Linear(30, 4), nn.BatchNorm1d(4))
    with pytest.raises(UnsupportedModuleError, match="BatchNorm"):
        made(mixing, mixing.parameters())


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_schedulers_and_late_changes_are_refused(mode: str) -> None:
    run = Run(mode, Gaussian(sigma=1.0))
    with pytest.raises(ValueError, match="noise schedulers"):
        ExponentialNoise(run.optimizer, gamma=0.9)
    with pytest.raises(ValueError, match=r"noise_multiplier=0\.1"):
        run.optimizer.noise_multiplier = 0.1
    scheduler = ExponentialGradClip(run.optimizer, gamma=0.9)
    with pytest.raises(ValueError, match=r"the clip is 0\.5"):
        scheduler.step()
    next(iter(run.params)).requires_grad_(False)
    with pytest.raises(ValueError, match="frozen, freed or added"):
        run.step(*data()[:0])


def test_gradients_of_two_batches_in_one_step_are_refused() -> None:
    x, y = data()[:4]
    for mode in WHOLE:
        run = Run(mode, Gaussian(sigma=1.0))
        run.criterion(run.model(x), y).backward()
        with pytest.raises((ValueError, RuntimeError), match="accumul"):
            run.criterion(run.model(x), y).backward()
    run = Run("hooks", Gaussian(sigma=1.0))
    run.model.allow_grad_accumulation()
    for _ in range(2):
        run.criterion(run.model(x), y).backward()
    with pytest.raises(ValueError, match="Expected 2 batches in one step to be 1"):
        run.optimizer.step()
    run = Run("hooks", Gaussian(sigma=1.0))
    run.step(x, y)
    with pytest.raises(ValueError, match="zero_grad"):
        run.optimizer.step()


def test_ghost_mode_takes_only_what_its_criterion_clipped() -> None:
    x, y = data()[:4]
    run = Run("ghost", Gaussian(sigma=1.0))

    def refused(*losses: Any) -> None:
        run.optimizer.zero_grad()
        for loss in losses:
            loss.backward()
        with pytest.raises(ValueError, match="others are not clipped"):
            run.optimizer.step()

    refused(F.cross_entropy(run.model(x), y))
    refused(run.criterion(run.model(x), y) * 3.0)
    refused(run.criterion(run.model(x), y), sum(p.square().sum() for p in run.params))
    assert run.engine.ledger.runs == 0
    run.step(x, y)
    with pytest.raises(ValueError, match="others are not clipped"):
        run.optimizer.step()
    run.model.max_grad_norm = 10.0
    with pytest.raises(ValueError, match=r"max_grad_norm=10\.0"):
        run.step(x, y)


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ghost"])
def test_a_batch_that_the_hooks_did_not_see_is_refused(mode: str) -> None:
    # Opacus's ghost mode takes the norms of the batch before, if that was as large.
    run, (x, y) = Run(mode, Gaussian(sigma=1.0)), data()[:4]
    run.step(x, y)
    run.model.disable_hooks()
    with pytest.raises(ValueError, match="enable the hooks"):
        run.step(1e9 * x, y)
    run.model.enable_hooks()
    run.model.eval()
    with pytest.raises((ValueError, IndexError)):  # Opacus finds no activations
        run.step(1e9 * x, y)
    assert run.engine.ledger.runs == 1


class Deep(nn.Module):
    """A linear layer on inputs of four axes, for which Opacus has no ghost norms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(-1, 3, 2, 5)).mean((1, 2))


def test_ghost_mode_refuses_layers_without_norms() -> None:
    with pytest.raises(ValueError, match="four axes"):
        Run("ghost", Gaussian(sigma=1.0), model=Deep()).step(*data()[:4])
    run, (x, y) = Run("hooks", QUIET, model=Deep()), data()[:4]
    run.step(x, y)
    assert torch.allclose(run.released(), naive_sum(Deep(), x, y), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_losses_may_be_sums(mode: str) -> None:
    criterion = nn.CrossEntropyLoss(reduction="sum")
    run = Run(mode, QUIET, criterion=criterion, loss_reduction="sum")
    x, y = data()[:7]
    run.step(x, y)
    released = torch.cat([p.grad.double().flatten() for p in run.params])
    total = naive_sum(wide(), x, y)
    assert float((released - total).norm()) <= 1.1e-3 * float(total.norm())


class Folded(nn.Module):
    """Tokens in the place of examples: a clip of theirs is none of the examples'."""

    def __init__(self, *, position: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 2)
        self.position = nn.Embedding(3, 10) if position else None

    def forward(self, x: Tensor) -> Tensor:
        if self.position is None:
            return self.layer(x.reshape(-1, 10)).view(-1, 3, 2).mean(1)
        return self.layer(x.view(-1, 3, 10) + self.position(torch.arange(3)[None])).mean(1)


@pytest.mark.parametrize("mode", MODES)
def test_a_clip_of_tokens_in_the_place_of_examples_is_refused(mode: str) -> None:
    message = "parts of examples" if mode != "ew" else "batch"  # ew finds out by itself
    with pytest.raises((ValueError, RuntimeError), match=message):
        Run(mode, QUIET, model=Folded()).step(*data()[:4])


def test_a_layer_that_sees_no_examples_is_refused() -> None:
    # Its one row is a sum over the batch, which no clip of it makes insensitive to an example.
    with pytest.raises(ValueError, match=r"\[1, 4\]"):
        Run("hooks", QUIET, model=Folded(position=True)).step(*data()[:4])
    with pytest.raises((ValueError, RuntimeError)):
        Run("ghost", QUIET, model=Folded(position=True)).step(*data()[:4])


class Tagger(nn.Module):
    """A label for each of three tokens of ten numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(-1, 3, 10))


def test_ghost_mode_wants_one_loss_an_example() -> None:
    # Opacus multiplies a batch of one by its single weight, whatever the losses' shape.
    run, (x, _) = Run("ghost", Gaussian(sigma=1.0), model=Tagger()), data()[:1]
    labels = torch.tensor([0, 1, 1])
    run.optimizer.zero_grad()
    with pytest.raises(ValueError, match=r"one loss for each of 1 examples.*\(3,\)"):
        run.criterion(run.model(x).flatten(0, 1), labels).backward()
    logits = run.model(x)
    run.criterion(logits.flatten(0, 1), labels, shape=logits.shape).backward()
    run.optimizer.step()
    square = Run("ghost", QUIET, criterion=nn.MSELoss())
    x, _ = data()[:5]
    square.step(x, torch.ones(5, 2))
    bounded = square.released()
    assert C < float(bounded.norm()) <= 5 * C


@pytest.mark.parametrize("noise", [Gaussian(sigma=1.0), Laplace(b=1.0)], ids=str)
def test_calibration_counts_what_was_spent(noise: Noise) -> None:
    engine = NoiseEngine()

    def train(target: float) -> None:
        model = wide()
        wrapped, optimizer, loader = engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(data(), batch_size=12),
            noise=noise,
            max_grad_norm=C,
            target_epsilon=target,
            target_delta=DELTA,
            epochs=2,
        )
        for _ in range(2):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(wrapped(x), y).backward()
                optimizer.step()

    train(3.0)
    assert 2.99 <= engine.get_epsilon(DELTA) <= 3.0
    train(4.0)
    assert 3.98 <= engine.get_epsilon(DELTA) <= 4.0  # both runs together
    assert engine.ledger.runs == 16
    with pytest.raises(TypeError, match="noise_multiplier"):
        engine.make_private_with_epsilon(
            module=wide(), optimizer=torch.optim.SGD(wide().parameters(), lr=0.1),
            data_loader=DataLoader(data()), noise=noise, max_grad_norm=C, target_epsilon=1.0,
            target_delta=DELTA, epochs=1, noise_multiplier=1.0,
        )  # fmt: skip


def lora() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        **SIZES, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = get_peft_model(
        BertForSequenceClassification(config),
        LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"]),
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    return model.train()


def test_lora_trains_in_every_mode() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(3, 500, (16, 8), generator=generator)
    y, sums = torch.arange(16) % 3, []
    for mode in ("hooks", "functorch", "ghost"):
        loader = DataLoader(TensorDataset(x, y), batch_size=4)
        run = Run(mode, QUIET, model=lora(), data_loader=loader, max_grad_norm=0.2)
        frozen = {n: p.clone() for n, p in run.plain.named_parameters() if not p.requires_grad}
        run.optimizer.param_groups[0]["lr"] = 0.1
        for batch in ((x, y), (x[:0], y[:0])):
            run.optimizer.zero_grad()
            if len(batch[0]):  # BERT does not run on an empty batch
                run.criterion(run.model(input_ids=batch[0]).logits, batch[1]).backward()
                run.optimizer.step()
                sums.append(run.released())
            else:
                run.optimizer.step()
        assert run.engine.ledger.runs == 2
        assert run.optimizer.release.sensitivity.dim == len(sums[-1]) == 611
        assert all(
            torch.equal(p, frozen[n]) for n, p in run.plain.named_parameters() if n in frozen
        )
    assert 0.2 < float(sums[0].norm()) <= 16 * 0.2
    for other in sums[1:]:
        assert float((other - sums[0]).norm()) <= 2e-3 * float(sums[0].norm())


def test_a_checkpoint_keeps_the_ledger() -> None:
    run, file = Run("hooks", Laplace(b=3.0)), io.BytesIO()
    run.step(*data()[:5])
    run.engine.save_checkpoint(path=file, module=run.model, optimizer=run.optimizer)
    file.seek(0)
    other = Run("hooks", Gaussian(sigma=1.0))
    other.engine.load_checkpoint(path=file, module=other.model, optimizer=other.optimizer)
    other.step(*data()[:5])
    assert [m.noise for m, _ in other.engine.ledger.entries] == [
        Laplace(b=3.0),
        Gaussian(sigma=1.0),
    ]
    assert len(other.engine.accountant) == 2


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_without_a_wrapper_the_model_stays_as_it_is(mode: str) -> None:
    run = Run(mode, QUIET, wrap_model=False)
    x, y = data()[:6]
    run.model = run.plain
    run.step(x, y)
    total = naive_sum(wide(), x, y)
    assert float((run.released() - total).norm()) <= 1.1e-3 * float(total.norm())


@pytest.mark.parametrize("name", ["opacus_engine", "opacus_ghost", "opacus_optimizers"])
def test_without_opacus_the_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [m for m in sys.modules if m.startswith(("opacus.", "fl_integration.opacus"))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ImportError, match=r"pip install 'dpmech\[opacus\]'"):
        importlib.import_module(f"fl_integration.{name}")

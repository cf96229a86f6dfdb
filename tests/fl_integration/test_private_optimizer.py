"""Private training in plain PyTorch: the clipped sum, the noise on it, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
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
)
from dpmech.discrete import DiscreteGaussian
from dpmech.spherical import SphericalGeneralizedGaussian
from fl_integration.ghost import SPREAD
from fl_integration.ghost_norms import Pass, sizes_of
from fl_integration.private_optimizer import (
    ExampleGradients,
    GhostGradients,
    PoissonBatches,
    PrivateOptimizer,
    VmapGradients,
    poisson_loader,
)
from fl_integration.tiny import SIZES

C, N, DELTA = 0.5, 40, 1e-5
QUIET = Gaussian(sigma=1e-7)
LAWS = (Gaussian(sigma=2.0), Laplace(b=1.5), GeneralizedGaussian(scale=2.0, beta=1.4))


def entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none")


class Words(nn.Module):
    """Every kind of layer: padding, a layer called twice, few places and many."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.norm, self.twice = nn.LayerNorm(8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)
        with torch.no_grad():
            self.norm.weight.normal_()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.embedding(x))
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        return self.out(h.mean(1))


def wide() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(30, 60), nn.Tanh(), nn.Linear(60, 2))


def numbers(n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 30, generator=generator), torch.arange(n) % 2


def words(n: int = N, places: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 20, (n, places), generator=generator), torch.arange(n) % 3


def vmapped(model: nn.Module, loss: Callable[..., Tensor] = entropy) -> ExampleGradients:
    return VmapGradients(model=model, loss=loss, chunk=7)


def ghost(model: nn.Module, loss: Callable[..., Tensor] = entropy) -> ExampleGradients:
    return GhostGradients(model, loss, chunk=7)


WAYS = pytest.mark.parametrize("way", [vmapped, ghost], ids=["vmap", "ghost"])


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def naive_sum(model: nn.Module, x: Tensor, y: Tensor, *, clip: float = C) -> Tensor:
    """The clipped sum, example by example."""
    params = trained(model)
    total = torch.zeros(sum(p.numel() for p in params), dtype=torch.float64)
    for a, b in zip(x, y, strict=True):
        loss = entropy(model, a[None], b[None])[0]
        g = torch.cat([v.double().flatten() for v in torch.autograd.grad(loss, params)])
        total += g * min(1.0, clip / float(g.norm()))
    return total


def private(
    model: nn.Module, way: Any, noise: Noise, *, lr: float = 0.0, clip: float = C, **options: Any
) -> PrivateOptimizer:
    loader = poisson_loader(TensorDataset(*numbers()), rate=0.25, steps=4)
    inner = torch.optim.SGD(trained(model), lr=lr)
    return PrivateOptimizer(inner, way(model), loader, noise=noise, clip=clip, **options)


def released(model: nn.Module, expected: float = 0.25 * N) -> Tensor:
    return torch.cat([p.grad.double().flatten() for p in trained(model)]) * expected


def pvalue(draws: Tensor, law: Noise) -> float:
    return float(stats.kstest(draws.numpy(), law.cdf).pvalue)


@WAYS
@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_the_noise_added_is_the_law_in_units_of_the_clip(way: Any, noise: Noise) -> None:
    model, (x, y) = wide(), numbers(11)
    optimizer = private(model, way, noise, generator=torch.Generator().manual_seed(4))
    optimizer.step(x, y)
    added = (released(model) - naive_sum(wide(), x, y)) / C
    assert pvalue(added, noise) > 1e-3
    assert pvalue(added, noise.scaled(2 / 3)) < 1e-9
    assert pvalue(added, noise.scaled(3 / 2)) < 1e-9


@WAYS
def test_a_law_of_vectors_is_drawn_once_for_all_parameters(way: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    law = SphericalGeneralizedGaussian(scale=1.0, beta=0.5, dim=26, step=0.5)
    optimizer = private(model, way, law, generator=torch.Generator().manual_seed(5))
    vectors = []
    for _ in range(400):
        optimizer.step(torch.empty(0, 3), torch.empty(0, dtype=torch.long))
        vectors.append(released(model) / C)
    drawn = torch.stack(vectors)
    reference = law.sample((4000, 26), np.random.default_rng(0))
    radii = drawn.norm(dim=1).numpy()
    expected = np.linalg.norm(reference, axis=1)
    assert stats.ks_2samp(radii, expected).pvalue > 1e-3
    assert stats.ks_2samp(1.5 * radii, expected).pvalue < 1e-9
    together = stats.spearmanr(drawn[:, :16].norm(dim=1), drawn[:, 16:].norm(dim=1))
    assert together.statistic > 0.5


@WAYS
@pytest.mark.parametrize("places", [2, 6, 40])
@pytest.mark.parametrize("clip", [0.01, 0.5, 100.0])
def test_the_sum_is_that_of_the_clipped_gradients(way: Any, places: int, clip: float) -> None:
    model, (x, y) = Words(), words(20, places)
    found = way(model).clipped_sum(trained(model), (x, y), clip=clip)
    total = naive_sum(model, x, y, clip=clip)
    assert found.dtype == torch.float64
    assert float((found - total).norm()) <= 1e-5 * float(total.norm())


@WAYS
@pytest.mark.parametrize(
    "frozen", ["twice.bias", "twice.weight", "norm.bias", "norm.weight", "embedding.weight"]
)
def test_frozen_parameters_are_left_out(way: Any, frozen: str) -> None:
    model, (x, y) = Words(), words(9)
    model.get_parameter(frozen).requires_grad_(False)
    found = way(model).clipped_sum(trained(model), (x, y), clip=0.1)
    total = naive_sum(model, x, y, clip=0.1)
    assert float((found - total).norm()) <= 1e-5 * float(total.norm())


@WAYS
@pytest.mark.parametrize("size", [1e9, 1e19, 1e30, math.inf, math.nan])
def test_one_example_moves_the_sum_by_the_clip_at_most(way: Any, size: float) -> None:
    model, (x, y) = wide(), numbers(6)
    strange = torch.full((1, 30), size)
    strange[0, 1::2] *= -0.5
    gradients = way(model)
    without = gradients.clipped_sum(trained(model), (x, y), clip=C)
    more = torch.cat([x, strange]), torch.cat([y, y[:1]])
    found = gradients.clipped_sum(trained(model), more, clip=C)
    assert float((found - without).norm()) <= C * (1 + 1e-7)
    if not math.isfinite(size):
        assert torch.allclose(found, without, atol=1e-7)


@pytest.mark.parametrize("places", [2, 40])
def test_norms_are_bounds_where_places_all_but_cancel(places: int) -> None:
    # whole numbers, so that the true norm is known: 2^27 wide places that cancel to a few units
    rng, layer, short = np.random.default_rng(0), nn.Linear(8, 8, bias=False), 0
    for _ in range(40):
        inputs = rng.integers(1 << 26, 1 << 27, 8)[None] + rng.integers(-1, 2, (places, 8))
        signs = np.where(np.arange(places) % 2, -1, 1)[:, None] * rng.integers(1, 3, 8)[None]
        truth = int(((signs.T.astype(object) @ inputs.astype(object)) ** 2).sum())
        seen, back = (torch.from_numpy(v)[None].double() for v in (inputs, signs))
        squares, _ = sizes_of([Pass(layer=layer, seen=seen, back=back)])
        assert float(squares) >= truth
        short += float(((seen @ seen.mT) * (back @ back.mT)).sum()) < truth
    assert short > 3 or places > 2  # what the products alone say is too little


def test_an_example_that_cancels_beyond_what_sums_can_keep_is_scaled_down() -> None:
    layer, wave = nn.Linear(4, 4, bias=False), 1e5

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return wave * (model(x[:, :, 0]) - model(x[:, :, 1])).sum(1)

    x = torch.ones(1, 4, 2)
    x[0, 0, 1] += 1e-5
    found = ghost(layer, loss).clipped_sum(trained(layer), (x,), clip=C)
    mass = 2 * wave * 4  # |g| = 2 wave and |a| = 2, at two places
    truth = wave * 1e-5 * 2
    assert float(found.norm()) == pytest.approx(C * truth * SPREAD / mass, rel=0.01)


@WAYS
@pytest.mark.parametrize("noise", [Gaussian(sigma=1.1), Laplace(b=6.0)], ids=str)
def test_epsilon_is_ours(way: Any, noise: Noise) -> None:
    model = wide()
    loader = poisson_loader(TensorDataset(*numbers()), rate=0.25, steps=12)
    optimizer = PrivateOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), way(model), loader, noise=noise, clip=C
    )
    assert optimizer.epsilon(DELTA) == 0.0
    for batch in loader:
        optimizer.step(*batch)
    release = Mechanism(
        noise=noise,
        sensitivity=Sensitivity(norm="l2", bound=1.0, dim=1982),
        sampling=Sampling(rate=0.25),
    )
    assert optimizer.release == release
    assert optimizer.ledger == Ledger().add(release, 12)
    if isinstance(noise, Gaussian):
        lower, upper = PLD(tolerance=1e-4).compose(release, 12).epsilon_interval(DELTA)
        assert lower is not None
        assert lower <= optimizer.epsilon(DELTA) <= upper
    else:
        assert optimizer.epsilon(DELTA) == RDP().compose(release, 12).epsilon(DELTA)


@WAYS
def test_an_empty_batch_is_a_step_with_noise(way: Any) -> None:
    few = TensorDataset(torch.randn(3, 30), torch.tensor([0, 1, 0]))
    loader = poisson_loader(few, rate=0.3, steps=30, rng=np.random.default_rng(0))
    model, noise, empty = wide(), Gaussian(sigma=2.0), 0
    optimizer = PrivateOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0),
        way(model),
        loader,
        noise=noise,
        clip=C,
        generator=torch.Generator().manual_seed(6),
    )
    for x, y in loader:
        optimizer.step(x, y)
        if len(x) == 0:
            assert x.shape == (0, 30)
            assert pvalue(released(model, 0.9) / C, noise) > 1e-4
            empty += 1
    assert empty > 3
    assert optimizer.ledger.runs == 30
    optimizer.step()
    assert optimizer.ledger.runs == 31


def test_the_noise_is_fresh_unless_a_generator_is_given() -> None:
    def first(**options: Any) -> Tensor:
        model = wide()
        optimizer = private(model, vmapped, Gaussian(sigma=1.0), **options)
        torch.manual_seed(0)
        optimizer.step()
        return released(model)

    assert not torch.equal(first(), first())
    again = [first(generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*again)


@WAYS
def test_with_a_wide_clip_and_hardly_any_noise_it_is_sgd(way: Any) -> None:
    model, plain, (x, y) = wide(), wide(), numbers(9)
    optimizer = private(model, way, Gaussian(sigma=1e-12), lr=0.3, clip=1e3)
    inner = torch.optim.SGD(plain.parameters(), lr=0.3)
    for _ in range(3):
        optimizer.step(x, y)
        inner.zero_grad()
        (entropy(plain, x, y).sum() / (0.25 * N)).backward()  # the expected batch, not the real one
        inner.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_poisson_batches_are_drawn_example_by_example() -> None:
    batches = list(PoissonBatches(50, rate=0.1, steps=4000, rng=np.random.default_rng(0)))
    sizes = np.bincount([len(batch) for batch in batches], minlength=51)
    expected = stats.binom.pmf(np.arange(51), 50, 0.1) * 4000
    kept = expected > 5
    assert stats.chisquare(
        np.append(sizes[kept], sizes[~kept].sum()),
        np.append(expected[kept], expected[~kept].sum()),
    ).pvalue > 1e-3  # fmt: skip
    drawn = np.bincount([i for batch in batches for i in batch], minlength=50)
    assert np.all(np.abs(drawn - 400) < 5 * math.sqrt(4000 * 0.09))
    assert all(len(set(batch)) == len(batch) for batch in batches)
    assert list(PoissonBatches(99, rate=0.5, steps=1)) != list(
        PoissonBatches(99, rate=0.5, steps=1)
    )
    with pytest.raises(ValueError, match=r"rate=0\.0"):
        PoissonBatches(5, rate=0.0, steps=1)


def test_empty_batches_have_the_form_of_the_others() -> None:
    class Mapped(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return {"ids": self.tensors[0][index], "pair": (self.tensors[1][index], 1)}

    loader = poisson_loader(Mapped(*numbers(1)), rate=1e-9, steps=2)
    for batch in loader:
        assert batch["ids"].shape == (0, 30)
        assert [len(part) for part in batch["pair"]] == [0, 0]


class Mixing(nn.Module):
    """An example's output depends on the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - 0.5 * x.mean(0))


class Turned(nn.Module):
    """Places first, as many of them as examples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(len(x), 6, 5).transpose(0, 1)).mean(0)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(30, 30), nn.Linear(30, 30)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def shared_denominator(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return entropy(model, x, y) / len(x)


def mean_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return entropy(model, x, y).mean()


GHOST_REFUSALS: list[tuple[Callable[[], nn.Module], Callable[..., Tensor], str]] = [
    (lambda: nn.Sequential(nn.Linear(30, 4), nn.BatchNorm1d(4)), entropy, "BatchNorm1d"),
    (lambda: nn.Sequential(nn.Conv1d(1, 1, 3), nn.Linear(28, 2)), entropy, r"Conv1d \(0\)"),
    (Tied, entropy, "shared weights"),
    (lambda: nn.Embedding(5, 2, max_norm=1.0), entropy, "plain Embedding"),
    (lambda: nn.Embedding(5, 2, scale_grad_by_freq=True), entropy, "plain Embedding"),
    (lambda: nn.Sequential(nn.Linear(30, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), entropy,
     "inplace=True"),
    (Mixing, entropy, "same in company"),
    (Turned, entropy, "begin with the 1 examples"),
    (wide, shared_denominator, "same in company"),
    (wide, mean_loss, r"losses of shape \(\)"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "loss", "message"), GHOST_REFUSALS)
def test_ghost_refuses_what_it_cannot_clip(
    make: Callable[[], nn.Module], loss: Callable[..., Tensor], message: str
) -> None:
    x, y = numbers(6)
    with pytest.raises(ValueError, match=message):
        _ = clipped(make(), loss, x, y)


def clipped(model: nn.Module, loss: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    return ghost(model, loss).clipped_sum(trained(model), (x, y), clip=C)


def test_vmap_refuses_statistics_and_losses_of_batches() -> None:
    with pytest.raises(ValueError, match="BatchNorm1d"):
        vmapped(nn.Sequential(nn.Linear(30, 4), nn.BatchNorm1d(4)))
    with pytest.raises(ValueError, match="InstanceNorm1d"):
        vmapped(nn.InstanceNorm1d(4, track_running_stats=True))
    model = wide()
    with pytest.raises(ValueError, match=r"of shape \(\)"):
        vmapped(model, mean_loss).clipped_sum(trained(model), numbers(3), clip=C)
    # the denominator of a batch of one is 1, whoever else is in the batch
    x, y = numbers(5)
    alone = vmapped(model, shared_denominator).clipped_sum(trained(model), (x, y), clip=C)
    assert torch.allclose(alone, naive_sum(model, x, y), atol=1e-5)


@WAYS
def test_optimisers_loaders_and_laws_without_a_proof_are_refused(way: Any) -> None:
    foreign = torch.optim.SGD(wide().parameters(), lr=0.1)
    loader = poisson_loader(TensorDataset(*numbers()), rate=0.5, steps=1)
    with pytest.raises(ValueError, match="parameters"):
        PrivateOptimizer(foreign, way(wide()), loader, noise=QUIET, clip=C)
    model = wide()
    shuffled = DataLoader(TensorDataset(*numbers()), batch_size=4, shuffle=True)
    with pytest.raises(ValueError, match="got BatchSampler"):
        PrivateOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), way(model), shuffled, noise=QUIET, clip=C
        )
    with pytest.raises(NoDominatingPair, match="whole numbers"):
        private(model, way, DiscreteGaussian(sigma=1.0))
    with pytest.raises(ValueError, match="dim=3"):
        private(model, way, SphericalGeneralizedGaussian(scale=1.0, beta=1.0, dim=3))
    with pytest.raises(ValueError, match=r"clip=0\.0"):
        private(model, way, QUIET, clip=0.0)
    with pytest.raises(TypeError, match="nosie"):
        private(model, way, QUIET, nosie=QUIET)
    optimizer = private(model, way, QUIET)
    model[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="parameters"):
        optimizer.step(*numbers(3))
    assert optimizer.ledger.runs == 0


@WAYS
def test_lora_with_dropout_trains(way: Any) -> None:
    torch.manual_seed(0)
    config = BertConfig(**SIZES, num_labels=3, attn_implementation="eager")
    model = get_peft_model(
        BertForSequenceClassification(config),
        LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"]),
    )
    x = torch.randint(3, 500, (24, 8), generator=torch.Generator().manual_seed(0))
    y = x[:, 0] % 3

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(input_ids=x).logits, y, reduction="none")

    model.eval()
    sums = [w(model, loss).clipped_sum(trained(model), (x, y), clip=0.1) for w in (vmapped, ghost)]
    assert float((sums[0] - sums[1]).norm()) <= 1e-5 * float(sums[0].norm())
    model.train()
    loader = poisson_loader(TensorDataset(x, y), rate=0.3, steps=3)
    optimizer = PrivateOptimizer(
        torch.optim.AdamW(trained(model), lr=0.01),
        way(model, loss),
        loader,
        noise=Gaussian(sigma=0.5),
        clip=0.1,
    )
    before = model(input_ids=x).logits.detach()
    for batch in loader:
        optimizer.step(*batch)
    model.eval()
    assert not torch.allclose(before, model(input_ids=x).logits)
    assert optimizer.release.sensitivity.dim == 611
    assert model.training is False


@WAYS
def test_it_learns(way: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 30)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    loader = poisson_loader(data, rate=0.25, steps=40, rng=np.random.default_rng(1))
    model = wide()
    optimizer = PrivateOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        way(model),
        loader,
        noise=Gaussian(sigma=1.0),
        clip=1.0,
        generator=torch.Generator().manual_seed(7),
    )
    for batch in loader:
        optimizer.step(*batch)
    accuracy = float((model(x).argmax(1) == data.tensors[1]).double().mean())
    assert accuracy > 0.8
    assert optimizer.epsilon(DELTA) < 15


# Exact noise --------------------------------------------------------------------------------------


def exactly(sigma: float = 2.0, **options: Any) -> tuple[PrivateOptimizer, nn.Module]:
    model = nn.Linear(30, 2)
    loader = poisson_loader(TensorDataset(*numbers()), rate=1.0, steps=3)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    ways = VmapGradients(model=model, loss=entropy)
    noise = Gaussian(sigma=sigma)
    return PrivateOptimizer(sgd, ways, loader, noise=noise, clip=C, exact=True, **options), model


def test_exact_releases_are_multiples_of_a_step_that_no_data_decides() -> None:
    optimizer, model = exactly()
    release = optimizer.release
    step = (release.sensitivity.bound - C) / math.sqrt(release.sensitivity.dim)
    step = 2.0 ** round(math.log2(step))
    for batch in ((x := numbers()), (x[0][:0], x[1][:0])):
        optimizer.step(*batch)
        for p in model.parameters():
            assert p.grad is not None
            released = p.grad.double() * N / step  # a gradient in fp32 rounds what left the house
            assert torch.allclose(released, released.round(), atol=0.02)


def test_exact_noise_is_the_law_and_its_cost_that_of_the_rounded_sum() -> None:
    optimizer, model = exactly(sigma=3.0, generator=torch.Generator().manual_seed(4))
    before = naive_sum(model, *numbers())
    drawn = []
    for _ in range(40):
        start = [p.detach().clone() for p in model.parameters()]
        optimizer.step(*numbers())
        drawn.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double() * N)
        with torch.no_grad():
            for p, was in zip(model.parameters(), start, strict=True):
                p.copy_(was)
    noise = (torch.stack(drawn) - before).flatten().numpy() / (3.0 * C)
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert stats.kstest(noise * 1.5, "norm").pvalue < 1e-9
    bound = optimizer.release.sensitivity.bound
    assert C < bound < 1.01 * C
    plain = Mechanism(
        noise=Gaussian(sigma=3.0 * C), sensitivity=Sensitivity(norm="l2", bound=bound, dim=62)
    )
    assert optimizer.epsilon(DELTA) == pytest.approx(
        PLD().compose(plain, 40).epsilon(DELTA), rel=1e-4
    )


def test_exact_noise_has_a_least_delta() -> None:
    optimizer, _ = exactly()
    optimizer.step(*numbers())
    with pytest.raises(ValueError, match="Expected delta=1e-25 above"):
        optimizer.epsilon(1e-25)


def test_exact_noise_of_other_laws_is_refused() -> None:
    model = nn.Linear(30, 2)
    loader = poisson_loader(TensorDataset(*numbers()), rate=1.0, steps=3)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    law = GeneralizedGaussian(scale=2.0, beta=1.4)
    with pytest.raises(ValueError, match="only theirs is proved"):
        PrivateOptimizer(sgd, vmapped(model), loader, noise=law, clip=C, exact=True)

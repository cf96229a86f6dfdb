"""Three tasks behind one interface: losses of texts, hits of texts, gradients of clients."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, GPT2Config

from fl_integration.adapters import AdapterSpace
from fl_integration.attention import looks_ahead, mask_form
from fl_integration.batches import pad
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Round, loop_sum, merged_sum
from fl_integration.config import FederatedConfig
from fl_integration.data import Client, FederatedData
from fl_integration.encoding import IGNORED
from fl_integration.models import default_targets, load_model
from fl_integration.rows import Task, Text
from fl_integration.sampler import Randomness
from fl_integration.tasks import LanguageModel, TextModel, text_hits, text_losses
from fl_integration.tiny import SIZES, HashTokenizer

TASKS = get_args(Task)
LABELS = 3


def texts(rng: np.random.Generator, count: int, task: Task) -> tuple[Text, ...]:
    lines = [[f"w{n}" for n in rng.integers(0, 40, rng.integers(1, 9))] for _ in range(count)]
    words = task == "token-classification"
    return tuple(tuple(line) if words else " ".join(line) for line in lines)


def client(rng: np.random.Generator, name: str, count: int, task: Task) -> Client:
    held = texts(rng, count, task)
    wanted = {
        "sequence-classification": count,
        "token-classification": sum(map(len, held)),
        "next-token": 0,
    }
    return Client(name=name, texts=held, labels=rng.integers(0, LABELS, wanted[task]))


def federation(task: Task) -> FederatedData:
    rng = np.random.default_rng(0)
    test = client(rng, "test", 20, task)
    return FederatedData(
        name="toy",
        task=task,
        labels=() if task == "next-token" else tuple("abc"),
        clients=tuple(client(rng, f"c{i}", i % 5, task) for i in range(12)),
        test_texts=test.texts,
        test_labels=test.labels,
    )


def model(task: Task) -> TextModel:
    made, _ = load_model("tiny", task=task, labels=0 if task == "next-token" else LABELS)
    if made.head is not None:
        nn.init.normal_(made.head.weight, generator=torch.Generator().manual_seed(5))
    return made


def gpt2(scale: float = 1.0) -> nn.Module:
    config = GPT2Config(
        vocab_size=512,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=40,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in made.parameters():
        parameter.data *= scale
    return made


def by_hand(
    made: TextModel, line: list[int], target: np.ndarray, views: dict[str, Tensor]
) -> Tensor:
    """The mean loss of one text, alone, target by target."""
    logits = functional_call(made, views, (torch.tensor([line]), torch.ones(1, len(line))))[0]
    if target.ndim == 0:
        return -functional.log_softmax(logits, -1)[int(target)]
    each = [
        -functional.log_softmax(logits[place], -1)[int(wanted)]
        for place, wanted in enumerate(target)
        if wanted != IGNORED
    ]
    return sum(each, 0.0 * logits.sum()) / max(1, len(each))


# losses and hits


@pytest.mark.parametrize("task", TASKS)
def test_losses_are_means_over_the_targets_of_each_text(task: Task) -> None:
    made, data = model(task), federation(task)
    tokens = Tokens(data, HashTokenizer())
    ids, targets = tokens.test(), tokens.test_targets()
    losses = made.losses(*pad(ids), torch.from_numpy(targets))
    alone = [by_hand(made, line, row, {}) for line, row in zip(ids, targets, strict=True)]
    torch.testing.assert_close(losses, torch.stack(alone), rtol=1e-5, atol=1e-6)
    assert losses.detach().std() > 0


@pytest.mark.parametrize("task", TASKS)
def test_padding_and_company_change_no_loss(task: Task) -> None:
    made = model(task)
    tokens = Tokens(federation(task), HashTokenizer())
    ids, targets = tokens.test()[:2], torch.from_numpy(tokens.test_targets()[:2])
    alone = made.losses(*pad(ids), targets)
    for pad_id in (0, 99):
        company = [*ids, list(range(3, 30))]
        beside = made.losses(*pad(company, pad_id=pad_id), torch.cat([targets, targets[:1]]))
        torch.testing.assert_close(beside[:2], alone, rtol=1e-5, atol=1e-6)


def test_a_text_without_a_target_has_no_loss_and_no_gradient() -> None:
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([[1, IGNORED, 2, 0], [IGNORED] * 4, [IGNORED, 4, IGNORED, IGNORED]])
    losses = text_losses(logits, targets)
    losses.sum().backward()
    assert losses[1] == 0
    assert not logits.grad[1].any()
    assert not logits.grad[0, 1].any()
    assert logits.grad[2, 1].norm() > 0
    hits, counts = text_hits(logits, targets)
    assert counts.tolist() == [3, 0, 1]
    assert hits[1] == 0


def test_hits_count_the_targets_that_are_most_likely() -> None:
    logits = torch.tensor([[[0.0, 1.0], [2.0, 1.0]], [[1.0, float("nan")], [1.0, 0.0]]])
    hits, counts = text_hits(logits, torch.tensor([[1, 1], [1, 0]]))
    assert (hits.tolist(), counts.tolist()) == ([1, 1], [2, 2])  # what is not finite is wrong
    hits, counts = text_hits(logits[:, 0], torch.tensor([1, 1]))
    assert (hits.tolist(), counts.tolist()) == ([1, 0], [1, 1])


def test_the_language_model_loss_is_that_of_transformers() -> None:
    made = model("next-token")
    tokens = Tokens(federation("next-token"), HashTokenizer())
    ids, targets = tokens.test(), torch.from_numpy(tokens.test_targets())
    losses = made.losses(*pad(ids), targets)
    for line, loss in zip(ids, losses, strict=True):
        row = torch.tensor([line])
        torch.testing.assert_close(made.encoder(row, labels=row).loss, loss)


# who sees whom


def test_a_decoder_gets_a_causal_mask_and_an_encoder_one_for_both_sides() -> None:
    assert model("sequence-classification").mask_form == "additive"
    assert model("next-token").mask_form == "causal"
    for scale in (1.0, 10.0):  # however little a token that looks ahead would see
        assert mask_form(gpt2(scale)) == "causal"


def test_a_model_that_reads_no_other_mask_keeps_its_own() -> None:
    class Strict(nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def __init__(self, shift: float | None) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, ids: Tensor, *, attention_mask: Tensor) -> tuple[Tensor]:
            if attention_mask.ndim == 2:
                return (ids.float().unsqueeze(-1),)
            if self.shift is None:
                raise TypeError("only 2-D masks")
            return (ids.float().unsqueeze(-1) + self.shift,)

    for shift in (None, 1.0, float("nan"), 0.0):
        assert mask_form(Strict(shift)) == "plain"


def test_no_prediction_sees_what_it_predicts() -> None:
    for made in (model("next-token"), LanguageModel(gpt2())):
        one, other = ([7, 8, 9, last] for last in (10, 11))
        with torch.no_grad():
            logits = made(*pad([one, other, [7, 8, 9]]))
        torch.testing.assert_close(logits[0, :3], logits[1, :3], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits[0, :3], logits[2, :3], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(logits[0, 3], logits[1, 3])


def test_a_model_that_looks_ahead_is_no_language_model() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        two_sided = BertLMHeadModel(BertConfig(**SIZES)).eval()
    assert looks_ahead(two_sided)
    with pytest.raises(ValueError, match="got BertLMHeadModel, which sees the tokens"):
        LanguageModel(two_sided)


@pytest.mark.parametrize("task", TASKS)
def test_vmap_gives_the_gradients_of_a_loop(task: Task) -> None:
    made = model(task)
    space = AdapterSpace(
        made,
        rank=2,
        targets=default_targets(made.encoder),
        generator=torch.Generator().manual_seed(0),
    )
    tokens = Tokens(federation(task), HashTokenizer())
    values = {name: p.detach() for name, p in made.named_parameters() if name in space.names}
    ids, mask = pad(tokens.test()[:4])
    targets = torch.from_numpy(tokens.test_targets()[:4])

    def loss(values: dict[str, Tensor], row: Tensor, keep: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(made, values, (row[None], keep[None]))
        return text_losses(logits, target[None])[0]

    stacked = vmap(grad(loss), in_dims=(None, 0, 0, 0))(values, ids, mask, targets)
    for i in range(4):
        single = grad(loss)(values, ids[i], mask[i], targets[i])
        for name, value in single.items():
            torch.testing.assert_close(stacked[name][i], value, rtol=1e-4, atol=1e-6)


# clients


def clients_gradients(made: TextModel, task: Task) -> None:
    """The clients' moves, from both executors, are autograd's gradients of their mean losses."""
    space = AdapterSpace(
        made,
        rank=3,
        targets=default_targets(made.encoder),
        generator=torch.Generator().manual_seed(0),
    )
    config = FederatedConfig(rank=3, cohort=4, clip=None, local_lr=1.0, head_multiplier=1.0)
    tokens = Tokens(federation(task), HashTokenizer())
    cohort = Cohort(
        space=space, tokens=tokens, config=config, randomness=Randomness(seed=0, secret_seed=0)
    )
    start = space.flatten(3)
    start += 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(3))
    for member in (0, 1, 4):  # of 0, 1 and 4 texts
        round = Round(index=0, rank=3, clients=np.array([member]), start=start)
        views = {n: v.clone().requires_grad_() for n, v in space.unflatten(start, 3).items()}
        work = cohort.work(round, member)
        losses = [
            by_hand(made, line, target, views)
            for line, target in zip(work.ids, work.labels, strict=True)
        ]
        wanted = torch.zeros_like(start)
        if losses:
            torch.stack(losses).mean().backward()
            wanted = torch.cat([view.grad.reshape(-1) for view in views.values()])
            assert wanted.norm() > 0
        for run in (loop_sum, merged_sum):
            total = ClippedSum(len(start), None)
            run(cohort, round, total)
            torch.testing.assert_close(total.value.float(), -wanted, rtol=1e-4, atol=1e-5)
    everyone = Round(index=0, rank=3, clients=np.arange(12), start=start)
    sums = [ClippedSum(len(start), 0.05) for _ in range(2)]
    for run, total in zip((loop_sum, merged_sum), sums, strict=True):
        run(cohort, everyone, total)
    torch.testing.assert_close(sums[1].value, sums[0].value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_a_client_moves_by_the_gradient_of_its_mean_loss(task: Task) -> None:
    clients_gradients(model(task), task)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_adapters_of_gpt2_are_tapped_like_those_of_linear_layers() -> None:
    clients_gradients(LanguageModel(gpt2()), "next-token")

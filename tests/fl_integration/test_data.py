"""The data sets: what is text, whose it is, and what is held out."""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from fl_integration import docstrings, tables
from fl_integration.data import Client, FederatedData, load_data
from fl_integration.dealing import Dealing
from fl_integration.docstrings import Library, build_rows, cached, masker, paragraphs
from fl_integration.rows import Rows, held_out, stable_share


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def module(*docs: str) -> str:
    functions = [f'def f{i}():\n    """{doc}"""\n' for i, doc in enumerate(docs)]
    return "\n".join(functions)


@pytest.fixture
def shelf(tmp_path: Path) -> list[Library]:
    """Two libraries of twelve modules, one of a single function."""
    for name in ("alphalib", "betalib"):
        for i in range(12):
            docs = [f"{name} computes the {name}.core thing number {i} of {j}" for j in range(4)]
            write(tmp_path / name / f"part{i}.py", module(*docs, f"{name[0]} own words, line {i}"))
    write(tmp_path / "gammalib" / "__init__.py", module("A single sentence of the third one."))
    return [
        Library(name=name, folder=tmp_path / name, aliases=(name,))
        for name in ("alphalib", "betalib", "gammalib")
    ]


def table(path: Path, rows: int = 200, clients: int = 0, sep: str = "\t") -> Path:
    head = ["text", "label"] + ["client"] * bool(clients)
    lines = [sep.join(head)]
    for i in range(rows):
        fields = [f"text number {i}", str(i % 3)] + ([f"c{i % clients}"] if clients else [])
        lines.append(sep.join(fields))
    return write(path, "\n".join(lines) + "\n")


def same(a: FederatedData, b: FederatedData) -> bool:
    return (
        a.test_texts == b.test_texts
        and [c.texts for c in a.clients] == [c.texts for c in b.clients]
        and all(
            np.array_equal(x.labels, y.labels) for x, y in zip(a.clients, b.clients, strict=True)
        )
    )


# the split


def test_the_stable_share_is_a_fixed_function_of_the_name() -> None:
    # b2sum -l 64 of the name, as a fraction of 2^64
    assert stable_share("sympy.core") == pytest.approx(0.2132445382, abs=1e-9)
    shares = np.array([stable_share(f"module {i}") for i in range(20_000)])
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 20_000)
    assert abs(np.mean(shares < 0.15) - 0.15) < 0.01


def test_equal_names_are_on_one_side() -> None:
    names = [f"m{i % 50}" for i in range(1000)]
    marks = held_out(names)
    assert 0 < marks.sum() < 1000
    assert all(
        len({bool(m) for n, m in zip(names, marks, strict=True) if n == name}) == 1
        for name in names
    )


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected columns of 2 rows, got 1 labels"):
        Rows(texts=("a", "b"), labels=("x",), clients=(), test=np.zeros(2, dtype=bool))
    with pytest.raises(
        ValueError, match=r"Expected a label a text .* got 2 labels for 1 in client c"
    ):
        Client(name="c", texts=("a",), labels=np.zeros(2, dtype=np.int64))


# docstrings


def test_paragraphs_are_the_first_of_module_class_and_function(tmp_path: Path) -> None:
    source = '''"""Module\n   words.\n\nMore."""
class A:
    """Class words."""
    async def f(self):
        """Method words\\d.\n\n        Not these."""
def g(): return "not a docstring"
'''
    assert list(paragraphs(write(tmp_path / "m.py", source))) == [
        "Module words.",
        "Class words.",
        "",
        "Method words\\d.",
    ]


@pytest.mark.parametrize("source", [b"def broken(:", b"\x00", b"\xff\xfe\x00"])
def test_a_file_that_does_not_parse_is_skipped(tmp_path: Path, source: bytes) -> None:
    (tmp_path / "m.py").write_bytes(source)
    assert list(paragraphs(tmp_path / "m.py")) == []
    assert list(paragraphs(tmp_path / "absent.py")) == []


def test_masking_hides_names_in_any_case_and_inside_words_but_not_short_ones_in_words() -> None:
    hide = masker(["numpy", "PIL", "scikit-learn", "torch"])
    assert hide("PyTorch, numpy.linalg.norm and SCIKIT_LEARN") == "library, library and library"
    assert hide("pil pile PIL.Image com-pil-e") == "library pile library library"
    assert masker([])("nothing hides") == "nothing hides"


def test_no_label_survives_in_its_texts(shelf: list[Library]) -> None:
    rows = build_rows(shelf, top=2, progress=False)
    assert set(rows.labels) == {"alphalib", "betalib"}  # the third has too few
    assert not [t for t in rows.texts if "alphalib" in t.lower() or "betalib" in t.lower()]
    assert any("library computes the library thing" in t for t in rows.texts)


def test_duplicates_are_removed_over_all_libraries(shelf: list[Library]) -> None:
    rows = build_rows(shelf, progress=False)
    assert len(set(rows.texts)) == len(rows.texts)
    shared = [t for t in rows.texts if "thing number 3 of 2" in t]
    assert len(shared) == 1  # the two libraries' sentences are equal once masked


def test_clients_are_modules_and_a_module_is_on_one_side(shelf: list[Library]) -> None:
    rows = build_rows(shelf, progress=False)
    assert {c for c in rows.clients if c.startswith("beta")} <= {
        f"betalib.part{i}" for i in range(12)
    }
    assert "gammalib" in rows.clients  # a package is called after its folder
    trained = {c for c, t in zip(rows.clients, rows.test, strict=True) if not t}
    tested = {c for c, t in zip(rows.clients, rows.test, strict=True) if t}
    assert trained
    assert tested
    assert not trained & tested


def test_length_limits_and_skipped_folders(tmp_path: Path) -> None:
    write(tmp_path / "lib" / "a.py", module("short", "y" * 301, "z" * 20, "w" * 300))
    write(tmp_path / "lib" / "tests" / "b.py", module("A sentence that only a test has."))
    rows = build_rows(
        [Library(name="lib", folder=tmp_path / "lib", aliases=("lib",))], progress=False
    )
    assert sorted(map(len, rows.texts)) == [20, 300]


def test_nothing_found_and_a_bad_top_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expected top=0 >= 1"):
        build_rows([], top=0)
    with pytest.raises(ValueError, match="Found no docstring in 0 files"):
        build_rows([Library(name="x", folder=tmp_path, aliases=())], progress=False)


def test_the_standard_library_is_a_label_and_this_project_is_not() -> None:
    names = {library.name for library in docstrings.installed_libraries()}
    assert {"stdlib", "numpy", "scipy", "torch"} <= names
    assert not names & docstrings.OWN


# the cache


def few() -> Rows:
    clients = tuple(f"m{i}" for i in range(40))
    texts = tuple(f"text {i} — ü" for i in range(40))
    return Rows(texts=texts, labels=("a", "b") * 20, clients=clients, test=held_out(clients))


def never() -> Rows:
    raise RuntimeError("the cache was not used")


def test_the_cache_is_built_once_and_gives_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.json.gz"
    built, read = cached(path, few), cached(path, never)
    assert (built.texts, built.labels, built.clients) == (read.texts, read.labels, read.clients)
    assert np.array_equal(built.test, read.test)
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left


def damages(whole: bytes) -> dict[str, bytes]:
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    short = {"texts": ["a", "b"], "labels": ["x"], "clients": ["m", "m"]}
    return {
        "empty": b"",
        "truncated": whole[:middle],
        "flipped": flipped,
        "not gzip": b"no such thing",
        "not json": gzip.compress(b"{"),
        "no column": gzip.compress(b"{}"),
        "a list": gzip.compress(b"[]"),
        "uneven": gzip.compress(json.dumps(short).encode()),
    }


@pytest.mark.parametrize("kind", sorted(damages(b"0123456789")))
def test_a_damaged_cache_is_rebuilt(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.json.gz"
    cached(path, few)
    path.write_bytes(damages(path.read_bytes())[kind])
    with caplog.at_level(logging.WARNING):
        assert cached(path, few).texts == few().texts
    assert "cannot be read" in caplog.text
    assert cached(path, never).texts == few().texts  # and it was stored whole


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "file", "in the way")
    with caplog.at_level(logging.WARNING):
        assert cached(tmp_path / "file" / "rows.json.gz", few).texts == few().texts
    assert "cannot be written" in caplog.text


def test_an_interrupted_write_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_data: bytes) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(docstrings.gzip, "compress", stop)
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "rows.json.gz", few)
    assert not list(tmp_path.iterdir())


def test_docstrings_come_from_the_chosen_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: list[Library]
) -> None:
    monkeypatch.setenv("DPMECH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(docstrings, "installed_libraries", lambda: shelf)
    names = "alphalib", "betalib", "gammalib"  # no test text is of each
    loaded = load_data("docstrings", dealing=Dealing(size=2, labels=names))
    assert len(list((tmp_path / "cache").glob("docstrings-*.json.gz"))) == 1
    assert loaded.labels == names
    assert max(map(len, loaded.clients)) == 2
    monkeypatch.setattr(docstrings, "installed_libraries", never)
    assert same(loaded, load_data("docstrings", dealing=Dealing(size=2, labels=names)))


# files


@pytest.mark.parametrize(("ending", "sep"), [("tsv", "\t"), ("csv", ",")])
def test_a_table_with_clients(tmp_path: Path, ending: str, sep: str) -> None:
    loaded = load_data(table(tmp_path / f"t.{ending}", clients=40, sep=sep))
    assert loaded.labels == ("0", "1", "2")
    assert loaded.examples + len(loaded.test_texts) == 200
    numbers = {int(t.split()[-1]) % 40 for t in loaded.test_texts}
    assert numbers.isdisjoint(int(c.name[1:]) for c in loaded.clients)
    for client in loaded.clients:
        wanted = [int(t.split()[-1]) % 3 for t in client.texts]
        assert client.labels.tolist() == wanted
        assert {f"c{int(t.split()[-1]) % 40}" for t in client.texts} == {client.name}


def test_jsonl_csv_quotes_and_names_of_columns(tmp_path: Path) -> None:
    lines = [json.dumps({"sentence": f"s {i}", "label": i % 12}) for i in range(400)]
    loaded = load_data(write(tmp_path / "t.jsonl", "\n".join(lines) + "\n\n"))
    assert loaded.labels == tuple(map(str, range(12)))  # numbers sort as numbers
    body = "\n".join(f'"a, b\n{i} ""c""",k{i % 2}' for i in range(60))
    quoted = load_data(write(tmp_path / "q.csv", "text,category\n" + body))
    assert 'a, b\n7 "c"' in {t for c in quoted.clients for t in c.texts} | set(quoted.test_texts)
    tsv = write(tmp_path / "q.tsv", 'text\tlabel\n"open\t1\n' + 'shut"\t0\n' * 3 + "x\t1\n" * 9)
    assert '"open' in tables.file_rows(tsv).texts  # a quote is an ordinary character


def test_equal_texts_without_clients_are_on_one_side(tmp_path: Path) -> None:
    rows = "".join(f"twin {i % 30}\t{i % 2}\n" for i in range(300))
    loaded = load_data(write(tmp_path / "t.tsv", "text\tlabel\n" + rows))
    assert set(loaded.test_texts).isdisjoint(t for c in loaded.clients for t in c.texts)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.tsv", "words\tlabel\na\t1\n", "a column text or sentence or tokens in .*words, label"),
        ("t.csv", "text,client\na,1\n", "a column label or category or tags in .*text, client"),
        ("t.jsonl", '{"label": 1}\n', "a column text or sentence or tokens in .* got label"),
        ("t.jsonl", "[1]\n", r"Expected a JSON object on line 1, got '\[1\]'"),
        ("t.jsonl", "{\n", "Expected a readable UTF-8 table"),
        ("t.tsv", "text\tlabel\na\t1\nb\n", "Expected a value for label in row 2"),
        ("t.tsv", "text\tlabel\n", "Expected at least one row"),
        ("t.xml", "a", "Expected a .tsv, .csv, .jsonl or .txt file"),
        ("t.txt", "a", "a column label or category or tags in .* got text"),
        ("t.jsonl", '{"text": ["a"], "label": 1}\n', "one value for text .* lists are for token"),
        ("t.tsv", "text\tlabel\na\t1\n", "Expected training texts .* got 1 and 0"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(write(tmp_path / name, text))


def test_bad_arguments_say_what_is_wrong(tmp_path: Path) -> None:
    path = table(tmp_path / "t.tsv")
    clients = table(tmp_path / "c.tsv", clients=40)
    with pytest.raises(ValueError, match=r"names its clients, not 1\.0 and None"):
        load_data(clients, dealing=Dealing(alpha=1.0))
    with pytest.raises(ValueError, match=r"names its clients, not None and 1\.0"):
        load_data(clients, dealing=Dealing(zipf=1.0))
    with pytest.raises(ValueError, match=r"whose texts have no class, not 1\.0"):
        load_data(path, task="next-token", dealing=Dealing(alpha=1.0))
    with pytest.raises(ValueError, match="No such file: 'nowhere'; give docstrings, sst2"):
        load_data("nowhere")
    with pytest.raises(ValueError, match="a file of one's own with task='token-classification'"):
        load_data("sst2", data_dir=tmp_path, task="token-classification")
    with pytest.raises(ValueError, match=r"and test_path=.*sst2 has classes of texts"):
        load_data("sst2", data_dir=tmp_path, test_path=path)


def test_a_test_file_is_the_whole_test_set(tmp_path: Path) -> None:
    train, test = table(tmp_path / "a.tsv", rows=50), table(tmp_path / "b.csv", rows=7, sep=",")
    loaded = load_data(train, test_path=test)
    assert loaded.examples == 50
    assert loaded.test_texts == tuple(f"text number {i}" for i in range(7))
    assert loaded.test_groups == ()
    named = table(tmp_path / "c.tsv", rows=20, clients=3)
    both = load_data(named, test_path=named)  # the user's own word: every client is tested
    assert both.test_groups == tuple(f"c{i % 3}" for i in range(20))
    assert both.examples == 20
    with pytest.raises(ValueError, match=r"client in both .*a\.tsv and .*c\.tsv, or in neither"):
        load_data(train, test_path=named)


def test_held_out_texts_are_grouped_by_client(tmp_path: Path) -> None:
    loaded = load_data(table(tmp_path / "t.tsv", clients=40), dealing=Dealing(max_test=9))
    assert len(loaded.test_groups) == 9
    for text, group in zip(loaded.test_texts, loaded.test_groups, strict=True):
        assert group == f"c{int(text.split()[-1]) % 40}"
    assert load_data(table(tmp_path / "u.tsv")).test_groups == ()


# words and plain texts


def test_words_and_their_labels_from_jsonl(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["my", f"name{i}", "is"][: 1 + i % 3], "tags": ["O", "NAME", "O"][: 1 + i % 3]}
        for i in range(90)
    ]
    path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    loaded = load_data(path, task="token-classification", dealing=Dealing(size=10))
    assert loaded.labels == ("NAME", "O")
    assert loaded.task == "token-classification"
    for client in loaded.clients:
        words = [word for text in client.texts for word in text]
        assert client.labels.tolist() == [int(not word.startswith("name")) for word in words]
    words = [word for text in loaded.test_texts for word in text]
    assert loaded.test_labels.tolist() == [int(not word.startswith("name")) for word in words]
    assert loaded.majority_share == np.bincount(loaded.test_labels).max() / len(loaded.test_labels)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a b", "label": ["x", "y"]}, "Expected a list of words .* row 1 .* got 'a b'"),
        ({"text": ["a", "b"], "label": "x"}, "list of words or labels for label .* got 'x'"),
        ({"text": ["a", "b"], "label": ["x"]}, "a label a word in row 1 .* got 1 for 2 words"),
        ({"text": [], "label": []}, r"list of words .* got \[\]"),
    ],
)
def test_bad_words_say_what_is_wrong(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "t.jsonl", json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        load_data(path, task="token-classification")


def test_texts_without_labels_are_for_the_next_token(tmp_path: Path) -> None:
    lines = [f"line {i}" for i in range(60)]
    plain = load_data(write(tmp_path / "t.txt", "\n\n".join(lines)), task="next-token")
    assert plain.examples + len(plain.test_texts) == 60
    assert plain.labels == ()
    assert {len(c.labels) for c in plain.clients} == {0} == {len(plain.test_labels)}
    assert plain.majority_share is None
    rows = [{"text": line, "client": f"c{i % 30}"} for i, line in enumerate(lines)]
    named = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    assert {len(c) for c in load_data(named, task="next-token").clients} == {2}
    labelled = table(tmp_path / "t.tsv")
    assert load_data(labelled, task="next-token").labels == ()  # a label that is there is not read


# SST-2


def test_sst2_from_a_folder(tmp_path: Path) -> None:
    lines = "".join(f"film {i} \t{i % 2}\n" for i in range(100))
    write(tmp_path / "train.tsv", "sentence\tlabel\n" + lines)
    write(tmp_path / "dev.tsv", "sentence\tlabel\nheld out\t1\nout, too\t0\n")
    loaded = load_data("sst2", data_dir=tmp_path, dealing=Dealing(size=30))
    assert loaded.labels == ("negative", "positive")
    assert loaded.test_texts == ("held out", "out, too")
    assert loaded.test_labels.tolist() == [1, 0]
    assert [len(c) for c in loaded.clients] == [30, 30, 30, 10]
    texts = [t for c in loaded.clients for t in c.texts]
    assert sorted(texts) == sorted(f"film {i}" for i in range(100))


def test_sst2_without_files_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"train\.tsv; give the folder of SST-2 with --data-dir"):
        load_data("sst2", data_dir=tmp_path)

    def absent(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(tables, "import_module", absent)
    with pytest.raises(ValueError, match=r"\(ModuleNotFoundError\); give a folder .* --data-dir"):
        load_data("sst2")
    write(tmp_path / "train.tsv", "sentence\tlabel\na\t2\n")
    write(tmp_path / "dev.tsv", "sentence\tlabel\na\t1\n")
    with pytest.raises(ValueError, match=r"Expected labels 0 and 1 in .* got '2'"):
        load_data("sst2", data_dir=tmp_path)


# Banking77


def test_banking77_from_a_folder(tmp_path: Path) -> None:
    body = "".join(f'"how, {i}\nplease?",intent_{i % 5}\n' for i in range(50))
    write(tmp_path / "train.csv", "text,category\n" + body)
    tests = [f"where?,intent_{i}" for i in (3, 0, 1, 2, 4)]
    write(tmp_path / "test.csv", "\n".join(["text,category", *tests]))
    loaded = load_data("banking77", data_dir=tmp_path)
    assert loaded.labels == tuple(f"intent_{i}" for i in range(5))
    assert loaded.examples == 50
    assert loaded.clients[0].texts[0] == "how, 0\nplease?"
    assert (loaded.test_texts[0], loaded.test_labels.tolist()) == ("where?", [3, 0, 1, 2, 4])
    with pytest.raises(ValueError, match=r"a folder with Banking77's train\.csv and test\.csv"):
        load_data("banking77")
    (tmp_path / "test.csv").unlink()
    with pytest.raises(ValueError, match=r"test\.csv; give the folder of Banking77"):
        load_data("banking77", data_dir=tmp_path)


def test_short_texts_are_left_out_of_training_and_only_there(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    texts = [" ".join(["word"] * words + [str(n)]) for n in range(60) for words in range(4)]
    rows = [{"text": text, "label": str(len(text) % 2)} for text in texts]
    path.write_text("\n".join(map(json.dumps, rows)))
    every = load_data(path, dealing=Dealing(size=1))
    long = load_data(path, dealing=Dealing(size=1, min_words=3))
    kept = sorted(text for client in long.clients for text in client.texts)
    known = [text for client in every.clients for text in client.texts]
    assert kept == sorted(text for text in known if len(text.split()) >= 3)
    assert 0 < len(kept) < len(known)
    assert sorted(long.test_texts) == sorted(every.test_texts)
    assert not Dealing(min_words=3).long_enough(("two", "words"))
    with pytest.raises(ValueError, match="texts of min_words=9"):
        load_data(path, dealing=Dealing(min_words=9))
    with pytest.raises(ValueError, match="min_words=0 >= 1"):
        Dealing(min_words=0)

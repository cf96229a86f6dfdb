"""The embedded data set: which installed library does the first paragraph of a docstring come from?

Real text that is on every machine with this project and needs no network. The label is the
library, the client is the module: clients of very different sizes, each with a single label.
"""

import ast
import gzip
import json
import logging
import os
import re
import sys
import sysconfig
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from fl_integration.rows import Rows, held_out

FORMAT = 1
TOP = 20
SHORTEST, LONGEST = 20, 300  # characters, after masking
NEUTRAL = "library"
STDLIB = "stdlib"
OWN = frozenset({"dpmech", "accountants", "optimizer_search", "fl_integration"})
# Tests describe bugs, not the library; vendored copies would carry the text of another label.
SKIPPED = frozenset(
    {"__pycache__", "_vendor", "_vendored_packages", "dist-packages", "ensurepip", "extern"}
    | {"externals", "site-packages", "test", "tests", "testing", "vendor", "vendored", "_distutils"}
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Library:
    """A label: its name, the folder of its modules, and every name that would give it away."""

    name: str
    folder: Path
    aliases: tuple[str, ...]


def docstring_rows() -> Rows:
    """Return the docstrings of the installed libraries, from the cache when it still fits them.

    The cache is one file in `$DPMECH_CACHE`, or `~/.cache/dpmech`; its name changes with the
    installed versions. A damaged cache is built again.
    """
    path = cache_folder() / f"docstrings-{_fingerprint()}.json.gz"
    return cached(path, lambda: build_rows(installed_libraries()))


def cache_folder() -> Path:
    """The folder of cached data: `$DPMECH_CACHE`, or `~/.cache/dpmech`."""
    chosen = os.environ.get("DPMECH_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dpmech"


def cached(path: Path, build: Callable[[], Rows]) -> Rows:
    """Read the rows stored at path, or build and store them."""
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        log.warning("The cache %s cannot be read (%s); building it again.", path, error)
    rows = build()
    try:
        _store(rows, path)
    except OSError as error:
        log.warning("The cache %s cannot be written (%s); going on without it.", path, error)
    return rows


def _load(path: Path) -> Rows:
    """Decode one cache file; gzip's checksum finds truncation and flipped bits."""
    stored = json.loads(gzip.decompress(path.read_bytes()))
    clients = tuple(stored["clients"])
    return Rows(
        texts=tuple(stored["texts"]),
        labels=tuple(stored["labels"]),
        clients=clients,
        test=held_out(clients),
    )


def _store(rows: Rows, path: Path) -> None:
    """Write one cache file whole or not at all."""
    columns = {"texts": rows.texts, "labels": rows.labels, "clients": rows.clients}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(gzip.compress(json.dumps(columns).encode()))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _fingerprint() -> str:
    """Digest everything the rows depend on: this format, Python and the installed versions."""
    versions = sorted({f"{d.name}=={d.version}" for d in metadata.distributions()})
    text = "\n".join([f"format {FORMAT}", sys.version, *versions])
    return blake2b(text.encode(), digest_size=8).hexdigest()


def installed_libraries() -> list[Library]:
    """List the standard library and every package beside this interpreter, sorted by name."""
    names = metadata.packages_distributions()
    paths = sysconfig.get_paths()
    site = {Path(paths[key]) for key in ("purelib", "platlib")}
    packages = {p.name: p for root in sorted(site) for p in sorted(root.iterdir()) if _package(p)}
    found = [
        Library(name=name, folder=folder, aliases=(name, *names.get(name, ())))
        for name, folder in sorted(packages.items())
    ]
    standard = Library(name=STDLIB, folder=Path(paths["stdlib"]), aliases=("python", "stdlib"))
    return [*found, standard]


def _package(path: Path) -> bool:
    """Is this folder an importable package of somebody else?"""
    return path.name.isidentifier() and path.name not in OWN and (path / "__init__.py").is_file()


def build_rows(libraries: Iterable[Library], *, top: int = TOP, progress: bool = True) -> Rows:
    """Read, mask and deduplicate the docstrings of the `top` libraries that have most of them.

    Nothing is imported: files are parsed with `ast`. Every name in `aliases`, and every dotted
    path or identifier that contains one, becomes the same neutral word in all texts, so that the
    masking itself tells nothing about the label.

    Args:
        libraries: where to look.
        top: labels to keep, at least 1.
        progress: draw a bar on stderr.

    Raises:
        ValueError: top < 1, or no docstring was found.
    """
    if top < 1:
        raise ValueError(f"Expected top={top} >= 1.")
    shelf = list(libraries)
    mask = masker(alias for library in shelf for alias in library.aliases)
    first: dict[str, tuple[str, str]] = {}  # by text: the first module keeps it
    files = [(library, file) for library in shelf for file in _sources(library.folder)]
    for library, file in tqdm(
        files, "docstrings", unit="file", file=sys.stderr, disable=None if progress else True
    ):
        module = _module(library, file)
        for paragraph in paragraphs(file):
            text = mask(paragraph)
            if SHORTEST <= len(text) <= LONGEST:
                first.setdefault(text, (library.name, module))
    counts = Counter(name for name, _ in first.values())
    kept = {name for name, _ in counts.most_common(top)}
    rows = [(text, name, module) for text, (name, module) in first.items() if name in kept]
    if not rows:
        raise ValueError(f"Found no docstring in {len(files)} files; give a file of texts instead.")
    texts, labels, clients = zip(*rows, strict=True)
    return Rows(texts=texts, labels=labels, clients=clients, test=held_out(clients))


def _sources(folder: Path) -> Iterator[Path]:
    """Yield the Python files below folder in a fixed order, without tests and vendored copies."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        yield from (Path(root, name) for name in sorted(files) if name.endswith(".py"))


def _module(library: Library, file: Path) -> str:
    """The dotted name of a source file, under its label."""
    parts = file.relative_to(library.folder).with_suffix("").parts
    return ".".join([library.name, *(part for part in parts if part != "__init__")])


def paragraphs(file: Path) -> Iterator[str]:
    """Yield the first paragraph of every docstring of a source file, on one line each."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        log.debug("Skipped %s: %s", file, error)
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = re.split(r"\n\s*\n", ast.get_docstring(node) or "", maxsplit=1)[0]
            yield " ".join(first.split())


def masker(aliases: Iterable[str]) -> Callable[[str], str]:
    """Return the function that hides library names, whatever their case.

    Names of five characters or more are found inside longer words too; shorter ones only as a
    whole part of a dotted or hyphenated word.

    >>> hide = masker(["numpy", "PIL", "scikit-learn"])
    >>> hide("Turn a PIL image into a NumPyArray, see scikit_learn.utils; compile it.")
    'Turn a library image into a library, see library; compile it.'
    """
    names = {re.sub(r"[-_. ]", "", alias).lower() for alias in aliases}
    long = re.compile("|".join(sorted(map(re.escape, (n for n in names if len(n) >= 5)))) or "(?!)")
    short = {name for name in names if len(name) < 5}
    verdicts: dict[str, str] = {}

    def judge(word: str) -> str:
        lowered = word.lower()
        parts = re.split(r"[-_.]", lowered)
        hidden = short.intersection(parts) or long.search("".join(parts))
        return NEUTRAL if hidden else word

    def replace(match: re.Match[str]) -> str:
        word = match.group()
        if word not in verdicts:
            verdicts[word] = judge(word)
        return verdicts[word]

    return lambda text: re.sub(r"\w+(?:[-.]\w+)*", replace, text)

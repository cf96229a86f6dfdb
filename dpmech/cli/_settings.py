"""Settings of a training run in layers: presets and files (TOML), ``--set``, options.

A later layer wins, name by name, also inside tables. Nothing of the training package is imported
here: whether a name or a value fits is checked where the request is made.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from dpmech.cli._nearest import nearest

Settings = dict[str, Any]

SETTINGS_FILE = "config.toml"
COSTS = ("epsilon", "plan", "non_private")  # what a run may cost: one of them
_FILES = "presets/*.toml"
_TARGETS = ("delta", "noise", "population", "population_cohort")  # idle without a cost


def presets() -> dict[str, Path]:
    """The files of the presets by name; none where the training package is not there."""
    spec = find_spec("fl_integration")
    folders = (spec.submodule_search_locations or []) if spec else []
    found = {path.stem: path for folder in folders for path in Path(folder).glob(_FILES)}
    return dict(sorted(found.items()))


def described() -> dict[str, str]:
    """What each preset is: the first line of its file, a comment."""
    return {
        name: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for name, path in presets().items()
    }


def read(name: str) -> Settings:
    """The settings of a preset or of a file; a file may build on another with ``preset = NAME``.

    Raises:
        ValueError: neither a preset nor a file, or a file that is no TOML.
    """
    known = presets()
    path = known.get(name, Path(name))
    if name not in known and not path.is_file():
        raise ValueError(f"Expected a preset or a file, got {name!r}{nearest(name, known)}")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"Cannot read the settings in {str(path)!r}: {error}.") from None
    base = found.pop("preset", None)
    if base is None:
        return found
    if base not in known:
        raise ValueError(f"Expected preset={base!r} to be a preset{nearest(str(base), known)}")
    return layered(read(base), found)


def assigned(texts: Sequence[str]) -> Settings:
    """What ``NAME=VALUE`` says, values as in TOML; a word needs no quotes.

    >>> assigned(["clip=.5", "server_rule=adam", "broadcast.bits=2", "shares=[.5, -.25]"])
    {'clip': 0.5, 'server_rule': 'adam', 'broadcast': {'bits': 2}, 'shares': [0.5, -0.25]}
    """
    found: Settings = {}
    for text in texts:
        name, sign, value = text.partition("=")
        try:
            if not (sign and name.strip()):
                raise tomllib.TOMLDecodeError("no name")
            found = layered(found, tomllib.loads(f"{name} = {_literal(value)}"))
        except tomllib.TOMLDecodeError:
            raise ValueError(f"Expected --set NAME=VALUE, got {text!r}.") from None
    return found


def _literal(text: str) -> str:
    """A value as TOML: as it stands, with 0.5 for .5, or as a text without its quotes."""
    for candidate in (text, re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)):
        try:
            tomllib.loads(f"x = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
        return candidate
    return json.dumps(text.strip(), ensure_ascii=False)


def costs(settings: Mapping[str, Any]) -> list[str]:
    """What settings say of what a run may cost; an ε of 0 is said, too."""
    return [
        name for name in COSTS if settings.get(name) is not None and settings[name] is not False
    ]


def layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> Settings:
    """Both, where ``above`` wins; what a run may cost is said by the uppermost layer alone.

    >>> layered({"non_private": True, "rounds": 5}, {"epsilon": 2.0})
    {'rounds': 5, 'epsilon': 2.0}
    """
    result = dict(below)
    if costs(above):
        idle = _TARGETS if above.get("non_private") else ()
        result = {name: v for name, v in result.items() if name not in (*COSTS, *idle)}
    for name, value in above.items():
        old = result.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[name] = layered(cast(Settings, old), cast(Settings, value)) if both else value
    return result


def written(settings: Mapping[str, Any], *, comment: str = "") -> str:
    """Settings as TOML: values first, then tables.

    >>> print(written({"broadcast": {"bits": 4.0}, "clip": 0.5, "targets": ["q", "v"]}))
    clip = 0.5
    targets = ["q", "v"]
    <BLANKLINE>
    [broadcast]
    bits = 4.0
    <BLANKLINE>
    """
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += [f"{k} = {_value(v)}" for k, v in settings.items() if not isinstance(v, Mapping)]
    for name, table in settings.items():
        if isinstance(table, Mapping):
            inside = cast(Settings, table).items()
            lines += ["", f"[{name}]", *(f"{k} = {_value(v)}" for k, v in inside)]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """One value as TOML writes it."""
    if isinstance(value, Mapping):
        inside = (f"{k} = {_value(v)}" for k, v in cast(Settings, value).items())
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, cast('Sequence[object]', value)))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")

"""Settings as a training request, every name and type checked; and back."""

from __future__ import annotations

import dataclasses
from collections import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from dpmech.cli._nearest import nearest
from dpmech.cli._release import noise_from
from dpmech.cli._settings import Settings, costs

if TYPE_CHECKING:
    from fl_integration import TrainRequest
    from fl_integration.zo_train import ZerothOrderRequest

    Request = TrainRequest | ZerothOrderRequest

ZEROTH_ORDER = "zeroth-order"  # a system with a loop, and settings, of its own
NONE = "none"  # TOML has no value for "nothing"
# Laws and a file in the settings, objects in a request.
_LAWS = ("noise", "scalar_noise")
_AS_TEXT = (*_LAWS, "plan")
_NOT_SETTINGS = ("out", "config", *_AS_TEXT)
_WORDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    bool: "true or false",
}


def request_of(settings: Mapping[str, Any], out: Path) -> Request:
    """The request that settings make.

    Raises:
        ValueError: an unknown name, a value of another type, more or less than one cost, or
            whatever the request itself refuses.
    """
    from dpmech import PrivacyPlan

    _one_cost(settings)
    of_config, of_request = _kinds(settings)
    config, request = _hints(of_config), _hints(of_request)
    known = {name: hint for name, hint in request.items() if name not in _NOT_SETTINGS}
    known |= config | {name: str for name in _LAWS if name in request} | {"plan": Path}
    apart = ("non_private", *(() if "system" in known else ("system",)))
    values = _fields({k: v for k, v in settings.items() if k not in apart}, known, "")
    values |= {name: noise_from(values[name]) for name in _LAWS if name in values}
    if "plan" in values:
        values["plan"] = PrivacyPlan.load(values["plan"])
    inside = {name: values.pop(name) for name in list(values) if name in config}
    return of_request(out=out, config=of_config(**_whole(of_config, inside)), **values)


def _kinds(settings: Mapping[str, Any]) -> tuple[type[Any], type[Any]]:
    """The configuration and the request that settings are for."""
    if settings.get("system") == ZEROTH_ORDER:
        from fl_integration.zo_config import ZerothOrderConfig
        from fl_integration.zo_train import ZerothOrderRequest

        return ZerothOrderConfig, ZerothOrderRequest
    from fl_integration import FederatedConfig, TrainRequest

    return FederatedConfig, TrainRequest


def _whole(kind: type, values: Settings) -> Settings:
    """The values, if none is missing that has no default."""
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING
        and field.name not in values
    ]
    if missing:
        raise ValueError(f"Expected values of {', '.join(missing)}; write --set {missing[0]}=….")
    return values


def settings_of(request: Request, settings: Mapping[str, Any]) -> Settings:
    """All settings of a request, defaults too, so that they make it again.

    Arguments:
        settings: what it was made of; a law and a plan are taken from there as text.
    """
    found: Settings = {k: settings[k] for k in ("system", *_AS_TEXT) if k in settings}
    if request.epsilon is None and request.plan is None:
        found["non_private"] = True
    for thing in (request, request.config):
        for field in dataclasses.fields(thing):
            value = getattr(thing, field.name)
            if field.name not in _NOT_SETTINGS and not (value is None and field.default is None):
                found[field.name] = _plain(value)
    return found


def _one_cost(settings: Mapping[str, Any]) -> None:
    """ValueError unless the run's cost is said once."""
    said = [f"--{name.replace('_', '-')}" for name in costs(settings)]
    if len(said) > 1:
        raise ValueError(f"Expected {said[0]} or {said[1]}, not both.")
    if not said:
        raise ValueError("Expected --epsilon, --plan or --non-private: say what the run may cost.")


def _hints(kind: type) -> dict[str, Any]:
    """The types of the fields of a dataclass."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fields(given: Mapping[str, Any], hints: Mapping[str, Any], inside: str) -> Settings:
    """Every value as its field wants it."""
    for name in given:
        if name not in hints:
            where = f" in [{inside.rstrip('.')}]" if inside else ""
            raise ValueError(f"Unknown setting {name!r}{where}{nearest(name, hints)}")
    return {name: _fitted(f"{inside}{name}", v, hints[name]) for name, v in given.items()}


def _fitted(name: str, value: Any, hint: Any) -> Any:
    """A value as a type hint wants it (ValueError where it is something else)."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value == NONE and NoneType in parts:
            return None
        return _fitted(name, value, next(part for part in parts if part is not NoneType))
    if origin is abc.Mapping:
        return dict(_table(name, value))
    if origin is tuple:
        return tuple(_fitted(name, one, parts[0]) for one in _list(name, value))
    if dataclasses.is_dataclass(hint):
        kind = cast(type, hint)
        return kind(**_fields(_table(name, value), _hints(kind), f"{name}."))
    return _simple(name, value, str if origin is Literal else hint)


def _table(name: str, value: object) -> Settings:
    if not isinstance(value, Mapping):
        raise ValueError(f"Expected {name}={value!r} to be a table.")
    return cast(Settings, value)


def _list(name: str, value: object) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"Expected {name}={value!r} to be a list.")
    return cast("Sequence[object]", value)


def _simple(name: str, value: Any, kind: type) -> Any:
    """A number, a text, a path or a truth value."""
    accepted: Any = {float: (int, float), Path: (str, Path)}.get(kind, kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"Expected {name}={value!r} to be {_WORDS[kind]}.")
    return kind(value)


def _plain(value: Any) -> Any:
    """A value as a file holds it."""
    if value is None:
        return NONE
    if dataclasses.is_dataclass(value):
        held = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
        return {k: _plain(v) for k, (v, usual) in held.items() if not (v is None and usual is None)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast(Settings, value).items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in cast("Sequence[object]", value)]
    return str(value) if isinstance(value, Path) else value

"""What a training run starts from, and keeps in its folder to be run again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmech.cli._requests import settings_of
from dpmech.cli._settings import SETTINGS_FILE, Settings, assigned, layered, read, written
from dpmech.files import write_atomically

if TYPE_CHECKING:
    from dpmech.cli._requests import Request

_NO_SETTINGS = ("config", "set_", "list_presets", "out", "resume", "as_json")
_NO_RUN = "Expected a run to resume in {!r}; leave --resume out to start it."
# Options that stand for a name inside a table.
_INSIDE = {"bits": ("broadcast", "bits"), "silo_sizes": ("silos", "sizes")}


def layered_settings(said: dict[str, Any], out: Path, *, resume: bool) -> Settings:
    """The settings of a run, from below: those it began with, a file or preset, --set, options."""
    began = out / SETTINGS_FILE
    if resume and not began.is_file():
        raise ValueError(_NO_RUN.format(str(out)))
    settings = read(str(began)) if resume else {}
    if "config" in said:
        settings = layered(settings, read(said["config"]))
        if Path(said["config"]).resolve() == began.resolve() and not resume:
            raise ValueError(
                f"Expected another --out: {str(out)!r} holds the file of --config, which the"
                " settings of the run would replace."
            )
    settings = layered(settings, assigned(said.get("set_", ())))
    options = {k: v for k, v in said.items() if k not in _NO_SETTINGS}
    for name, (table, inside) in _INSIDE.items():
        if name in options:
            options[table] = {inside: options.pop(name)}
    if "silos" in options:
        options["silos"] = {"sizes": sizes(options["silos"]["sizes"])}
    return layered(settings, options)


def sizes(text: str) -> list[int]:
    """Sizes as they are written.

    >>> sizes("400,2x50")
    [400, 50, 50]
    """
    found: list[int] = []
    for part in text.split(","):
        times, _, size = part.rpartition("x")
        if not (size.strip().isdecimal() and (times.strip() or "1").isdecimal()):
            raise ValueError(f"Expected sizes such as 400,400 or 5x400, got {text!r}.")
        found += [int(size)] * int(times or 1)
    return found


def keep_settings(request: Request, settings: Settings, *, resume: bool) -> None:
    """Write the settings of a run into its folder; a run is continued with its own alone."""
    path = request.out / SETTINGS_FILE
    whole = settings_of(request, settings)
    if resume and path.is_file():
        began = read(str(path))
        other = sorted(k for k in {*began, *whole} if began.get(k) != whole.get(k))
        if other:
            raise ValueError(
                f"Expected the settings that the run in {str(request.out)!r} began with, but"
                f" {', '.join(other)} differ; see its {SETTINGS_FILE}, or choose another --out."
            )
        return
    request.out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, written(whole, comment=f"dpmech train --config {path} runs it again."))


def check_folder(out: Path, *, resume: bool) -> None:
    """A folder with a run in it is continued when that was asked for, and only then."""
    begun = any((phase / "checkpoint").exists() for phase in (out, out / "head-start"))
    if begun and not resume:
        raise ValueError(
            f"Expected an empty folder, but {str(out)!r} holds a run; continue it with --resume, "
            "or choose another --out."
        )
    if resume and not begun:
        raise ValueError(_NO_RUN.format(str(out)))

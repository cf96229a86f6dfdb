"""What a run has to say for itself: accuracy, what was really spent, and what it may be called."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from accountants import Ledger
from dpmech.files import write_atomically
from fl_integration.evaluation import GroupAccuracy
from fl_integration.extrapolate import HypotheticalEpsilon, finite_or_text
from fl_integration.model_privacy import ModelPrivacy
from fl_integration.options import option
from fl_integration.spaces import FlatSpace

FORMAT = 1
PRIVACY_FILE = "privacy.json"
PACKAGES = ("dpmech", "numpy", "scipy", "torch", "transformers", "peft")
SELECTION = (
    "nothing was selected on private data by this run: the last round is reported, there is no"
    " early stopping, and accuracy is measured on a test set taken to be public. Defaults (clip,"
    " learning rates) were chosen on the non-private bundled data; whoever tunes them on the data"
    " being protected spends privacy that this report does not count."
)
SECRET = "cohort and noise: words of AES-256, seeded by the operating system, not kept"
SEEDED = "reproducible noise: for experiments only"
TRUSTED_SERVER = "server (adds the noise, sees the clients' deltas)"
WITHHELD = (
    "the realised cohort sizes, client losses and delta norms are functions of who took part and"
    " of private data; they were not noised and are not reported"
)
PUBLIC = (
    "taken to be public: how many clients there are (the sampling rate and the divisor are made of"
    " it), the classes, and the test set"
)
PHYSICAL = (
    "how long a round took, attacks on the floating-point form of the noise, and how far the tables"
    " that it is drawn from are from its law: at most 2e-9 of epsilon a coordinate and release"
)
COMPANY = (
    "the rounding of a kernel, which may depend on whose texts share a batch, so that a clipped"
    " delta may move by up to some thousandths of the clip with the company on a bfloat16 encoder,"
    " and by less than a millionth in float32, where the clip leaves room for it; executor=loop"
    " trains every client by itself"
)


@dataclass(frozen=True, kw_only=True)
class RoundMetrics:
    """One round, as far as it may be told.

    round, rank: index and public rank. expected_cohort: q·N. accuracy: on the public test set,
    where it was measured. burnt: spent by an interrupted process, weights unchanged.
    cohort_size, delta_norm, clipped: realised size, median delta norm before the clip and share
    of clipped clients; only in runs without privacy. clip: where it is adaptive. scalars: what
    the run's queries released, noised, by name.
    """

    round: int
    rank: int
    expected_cohort: float
    accuracy: float | None = None
    burnt: bool = False
    cohort_size: int | None = None
    delta_norm: float | None = None
    clipped: float | None = None
    clip: float | None = None
    scalars: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that are there, JSON-ready."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """The account of a finished run.

    **Guarantees**

    * ``epsilon`` is re-derived from ``ledger``, which holds the mechanisms that really ran: it is
      what the simulated or real run cost its own clients, never a forecast.
    * A forecast is in ``hypothetical`` only, and such a run is never exported as private.
    * A private report holds no realised cohort size: under add/remove it is a function of who
      took part, and the sampling's amplification needs the cohort to be secret.

    Arguments:
        config, clients, data: the run. rounds: its metrics. final_accuracy, majority_share: on
        the public test set (accuracy of the weights at full rank; of the training majority).
        accuracy_by_rank, accuracy_by_group: the final weights cut to a rank, and over the clients
        of the test texts. model_privacy: what a broadcast kept from the clients. ledger, epsilon,
        delta, accountant: ``None`` without privacy. hypothetical: of an extrapolated run.
        seconds: wall time of this process. model: by name, where it has one. bytes_down, bytes_up,
        bytes_full: what a client received and sent, and what the whole model would take one way,
        see `Traffic`; ``None`` where nothing is sent.
    """

    config: Mapping[str, Any]
    data: str
    clients: int
    rounds: tuple[RoundMetrics, ...]
    final_accuracy: float | None
    majority_share: float | None
    ledger: Ledger | None
    epsilon: float | None
    delta: float | None
    accountant: str | None
    hypothetical: HypotheticalEpsilon | None = None
    accuracy_by_rank: Mapping[int, float] = field(default_factory=dict[int, float])
    accuracy_by_group: GroupAccuracy | None = None
    model_privacy: ModelPrivacy | None = None
    seconds: float = 0.0
    model: str = ""
    bytes_down: int | None = None
    bytes_up: int | None = None
    bytes_full: int | None = None
    unit: str = "user"
    relation: str = "add-remove"
    sampling: str = "poisson"
    trusted: str = TRUSTED_SERVER
    selection: str = SELECTION
    versions: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def reproducible_noise(self) -> bool:
        """Whether cohort and noise follow from a logged seed, so that anyone can subtract it."""
        return self.config["noise_seed"] is not None

    @property
    def why_not_private(self) -> str | None:
        """Why this run may not be called private, or ``None`` when it may."""
        if self.hypothetical is not None:
            return f"its noise is a forecast's: {self.hypothetical}"
        return unproved(self.ledger, self.epsilon, self.config["noise_seed"])

    @property
    def uncovered(self) -> tuple[str, ...]:
        """What the ε of this run does not speak of, if it has one."""
        if self.ledger is None:
            return ()
        company = () if self.config.get("executor") == "loop" else (COMPANY,)
        return (PUBLIC, PHYSICAL, *company)

    def privacy(self) -> dict[str, Any]:
        """The claim that goes with released weights.

        Raises:
            ValueError: when the run may not be called private, with the reason.
        """
        reason = self.why_not_private
        if reason is not None:
            raise ValueError(f"Expected a private run to export as private, but {reason}.")
        keys = ("unit", "relation", "sampling", "trusted", "epsilon", "delta", "accountant")
        return {"private": True, **{key: getattr(self, key) for key in keys}}

    def export(self, space: FlatSpace, folder: str | Path, rank: int) -> None:
        """Write the adapter at a rank with ``privacy.json`` beside it, which says what it is.

        Arguments:
            space: the trained adapters. folder: made when missing. rank: 1..R.
        """
        reason = self.why_not_private
        claim = self.privacy() if reason is None else {"private": False, "reason": reason}
        space.export(folder, rank)
        write_atomically(Path(folder) / PRIVACY_FILE, json.dumps(claim, indent=2))

    def export_private(self, space: FlatSpace, folder: str | Path, rank: int) -> None:
        """Write the adapter at a rank as private, or refuse before anything is written.

        Raises:
            ValueError: when the run may not be called private, with the reason.
        """
        self.privacy()
        self.export(space, folder, rank)

    def to_json(self) -> str:
        """The report as strict JSON."""
        flat = {f.name: getattr(self, f.name) for f in fields(self)}
        group = self.accuracy_by_group
        flat |= {
            "accuracy_by_group": None if group is None else asdict(group),
            "model_privacy": None if self.model_privacy is None else asdict(self.model_privacy),
            "format": FORMAT,
            "rounds": [metrics.to_dict() for metrics in self.rounds],
            "ledger": None if self.ledger is None else json.loads(self.ledger.to_json()),
            "epsilon": None if self.epsilon is None else finite_or_text(self.epsilon),
            "hypothetical": None if self.hypothetical is None else self.hypothetical.to_dict(),
            "randomness": SEEDED if self.reproducible_noise else SECRET,
            "withheld": None if self.ledger is None else WITHHELD,
            "uncovered": self.uncovered,
            "why_not_private": self.why_not_private,
        }
        return json.dumps(flat, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The report that `to_json` wrote (ValueError when it is not one)."""
        try:
            flat = json.loads(text)
            values = {f.name: flat[f.name] for f in fields(cls) if f.name in flat}
            values["rounds"] = tuple(RoundMetrics(**entry) for entry in flat["rounds"])
            values["model_privacy"] = option(ModelPrivacy, flat.get("model_privacy"))
            values["accuracy_by_group"] = option(GroupAccuracy, flat.get("accuracy_by_group"))
            values["accuracy_by_rank"] = {int(r): a for r, a in flat["accuracy_by_rank"].items()}
            if flat["ledger"] is not None:
                values["ledger"] = Ledger.from_json(json.dumps(flat["ledger"]))
                values["epsilon"] = float(flat["epsilon"])
            if flat["hypothetical"] is not None:
                values["hypothetical"] = HypotheticalEpsilon.from_dict(flat["hypothetical"])
            return cls(**values)  # fields that are younger than the file keep their defaults
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"Expected the JSON of a train report, got {error!r}.") from error

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        write_atomically(Path(path), self.to_json())


def unproved(ledger: Ledger | None, epsilon: float | None, noise_seed: int | None) -> str | None:
    """Why a run with a ledger that costs an ε is not private, ``None`` when it is."""
    if ledger is None:
        return "no noise was added"
    if noise_seed is not None:
        return f"its noise follows from noise_seed={noise_seed} ({SEEDED})"
    if epsilon is None or not math.isfinite(epsilon):
        return f"its ledger costs epsilon={epsilon}"
    return None


def versions() -> dict[str, str]:
    """What a run was computed with."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed as a distribution"
    return found

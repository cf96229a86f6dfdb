"""Federated fine-tuning that spends a privacy plan: adapters, clients, server, loop, report."""

from fl_integration import _needs as _needs  # first: its refusal names the extra
from fl_integration.accounting import mechanism_for
from fl_integration.adapters import AdapterSpace
from fl_integration.client import Tokens
from fl_integration.clipping import clip_flat
from fl_integration.config import FederatedConfig
from fl_integration.data import Client, FederatedData, load_data
from fl_integration.extrapolate import Extrapolation, HypotheticalEpsilon, extrapolate
from fl_integration.federate import federate
from fl_integration.models import load_model
from fl_integration.plans import default_delta, plan_for
from fl_integration.report import RoundMetrics, TrainReport
from fl_integration.sampler import poisson_cohort
from fl_integration.train import TrainRequest, train

__all__ = [
    "AdapterSpace",
    "Client",
    "Extrapolation",
    "FederatedConfig",
    "FederatedData",
    "HypotheticalEpsilon",
    "RoundMetrics",
    "Tokens",
    "TrainReport",
    "TrainRequest",
    "clip_flat",
    "default_delta",
    "extrapolate",
    "federate",
    "load_data",
    "load_model",
    "mechanism_for",
    "plan_for",
    "poisson_cohort",
    "train",
]

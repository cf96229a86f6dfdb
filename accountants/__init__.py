"""What a mechanism costs: proved upper bounds on epsilon and delta, and calibration to them.

More in the modules: ``events`` (dp-accounting's trees), ``limits`` (lower bounds for vectors),
``conversions`` (zCDP, Gaussian privacy), ``odometer`` (filters), ``goals`` (what attacks achieve).
"""

from accountants.base import Accountant, Ledger
from accountants.calibrate import (
    accountant_named,
    calibrate,
    calibrate_rate,
    calibrate_scale,
    calibrate_steps,
)
from accountants.curves import (
    Interval,
    advantage,
    best_gdp_mu,
    delta_curve,
    epsilon_curve,
    false_negative_rate,
    tradeoff_curve,
)
from accountants.odometer import remaining, would_exceed
from accountants.opinions import second_opinion
from accountants.pld import PLD
from accountants.prv import PRV
from accountants.rdp import RDP

__all__ = [
    "PLD",
    "PRV",
    "RDP",
    "Accountant",
    "Interval",
    "Ledger",
    "accountant_named",
    "advantage",
    "best_gdp_mu",
    "calibrate",
    "calibrate_rate",
    "calibrate_scale",
    "calibrate_steps",
    "delta_curve",
    "epsilon_curve",
    "false_negative_rate",
    "remaining",
    "second_opinion",
    "tradeoff_curve",
    "would_exceed",
]

"""What a mechanism costs: proved upper bounds on epsilon and delta, and calibration to them."""

from accountants.base import Accountant, Ledger
from accountants.calibrate import accountant_named, calibrate
from accountants.pld import PLD
from accountants.prv import PRV
from accountants.rdp import RDP

__all__ = [
    "PLD",
    "PRV",
    "RDP",
    "Accountant",
    "Ledger",
    "accountant_named",
    "calibrate",
]

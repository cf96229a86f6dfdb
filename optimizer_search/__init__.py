"""Which noise is best: searches, each with the proof of what it found and how far it may be off."""

from optimizer_search.certify import certified
from optimizer_search.closed_forms import baselines
from optimizer_search.cost import Cost
from optimizer_search.lmo import grid_epsilons, search_lmo_grid
from optimizer_search.problem import (
    Baseline,
    Bound,
    Budget,
    Candidate,
    SearchProblem,
    SearchResult,
)
from optimizer_search.search import FAMILIES, search
from optimizer_search.store import load_result, reproved, save_result

__all__ = [
    "FAMILIES",
    "Baseline",
    "Bound",
    "Budget",
    "Candidate",
    "Cost",
    "SearchProblem",
    "SearchResult",
    "baselines",
    "certified",
    "grid_epsilons",
    "load_result",
    "reproved",
    "save_result",
    "search",
    "search_lmo_grid",
]

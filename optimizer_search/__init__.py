"""Which noise is best: the published LMO search, with every winner proved afresh."""

from optimizer_search.lmo import baselines, grid_epsilons, reproved, rescaled, search_lmo_grid
from optimizer_search.problem import Baseline, Cost, SearchProblem, SearchResult
from optimizer_search.store import load_result, save_result

__all__ = [
    "Baseline",
    "Cost",
    "SearchProblem",
    "SearchResult",
    "baselines",
    "grid_epsilons",
    "load_result",
    "reproved",
    "rescaled",
    "save_result",
    "search_lmo_grid",
]

"""The tables of docs/explanation/lmo.md: what the published LMO parameter sets are worth.

    python benchmarks/lmo_worth.py                     the page with its tables computed afresh
    python benchmarks/lmo_worth.py -o docs/explanation/lmo.md
    python benchmarks/lmo_worth.py -t sets -t vectors  these tables only

The prose is kept in the page; what is between `<!-- table NAME -->` and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from lmo_tables import TABLES

from dpmech.files import write_atomically

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "lmo.md"
_MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str, wanted: list[str]) -> str:
    """The page with its tables computed afresh."""

    def filled(found: re.Match[str]) -> str:
        name = found[2]
        if name not in wanted:
            return found[0]
        print(name, file=sys.stderr)
        return f"{found[1]}{TABLES[name]()}\n{found[3]}"

    return _MARKED.sub(filled, page)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("-t", "--table", choices=TABLES, action="append")
    asked = parser.parse_args()
    page = with_tables(PAGE.read_text(), asked.table or list(TABLES))
    if asked.output is None:
        print(page, end="")
    else:
        write_atomically(asked.output, page)


if __name__ == "__main__":
    main()

"""The picture of the packages shows the imports that the code has."""

from __future__ import annotations

import runpy
from pathlib import Path

TOP = Path(__file__).parents[2]


def test_the_picture_of_the_packages() -> None:
    script = runpy.run_path(str(TOP / "docs" / "pictures" / "packages.py"))
    names, arrows = script["read"](TOP / "nemo_openmath")
    picture = (TOP / "docs" / "pictures" / "packages.svg").read_text()
    again = "python docs/pictures/packages.py nemo_openmath > docs/pictures/packages.svg"
    assert picture == script["draw"](names, arrows), f"draw it again: {again}"
    rows = script["rows_of"](names, arrows)
    assert [arrow for arrow in arrows if rows[arrow[0]] <= rows[arrow[1]]] == []

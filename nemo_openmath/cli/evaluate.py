"""``openmath evaluate MODEL`` and its words ``plan``, ``decide``, ``rescore`` and ``table``.

A first word that is none of these is a model: its folder called ``plan`` is written ``./plan``.
"""

from __future__ import annotations

from typing import Any

from nemo_openmath.cli.common import CommandParser

MODEL = "MODEL"
"""The verb of this group that is not written."""


def words_of(groups: Any) -> Any:
    """Add the group and return that to which its words are added, each as a verb (:func:`cli.common.verb`)."""
    parser: CommandParser = groups.add_parser(
        "evaluate", help="measure a model on benchmarks; plan, decide and score again", description=__doc__
    )
    parser.otherwise = MODEL
    return parser.add_subparsers(title="verbs", metavar="VERB", required=True)

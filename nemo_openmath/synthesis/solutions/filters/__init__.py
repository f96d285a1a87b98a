"""Keep the solutions that are good enough to learn from (paper sections 2.3, 3.2 and 3.4).

config.py        the settings: which rules, in which order, and their numbers
rule.py          what a rule is, and the solution that it looks at
rules.py         the rules
final_answer.py  where a solution states its final answer, and the cut behind it
early_answer.py  whether the answer stands before the first code
fences.py        the fences of Markdown in a model's own words
stage.py         the stage ``solutions.filter``
"""

from nemo_openmath.synthesis.solutions.filters.config import FilterConfig
from nemo_openmath.synthesis.solutions.filters.rule import RULES, Rule
from nemo_openmath.synthesis.solutions.filters.stage import Filter

__all__ = ["RULES", "Filter", "FilterConfig", "Rule"]

"""Replay one problem: stored solutions, a policy, a machine, and no clock.

This is the event queue in the place of the live solver's event loop. All decisions are ``policy.decide``'s and
``policy.choose``'s, the very functions that the live solver asks; where a decision says that no other follows until
some solutions more have ended (``Wait.ends``), none is asked for before. ``tests/competition/test_lab_live.py`` holds
the two against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_openmath.competition.lab.grouping import spelling
from nemo_openmath.competition.lab.rollouts import NOTHING, Glimpse, StoredProblem, StoredSelection, StoredSolution
from nemo_openmath.competition.lab.timing import AsMade, Ends, Machine, Shared
from nemo_openmath.competition.policy import (
    Begin,
    Ended,
    Pick,
    Policy,
    Reason,
    Stop,
    choose,
    decide,
    judged,
    selection,
)

UNLIMITED = 1e9
"""Seconds that are as good as no limit. A number, for some rules compute with the time that is left."""


@dataclass(frozen=True, slots=True)
class ReplayedProblem:
    """What a policy made of a problem."""

    answer: str | None
    right: bool
    reason: Reason
    """Why sampling ended."""
    seconds: float
    """From the problem's beginning to its answer."""
    tokens: float
    """Tokens that were written, those of solutions that were cancelled among them."""
    begun: int
    """Solutions that were begun."""
    reachable: bool
    """Whether an answer of a solution that was begun is right, had it been heard to its end."""
    selected: int = 0
    """Selections that were heard."""
    unselected: bool = False
    """Whether the policy wanted a selection, and none was stored among these solutions."""


class ProblemReplay:
    """Replays problems under one policy on one machine. ``rates``: tokens a second of each of n solutions that are
    written at once; None: as they were made."""

    def __init__(self, policy: Policy, rates: Sequence[float] | None):
        self._policy, self._rates = policy, rates
        self._searches = policy.partial_weight > 0
        self._looks_while_grading = policy.rule == "bayes"

    def run(self, problem: StoredProblem, order: Sequence[int], *, deadline: float) -> ReplayedProblem:
        """Return what the policy makes of a problem whose sample number n is stored solution ``order[n]``.

        The live solver decides once more while the grader looks at an answer that it has not seen. The rule ``bayes``
        may have become sure by then, for time has gone by, so this is done here as well.
        """
        policy, machine, heard = self._policy, self._machine(), _Heard(problem, self._searches)
        now, begun = 0.0, 0
        graded: Ends = []  # what the grader looks at
        while True:
            running = [*machine.running, *(sample for _, sample, _ in graded)] if graded else machine.running
            decision = decide(policy, now=now, deadline=deadline, ended=heard.ended, running=running)
            if isinstance(decision, Begin):
                for sample in decision.samples:
                    machine.begin(sample, problem.solutions[order[sample]])
                begun += len(decision.samples)
            elif isinstance(decision, Stop):
                break
            elif graded:
                heard.hear(graded)
                graded = []
            else:
                now, new = machine.advance(decision.until, decision.ends if heard.fixed else 1)
                if self._looks_while_grading:
                    graded = [end for end in new if not heard.knows(end[2])]
                    new = [end for end in new if heard.knows(end[2])]
                heard.hear(new)
        heard.hear(graded)
        over = deadline if decision.search else None
        now, cut_tokens = self._cut(problem, order, machine, heard, now, deadline=over)
        return self._answered(problem, order[:begun], heard, decision.reason, now, deadline, cut_tokens)

    def run_out(self, problem: StoredProblem, order: Sequence[int], *, deadline: float) -> ReplayedProblem:
        """Return what ``run`` returns, where it is known that one batch is begun and runs until the deadline ends it:
        nothing is decided on the way."""
        machine, heard = self._machine(), _Heard(problem, self._searches)
        ends_at, begun = self._policy.sampling_ends(deadline), order[: self._policy.batch]
        for sample, place in enumerate(begun):
            machine.begin(sample, problem.solutions[place])
        now, ends = machine.advance(ends_at, len(begun) + 1) if ends_at > 0 else (0.0, [])
        heard.hear(ends)
        now, cut_tokens = self._cut(problem, order, machine, heard, now, deadline=deadline)
        return self._answered(problem, begun, heard, Reason.TIME, now, deadline, cut_tokens)

    def _machine(self) -> Machine:
        return AsMade() if self._rates is None else Shared(self._rates)

    def _cut(
        self,
        problem: StoredProblem,
        order: Sequence[int],
        machine: Machine,
        heard: _Heard,
        now: float,
        *,
        deadline: float | None,
    ) -> tuple[float, float]:
        """End what runs, and return the time and the tokens that was written of what did not end by itself.

        ``deadline``: of a problem whose time is over. Its requests end by themselves a little after that, and all are
        heard together: those that still ended, and what can be found in the others. None: nothing is searched.
        """
        tokens, cut = 0.0, Ends()
        last = now if deadline is None else self._policy.requests_end(deadline)
        while machine.running and now < last:
            now, ends = machine.advance(last)
            cut += ends
        heard.add(cut, now)
        for sample in machine.running:
            written = machine.written(sample)
            tokens += written
            if deadline is not None:
                seen = problem.solutions[order[sample]].glimpsed(written) if self._searches else NOTHING
                heard.glimpse(sample, now, seen, int(written))
        heard.group()
        return now, tokens

    def _answered(
        self,
        problem: StoredProblem,
        begun: Sequence[int],
        heard: _Heard,
        reason: Reason,
        now: float,
        deadline: float,
        cut_tokens: float,
    ) -> ReplayedProblem:
        policy, ended, tokens = self._policy, heard.ended, heard.tokens + cut_tokens
        pick, selected, unselected = None, 0, False
        if samples := selection(policy, reason=reason, now=now, deadline=deadline, ended=ended):
            places = {begun[sample]: sample for sample in samples}
            stored = [s for s in problem.selections if s.candidates <= places.keys()][: policy.select_samples]
            seconds = self._select_seconds(stored)
            unselected = not stored
            in_time = [s for s, t in zip(stored, seconds, strict=True) if t <= policy.select_seconds]
            if stored:
                now += min(policy.select_seconds, max(seconds))
                tokens += sum(s.tokens for s in stored)
            if selected := len(in_time):
                chosen = [None if s.chosen is None else places[s.chosen] for s in in_time]
                pick = judged(policy, ended, chosen)
        pick = pick or choose(policy, ended)
        answer = heard.answer_of(pick)
        return ReplayedProblem(
            answer,
            problem.is_right(answer),
            reason,
            now,
            tokens,
            len(begun),
            any(problem.solutions[place].right for place in begun) or heard.any_right(),
            selected,
            unselected,
        )

    def _select_seconds(self, stored: Sequence[StoredSelection]) -> list[float]:
        """Return when each selection ends: they run side by side."""
        if self._rates is None:
            return [s.seconds or 0.0 for s in stored]
        machine = Shared(self._rates)
        for n, s in enumerate(stored):
            machine.begin(n, StoredSolution("", None, False, s.tokens))
        seconds = [0.0] * len(stored)
        while machine.running:
            for at, n, _ in machine.advance(UNLIMITED)[1]:
                seconds[n] = at
        return seconds


class _Heard:
    """The solutions that have ended, with the classes of their answers."""

    def __init__(self, problem: StoredProblem, searches: bool):
        self.ended: list[Ended] = []
        self.tokens = 0
        """Of those that ended by themselves."""
        self.fixed = problem.classes is not None
        """Whether the classes are the same whatever else is heard."""
        self._problem, self._searches, self._answers = problem, searches, dict[int, str | None]()
        self._classes: dict[str | None, int | None] = problem.classes or {None: None}
        self._stale = False  # whether an answer came whose class is not known

    def knows(self, solution: StoredSolution) -> bool:
        """Tell whether its answer was heard before in this spelling: the grader is not asked again."""
        answer = solution.answer if solution.whole or self._searches else None
        return answer is None or answer in self._answers.values()

    def hear(self, ends: Ends) -> None:
        """Add solutions that have ended."""
        self.add(ends)
        self.group()

    def add(self, ends: Ends, now: float | None = None) -> None:
        """Add solutions that have ended, each at its time, or all ``now``; nothing is grouped yet."""
        searches = self._searches
        for at, sample, s in ends:
            self.tokens += s.tokens
            answer = s.answer if s.whole or searches else None
            self._add(sample, at if now is None else now, answer, s.tokens, s.entropy, s.whole)

    def glimpse(self, sample: int, now: float, seen: Glimpse, tokens: int) -> None:
        """Add what is found in a solution that is cut off; nothing is grouped yet."""
        self._add(sample, now, seen.answer, tokens, seen.entropy, False)

    def _add(self, sample: int, at: float, answer: str | None, tokens: int, entropy: float | None, whole: bool) -> None:
        self._answers[sample] = answer
        if answer in self._classes:
            group = self._classes[answer]
        else:
            group, self._stale = None, True
        self.ended.append(Ended(sample, at, group, tokens, entropy, whole))

    def group(self) -> None:
        """Have all answers grouped."""
        if self._stale:
            answers = list(self._answers.values())
            self._classes.update(zip(answers, self._problem.grouping.of(answers), strict=True))
            self.ended = [e._replace(group=self._classes[self._answers[e.sample]]) for e in self.ended]
            self._stale = False

    def answer_of(self, pick: Pick) -> str | None:
        """Return the answer that a class is named by."""
        if pick.group is None:
            return None
        answers = [self._answers[e.sample] for e in self.ended if e.group == pick.group]
        return spelling(answer for answer in answers if answer is not None)

    def any_right(self) -> bool:
        """Tell whether one of the answers is right."""
        return any(map(self._problem.is_right, self._answers.values()))

"""The decisions of the solver: rules on small cases, and the probabilities of ``bayes`` against enumeration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import gamma

from nemo_openmath.competition.bayes import arrival, posterior_right, posterior_stays
from nemo_openmath.competition.policy import (
    Begin,
    Ended,
    Policy,
    Reason,
    Stop,
    Wait,
    choose,
    decide,
    drawn,
    judged,
    selection,
)

GROUPS = {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}


def heard(word: str, at: float = 1.0) -> list[Ended]:
    """One solution a letter: its answer; ``-`` has none, ``!`` was lost, a capital was cut off."""
    return [
        Ended(n, at + n, GROUPS.get(letter.lower()), whole=letter.islower() or letter == "-", lost=letter == "!")
        for n, letter in enumerate(word)
    ]


def decided(policy: Policy, word: str, running: int, now: float = 20.0, deadline: float = 100.0) -> object:
    ended = heard(word)
    return decide(policy, now=now, deadline=deadline, ended=ended, running=range(len(word), len(word) + running))


PAPER = Policy(batch=16, agree=4, closing_seconds=5)


@pytest.mark.parametrize(
    ("word", "running", "expected"),
    [
        ("", 0, Begin(tuple(range(16)))),
        ("aaa", 13, Wait(95.0)),
        ("aaaa", 12, Stop(Reason.AGREEMENT)),
        ("a-aa", 12, Wait(95.0)),  # one of the first four has no answer: five are needed
        ("abaaa", 11, Wait(95.0)),
        ("abaaaa", 10, Stop(Reason.AGREEMENT)),
        ("ababababab", 6, Wait(95.0)),  # five against five
        ("abcdeabcdeabcde-", 0, Stop(Reason.FINISHED)),
        ("aaaA", 12, Wait(95.0)),  # one that was cut off does not agree
    ],
)
def test_the_votes_of_the_paper(word: str, running: int, expected: object) -> None:
    assert decided(PAPER, word, running) == expected


def test_the_time_is_over_before_the_deadline_and_never_later() -> None:
    assert decided(PAPER, "ab", 14, now=95.0) == Stop(Reason.TIME)
    assert [Stop(reason).search for reason in (Reason.TIME, Reason.AGREEMENT)] == [True, False]
    assert decided(PAPER, "", 0, now=95.0) == Stop(Reason.TIME), "nothing is begun then"
    assert PAPER.sampling_ends(10.0) == 9.0, "a tenth of a short problem"
    reserved = Policy(final="genselect", select_seconds=30, select_reserved=True)
    assert (reserved.sampling_ends(100.0), reserved.sampling_ends(20.0)) == (65.0, 8.0)


def test_stragglers_are_cancelled_once_the_rest_ended() -> None:
    policy = Policy(batch=6, agree=6, stragglers=2)
    assert decided(policy, "abc", 3) == Wait(95.0)
    assert decided(policy, "abcd", 2) == Stop(Reason.STRAGGLERS)
    assert decided(policy, "----", 2) == Wait(95.0), "not where they are the only hope of an answer"


def test_a_second_round_where_no_two_agree() -> None:
    policy = Policy(batch=4, agree=4, second=3, second_seconds=30)
    assert decided(policy, "abc-", 0) == Begin((4, 5, 6))
    assert decided(policy, "abcc", 0) == Stop(Reason.FINISHED)
    assert decided(policy, "abc", 1) == Wait(95.0)
    assert decided(policy, "abc-", 0, now=70.0) == Stop(Reason.FINISHED), "25 seconds are too few"
    assert decided(policy, "abc-e", 2) == Wait(95.0)
    assert decided(policy, "abc-edd", 0) == Stop(Reason.FINISHED), "there is no third"


def test_what_the_engine_lost_is_begun_again_after_a_pause() -> None:
    policy = Policy(batch=4, agree=4, replace=2, replace_pause=5)
    assert decided(policy, "a!", 2, now=4.0) == Wait(7.0)
    assert decided(policy, "a!", 2, now=7.0) == Begin((4,))
    assert decided(policy, "!!!!", 0) == Begin((4, 5)), "two at most"
    assert decided(policy, "!!!!!!", 0) == Stop(Reason.FINISHED)
    assert decided(policy, "a!", 2, now=4.0, deadline=7.7) == Wait(policy.sampling_ends(7.7)), "too late for another"


@given(
    st.text("aab-!A", max_size=8), st.text("ab-A", max_size=8), st.integers(1, 8), st.integers(0, 3), st.integers(0, 3)
)
def test_until_a_decision_is_due_nothing_but_wait_is_said(
    word: str, then: str, agree: int, stragglers: int, second: int
) -> None:
    """``Wait.ends``: whatever fewer solutions than these say, the decision is the same."""
    policy = Policy(batch=8, agree=agree, stragglers=stragglers, second=second, second_seconds=0.0, replace_pause=0.0)
    running = max(0, 8 - len(word)) + word.count("!")
    first = decided(policy, word, running)
    if isinstance(first, Wait):
        for ends in range(1, min(first.ends, len(then) + 1, running + 1)):
            assert decided(policy, word + then[:ends], running - ends) == first
        assert first.ends == 1 or "!" not in word


def test_a_decision_is_due_after_as_few_ends_as_can_bring_it() -> None:
    assert decided(PAPER, "", 16) == Wait(95.0)
    for word, ends in (("", 4), ("aa", 2), ("ab", 4), ("aaab", 2), ("aaaabbbb", 1), ("a" * 3 + "-" * 12, 1)):
        what = decided(PAPER, word, 16 - len(word))
        assert isinstance(what, Wait)
        assert what.ends == ends, word
    few = decided(replace(PAPER, stragglers=12), "abc", 13)
    assert isinstance(few, Wait)
    assert few.ends == 1


@given(
    st.lists(st.sampled_from("abc-!A"), max_size=12),
    st.integers(0, 6),
    st.randoms(),
    st.sampled_from(["votes", "bayes"]),
)
def test_order_and_numbers_of_groups_decide_nothing(word: list[str], running: int, rng: object, rule: str) -> None:
    policy = Policy(batch=12, agree=3, rule=rule, second=2, entropy_weight=1.0)  # type: ignore[arg-type]
    ended = [Ended(e.sample, e.at, e.group, 5, 0.1 * e.sample, e.whole, e.lost) for e in heard("".join(word))]
    mixed = list(ended)
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    renamed = [
        Ended(e.sample, e.at, None if e.group is None else 7 - e.group, 5, e.entropy, e.whole, e.lost) for e in mixed
    ]
    run = range(len(word), len(word) + running)
    first = decide(policy, now=20.0, deadline=100.0, ended=ended, running=run)
    assert first == decide(policy, now=20.0, deadline=100.0, ended=renamed, running=list(reversed(run)))
    a, b = choose(policy, ended), choose(policy, renamed)
    assert (a.weight, a.votes) == (b.weight, b.votes)
    assert a.group == (None if b.group is None else 7 - b.group)


def test_the_vote_is_weighted() -> None:
    ended = heard("aabbb")
    assert choose(Policy(), ended).group == 1
    sure = [Ended(e.sample, e.at, e.group, 1, 0.05 if e.group == 0 else 2.0) for e in ended]
    pick = choose(Policy(entropy_weight=1.0), sure)
    assert (pick.group, pick.second) == (0, 1)
    assert (pick.weight, pick.second_weight) == pytest.approx((2 * math.exp(-0.05), 3 * math.exp(-2)))
    assert choose(Policy(partial_weight=0.4), heard("abB")).group == 1
    assert choose(Policy(partial_weight=0.4), heard("aBB")).group == 0
    assert choose(Policy(partial_weight=0.0), heard("BB")).group is None
    assert choose(Policy(), heard("-!")).group is None
    assert choose(Policy(), heard("ba")).group == 1, "of equal votes the first"


def test_a_selection_is_asked_for_where_solutions_differ_and_time_is_left() -> None:
    policy = Policy(final="genselect", select_seconds=30, select_samples=3, select_candidates=2)

    def asked(word: str, reason: Reason = Reason.FINISHED, now: float = 20.0) -> tuple[int, ...]:
        return selection(policy, reason=reason, now=now, deadline=100.0, ended=heard(word))

    assert asked("aba-") == (0, 1, 2)
    assert asked("aa") == () == asked("aB") == asked("")
    assert asked("ab", Reason.AGREEMENT) == () == asked("ab", now=70.0)
    draws = drawn(policy, (0, 1, 2), 1)
    assert [len(set(candidates)) for candidates in draws] == [2, 2, 2]
    assert draws == drawn(policy, (0, 1, 2), 1)
    assert draws != drawn(policy, (0, 1, 2), 2)
    assert judged(policy, heard("aab"), [2, 2, None]).group == 1
    assert judged(policy, heard("aab"), [2, 1]).group == 0, "a tie is the vote's"
    assert judged(policy, heard("aab"), [None]).group == 0 == judged(policy, heard("aab"), []).group


# -- the rule bayes ----------------------------------------------------------------------------------------------------


def by_steps(word: Sequence[str], right: str | None, a: float, b: float, spread: float) -> float:
    """P(these answers in this order, and ``right`` is right), one solution after the other."""
    chance, wrong = 1.0, Counter[str]()
    for n, letter in enumerate(word):
        n_wrong = sum(wrong.values())
        if letter == right:
            chance *= (a + n - n_wrong) / (a + b + n)
            continue
        chance *= (b + n_wrong) / (a + b + n) * (wrong[letter] or spread) / (spread + n_wrong)
        wrong[letter] += 1
    return chance


@pytest.mark.parametrize("word", ["a", "aaaa", "aabc", "abcabb", "abcde"])
@pytest.mark.parametrize(("a", "b", "spread"), [(1.0, 1.0, 4.0), (0.5, 2.0, 1.3)])
def test_the_posterior_is_that_of_the_model(word: str, a: float, b: float, spread: float) -> None:
    counts = Counter(word)
    letters = sorted(counts)
    joint = {right: by_steps(word, right, a, b, spread) for right in (*letters, None)}
    for g, letter in enumerate(letters):
        got = posterior_right([counts[x] for x in letters], g, accuracy=(a, b), spread=spread)
        assert math.isclose(got, joint[letter] / sum(joint.values()), rel_tol=1e-9)


def urn(votes: dict[str, float], mass: dict[str, float], running: int, vote: float, rival: str) -> float:
    """P(the rival draws level with l after all steps), by following every sequence of draws."""
    if not running:
        return float(votes[rival] >= votes["l"] - 1e-12)
    chance = (1 - vote) * urn(votes, mass, running - 1, vote, rival)
    total = sum(mass.values())
    for name in mass:
        more = {**votes, name: votes[name] + 1}
        chance += vote * mass[name] / total * urn(more, {**mass, name: mass[name] + 1}, running - 1, vote, rival)
    return chance


@pytest.mark.parametrize(("first", "second", "running"), [(2, 1, 3), (3, 1, 5), (4, 3, 4), (2, 2, 1)])
def test_staying_in_front_is_bounded_by_the_urn(first: float, second: float, running: int) -> None:
    spread, vote = 1.5, 0.7
    votes, mass = {"l": first, "h": second, "u": 0.0}, {"l": first, "h": second, "u": spread}
    loses = sum(urn(votes, mass, running, vote, rival) for rival in "hu")
    got = posterior_stays([first, second], 0, running=running, vote=vote, unit=1.0, spread=spread)
    assert math.isclose(got, max(0.0, 1 - loses), abs_tol=1e-9)


def test_arrivals_follow_the_ends_seen() -> None:
    assert arrival(0, 0.0, 100.0, prior_seconds=100.0) == 0.5
    assert arrival(5, 100.0, 0.0, prior_seconds=100.0) == 0.0
    # the mixture over the rate, which is Gamma(1 + k, T + E), integrated
    k, base, seconds = 3, 150.0, 40.0
    mixed, _ = quad(lambda rate: gamma(k + 1, scale=1 / base).pdf(rate) * (1 - math.exp(-rate * seconds)), 0, 1)
    assert math.isclose(arrival(k, 100.0, seconds, prior_seconds=50.0), mixed, rel_tol=1e-6)


def test_the_rule_bayes() -> None:
    policy = Policy(rule="bayes", closing_seconds=5, entropy_weight=1.0)
    assert decided(policy, "aaa", 13) == Wait(22.0), "and it looks again at the clock"
    assert decided(policy, "aaaa", 12) == Stop(Reason.SURE)
    unsure = [Ended(n, n + 1.0, 0, 1, 1.5) for n in range(4)]
    assert decide(policy, now=20.0, deadline=100.0, ended=unsure, running=range(4, 16)) == Wait(22.0)
    # five against three is not sure, and the one that runs cannot change it
    assert decided(replace(policy, batch=9), "abababaa", 1) == Stop(Reason.SETTLED)
    assert decided(replace(policy, batch=5), "abab", 1) == Wait(22.0)
    patient = Policy(rule="bayes", batch=6)
    assert decided(patient, "aab", 3, now=20.0) == Wait(22.0)
    assert decided(patient, "aab", 3, now=94.9) == Stop(Reason.SETTLED), "little can come in a tenth of a second"

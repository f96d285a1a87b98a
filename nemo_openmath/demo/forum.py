"""Forum threads made of the world's problems, with the noise of a forum. Rows as the raw forum's: ``forum_post`` and
``forum_discussions`` ("Post 1:\\n..."). A third column, ``known_problems``, says what a thread holds: by it the stages
of the problem set are measured (synthesis/problems/labelled.py), and none of them reads it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from nemo_openmath.core.bounds import NonNegativeInt, Share
from nemo_openmath.core.errors import UserError
from nemo_openmath.demo import forms
from nemo_openmath.demo.forms import Posed
from nemo_openmath.demo.world import Item, make_problems


@dataclass(frozen=True)
class ForumConfig:
    """How many threads there are by what their first post holds, and the shares of them by what the replies say."""

    single: NonNegativeInt = 300
    """Threads that pose one problem with an answer."""
    several: NonNegativeInt = 30
    """Threads that pose two or three of them."""
    none: NonNegativeInt = 25
    """Threads of talk, without a problem."""
    proof: NonNegativeInt = 50
    """Threads with a proof problem that hides a value."""
    beyond: NonNegativeInt = 15
    """Threads with a proof problem that hides none."""
    choice: NonNegativeInt = 20
    """Threads with a multiple-choice problem."""
    binary: NonNegativeInt = 20
    """Threads with a yes-or-no question."""
    broken: NonNegativeInt = 20
    """Threads with a truncated or nonsensical problem."""
    leaked: NonNegativeInt = 15
    """Threads with a benchmark problem, word for word."""
    reworded: NonNegativeInt = 15
    """Threads with a benchmark problem in other words."""
    answered: Share = 0.6
    """Share of the threads whose replies give the answer."""
    contradicted: Share = 0.15
    """Share of the threads in which somebody errs first and is corrected."""
    disputed: Share = 0.05
    """Share of the threads with two answers that nobody settles."""
    wrong: Share = 0.05
    """Share of the threads in which everybody repeats a wrong answer. The threads of no such share say nothing
    about the answer."""


_HELLO = ("Hi all!", "Hello,", "I found this in an old book.", "From our math circle:", "Stuck on this one.", "")
_THANKS = ("Thanks!", "Any help is welcome.", "Please show your steps.", "I have no idea how to start.", "", "")
_TALK = (
    "Does anybody know a good book on number theory for beginners?",
    "When will the results of the contest be online?",
    "Thank you all for the nice evening at the math circle!",
    "My calculator broke yesterday, and the contest is on Friday.",
    "Sorry, wrong section. A moderator may delete this.",
)
_SMALL_TALK = ("Nice problem!", "Any progress?", "I would also like to know.", "Did you try small cases first?")
_SAY = ("I get {x}.", "The answer is {x}.", "My program says {x}.", "I think it is {x}.")
_AGREE = ("I get {x} too.", "Same here, {x}.", "Yes, {x}.")
_CORRECT = ("No, you missed a case. It is {x}.", "Check your last step. The answer is {x}.")


def make_threads(config: ForumConfig, seed: int, benchmark: Sequence[Item] = ()) -> list[dict[str, Any]]:
    """Return the threads in random order.

    ``benchmark``: the problems that leak. Problems are of the train pool, all different. Raises UserError where more
    leaks are asked for than the benchmark has problems.
    """
    rng = random.Random(f"forum:{seed}")
    if max(config.leaked, config.reworded) > len(benchmark):
        raise UserError(f"{max(config.leaked, config.reworded)} leaks of {len(benchmark)} benchmark problems")
    counts = {field.name: getattr(config, field.name) for field in fields(config) if field.type == "NonNegativeInt"}
    needed = sum(counts.values()) + 2 * config.several
    fresh = iter(make_problems(seed, needed, pool="train"))
    threads: list[list[Posed]] = []
    threads += [[forms.ask(next(fresh))] for _ in range(config.single)]
    threads += [[forms.ask(next(fresh)) for _ in range(rng.choice((2, 2, 3)))] for _ in range(config.several)]
    threads += [[] for _ in range(config.none)]
    threads += [[forms.as_proof(next(fresh), rng)] for _ in range(config.proof)]
    threads += [[forms.beyond(rng)] for _ in range(config.beyond)]
    threads += [[forms.as_choice(next(fresh), rng)] for _ in range(config.choice)]
    threads += [[forms.as_question(next(fresh), rng)] for _ in range(config.binary)]
    threads += [[forms.broken(next(fresh), rng)] for _ in range(config.broken)]
    threads += [[forms.ask(item)] for item in rng.sample(list(benchmark), config.leaked)]
    threads += [[forms.ask(item.reworded())] for item in rng.sample(list(benchmark), config.reworded)]
    rng.shuffle(threads)
    held_out = {item.key for item in benchmark}
    return [_row(posed, config, rng, held_out) for posed in threads]


def _row(problems: list[Posed], config: ForumConfig, rng: random.Random, held_out: set[str]) -> dict[str, Any]:
    post = _post(problems, rng)
    discussion, settled = _discussion(problems, config, rng)
    known = [_known(posed, answer, held_out) for posed, answer in zip(problems, settled, strict=True)]
    return {"forum_post": post, "forum_discussions": discussion, "known_problems": known}


def _known(posed: Posed, settled: str | None, held_out: set[str]) -> dict[str, Any]:
    """Return what is true of a problem, in the fields of synthesis/problems/labelled.py."""
    answer = posed.item.answer if posed.item else None
    asks = posed.form is forms.Form.ANSWER
    return {
        "problem": posed.text,
        "category": str(posed.form),
        "expected_answer": answer if asks else None,
        "discussed_answer": settled if asks else None,
        "converted_answer": answer if posed.form is forms.Form.PROOF else None,
        "in_benchmark": posed.item is not None and posed.item.key in held_out,
    }


def _post(problems: list[Posed], rng: random.Random) -> str:
    if not problems:
        return rng.choice(_TALK)
    body = [p.text for p in problems]
    if len(body) > 1:
        body = [f"{at}) {text}" for at, text in enumerate(body, 1)]
    hello, thanks = rng.choice(_HELLO), rng.choice(_THANKS)
    lines = [hello, *body, thanks] if len(body) > 1 or rng.random() < 0.5 else [f"{hello} {body[0]}".strip(), thanks]
    return "\n".join(line for line in lines if line)


def _discussion(problems: list[Posed], config: ForumConfig, rng: random.Random) -> tuple[str, list[str | None]]:
    """Return the replies, and the answer that they settle on to each problem: None where they settle on none."""
    replies: list[str] = []
    settled = []
    for problem in problems:
        # With several problems in a post people quote the one that they answer.
        quote = f"[quote]{problem.text}[/quote]\n" if len(problems) > 1 else ""
        of_problem, answer = _replies(problem, config, rng)
        replies += [quote + reply for reply in of_problem]
        settled.append(answer)
    if not replies or rng.random() < 0.3:
        replies.insert(rng.randrange(len(replies) + 1), rng.choice(_SMALL_TALK))
    return "\n\n".join(f"Post {at}:\n{reply}" for at, reply in enumerate(replies, 1)), settled


def _replies(problem: Posed, config: ForumConfig, rng: random.Random) -> tuple[list[str], str | None]:
    if problem.item is None:
        return [], None
    right = problem.item.answer
    wrong = str(int(right) + rng.choice((1, 2, 3, 10)))

    def say(phrases: tuple[str, ...], answer: str) -> str:
        return rng.choice(phrases).replace("{x}", answer)

    u = rng.random()
    if (u := u - config.answered) < 0:
        return [say(_SAY, right), *([say(_AGREE, right)] if rng.random() < 0.4 else [])], right
    if (u := u - config.contradicted) < 0:
        return [say(_SAY, wrong), say(_CORRECT, right)], right
    if (u := u - config.disputed) < 0:
        return [say(_SAY, wrong), say(_SAY, right)], None
    if u - config.wrong < 0:
        return [say(_SAY, wrong), say(_AGREE, wrong)], wrong
    return [], None


_DRESS = (
    "{x}", "[b]{x}[/b]", "[color=red][size=150]{x}[/size][/color]", "[hide]{x}", "<div>{x}</div>", "{x}\u200b\r\n",
)  # fmt: skip
_SIGNS = {"&": "&amp;", "<": "&lt;", "=": "\\equal{}", "+": "\\plus{}", "\n": " \r\n"}


def dressed(text: str, rng: random.Random) -> str:
    """Return a post as a forum's software stores it. Read with ``markup: normalise``, it is the post again."""
    for plain, stored in _SIGNS.items():
        text = text.replace(plain, stored) if rng.random() < 0.5 else text
    return rng.choice(_DRESS).format(x=text)

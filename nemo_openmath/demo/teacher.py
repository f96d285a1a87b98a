"""StandInTeacher: a program that plays the large language model of the recipe, for its run in miniature.

It is NOT a language model. It recognises which prompt of the pipeline it is given, reads the problem out of it with
the grammar of the tiny world (``demo/world.py``), and writes what a capable but fallible model would write, with
errors at stated rates. It stands behind the same interface as a real model, in process (:class:`Engine`) or over HTTP
(``python -m nemo_openmath.demo.teacher --tokenizer DIR``), so that every other part of the pipeline is the real one.

Its text is a pure function of the prompt and the request's seed (of the prompt alone at temperature 0).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, fields
from pathlib import Path

from nemo_openmath.chat import ChatTokenizer, Message, Template, load_template
from nemo_openmath.core.engine import (
    Capabilities,
    Chunk,
    Completion,
    Conversation,
    Finish,
    InvalidRequest,
    Request,
    Sampling,
    Usage,
)
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.processes import die_with_parent
from nemo_openmath.demo import solver
from nemo_openmath.demo import teacher_tasks as tasks
from nemo_openmath.demo.forms import Form
from nemo_openmath.demo.rates import TeacherConfig

MODEL = "stand-in-teacher"
DISCLOSURE = (
    "The teacher (extraction, solutions, summaries, selections) is a program that plays a large language "
    "model, with errors at stated rates. Set teacher.url to put a real model in its place."
)
_UNKNOWN = "I am a program that stands in for a large language model, and I know only the prompts of this pipeline."


class StandInTeacher:
    """The stand-in as an :class:`~nemo_openmath.core.engine.Engine`.

    ``tokenizer``: any model's; the prompts' ids are decoded with it and the text written is encoded with it.
    ``templates``: by name, where the pipeline uses other prompts than the shipped ones.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        config: TeacherConfig | None = None,
        *,
        model: str = MODEL,
        templates: dict[str, Template] | None = None,
    ):
        self.tokenizer = tokenizer
        self.config = config or TeacherConfig()
        self._model = model
        self._templates = {name: (templates or {}).get(name) or load_template(name) for name in _TASKS}
        # The chat template's fixed text: before, between and behind the turns of a prompt.
        mark = "\0"
        self._begin, self._end = tokenizer.render([Message("user", mark)]).split(mark)
        with_system = tokenizer.render([Message("system", mark), Message("user", mark)])
        self._between = with_system.split(mark)[1]

    @property
    def model(self) -> str:
        return self._model

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            token_ids=True, text_prompts=True, seeds=True, logprobs=False, keep_stop=True, cached_tokens=False
        )

    async def complete(self, request: Request) -> Completion:
        """Write the whole completion at once."""
        if isinstance(request.prompt, Conversation):
            raise InvalidRequest("conversations are for chat servers; this engine takes token ids")
        prompt = request.prompt if isinstance(request.prompt, str) else self.tokenizer.decode(request.prompt)
        length = len(self.tokenizer.encode(prompt) if isinstance(request.prompt, str) else request.prompt)
        text = self.write(prompt, request.sampling)
        return self._cut(text, length, request.sampling)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the completion in parts of up to 16 tokens."""
        completion = await self.complete(request)
        ids, sent = completion.token_ids, 0
        for at in range(16, len(ids), 16):
            text = self.tokenizer.decode(ids[:at])
            # A character may be split between two pieces; its first bytes wait for the rest.
            if completion.text.startswith(text) and len(text) > sent:
                yield Chunk(text[sent:])
                sent = len(text)
                await asyncio.sleep(0)
        yield Chunk(completion.text[sent:], ids, completion)

    async def close(self) -> None:
        """Do nothing: nothing is held."""

    def write(self, prompt: str, sampling: Sampling) -> str:
        """Return the text that follows a rendered prompt, not yet cut at stop strings or ``max_tokens``."""
        rng = random.Random(f"{sampling.seed if sampling.temperature > 0 else 'greedy'}|{prompt}")
        user, so_far = self._read(prompt)
        for name, template in self._templates.items():
            values = template.match(user)
            if values is not None:
                return _TASKS[name](values, so_far, rng, self.config)
        return _UNKNOWN

    def _read(self, prompt: str) -> tuple[str, str]:
        """The (last) user turn and what the assistant has written so far."""
        end = prompt.rfind(self._end)
        if end < 0:  # not a chat prompt: a base model's completion of plain text
            return prompt, ""
        head, so_far = prompt[:end], prompt[end + len(self._end) :]
        if head.startswith(self._begin) and self._between not in head:
            return head[len(self._begin) :], so_far
        return head.rpartition(self._between)[2], so_far

    def _cut(self, text: str, prompt_tokens: int, sampling: Sampling) -> Completion:
        stop = min((s for s in sampling.stop if s in text), key=text.index, default=None)
        finish = Finish.STOP
        if stop is not None:
            text = text[: text.index(stop) + (len(stop) if sampling.keep_stop else 0)]
        # No token is longer than some characters, so what lies far behind the limit need not be encoded.
        ids = self.tokenizer.encode(text[: 512 * sampling.max_tokens])
        if stop is None:
            ids.append(self.tokenizer.end_of_turn)
        if len(ids) > sampling.max_tokens:
            ids, stop, finish = ids[: sampling.max_tokens], None, Finish.LENGTH
            text = self.tokenizer.decode(ids)
        usage = Usage(prompt_tokens, 0, len(ids))
        return Completion(text, tuple(ids), finish, stop, usage)


def _tir(values: dict[str, str], so_far: str, rng: random.Random, config: TeacherConfig) -> str:
    return solver.tir(solver.find_item(values["problem"]), int(values["total_code_executions"]), so_far, rng, config)


# What answers each prompt: (the prompt's fields, the assistant's text so far, generator, rates) -> text.
_TASKS: dict[str, Callable[[dict[str, str], str, random.Random, TeacherConfig], str]] = {
    "tir": _tir,
    "cot": lambda v, _, rng, c: solver.cot(solver.find_item(v["problem"]), rng, c),
    "genselect": lambda v, _, rng, c: solver.genselect(
        solver.find_item(v["problem"]), v["solutions"], int(v["num_solutions"]), rng, c
    ),
    "summarize": lambda v, _, rng, c: solver.summarize(v["solution"], rng, c),
    "summarize-comparison": lambda v, _, rng, c: solver.summarize_comparison(v["comparison"], rng, c),
    "judge": lambda v, _, rng, c: tasks.judge(v["predicted_answer"], v["expected_answer"], rng, c.judge_error),
    "classify-novelty": lambda v, _, rng, c: tasks.classify_novelty(v["fragment"], rng, c.novelty_error),
    "classify-significance": lambda v, _, rng, c: tasks.classify_significance(v["fragment"], rng, c.novelty_error),
    "extract-problems": lambda v, _, rng, c: tasks.extract_problems(v["forum_post"], rng, c.extract_error),
    "classify-proof": lambda v, _, rng, c: tasks.classify(v["problem"], Form.PROOF, rng, c.classify_error),
    "classify-multiple-choice": lambda v, _, rng, c: tasks.classify(v["problem"], Form.CHOICE, rng, c.classify_error),
    "classify-binary": lambda v, _, rng, c: tasks.classify(v["problem"], Form.BINARY, rng, c.classify_error),
    "classify-invalid": lambda v, _, rng, c: tasks.classify(v["problem"], Form.INVALID, rng, c.classify_error),
    "convert-proof": lambda v, _, rng, c: tasks.convert_proof(
        v["problem"], v["forum_discussions"], rng, c.convert_error
    ),
    "extract-answer": lambda v, _, rng, c: tasks.extract_answer(
        v["problem"], v["forum_discussions"], rng, c.answer_error
    ),
    "decontaminate": lambda v, _, rng, c: tasks.decontaminate(
        v["problem"], v["candidate"], False, rng, c.decontaminate_error
    ),
    "decontaminate-family": lambda v, _, rng, c: tasks.decontaminate(
        v["problem"], v["candidate"], True, rng, c.decontaminate_error
    ),
}


def load_config(config: str | Path | None) -> TeacherConfig:
    """Read rates from a JSON object, given as text or as a file. Those not named keep their defaults.

    Raises UserError naming the wrong key or value.
    """
    if config is None:
        return TeacherConfig()
    inline = isinstance(config, str) and config.lstrip().startswith("{")
    where = None if inline else config
    try:
        values = json.loads(str(config) if inline else Path(config).read_text())
        known = [field.name for field in fields(TeacherConfig)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UserError(f"unknown rate {unknown[0]!r}", file=where, remedy=f"one of {', '.join(known)}")
        return TeacherConfig(**values)
    except (OSError, ValueError, TypeError) as error:
        problem = f"cannot read the teacher's rates ({error})"
        raise UserError(problem, file=where, remedy="give a JSON object of rates") from error


async def serve(teacher: StandInTeacher, port: int) -> None:
    """Serve until cancelled; one JSON line on stdout tells the URL when ready."""
    from nemo_openmath.inference.serving.openai_server import (
        OpenAIServer,  # in process, the stand-in needs no web server
    )

    async with OpenAIServer(teacher, port=port) as server:
        ready = {"url": server.url, "model": teacher.model, "what": "a program that stands in for a language model"}
        print(json.dumps(ready), flush=True)
        await asyncio.Event().wait()


def command(config: TeacherConfig, tokenizer: Path) -> list[str]:
    """Return the command that serves the stand-in on a free port of loopback and prints its URL."""
    words = [sys.executable, "-P", "-m", "nemo_openmath.demo.teacher", "--tokenizer", str(tokenizer)]
    return [*words, "--config", json.dumps(asdict(config)), "--port", "0"]


def main(arguments: list[str] | None = None) -> int:
    """Serve the stand-in: ``python -m nemo_openmath.demo.teacher --tokenizer DIR [--config JSON] [--port N]``."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m nemo_openmath.demo.teacher", description=__doc__)
    parser.add_argument("--tokenizer", required=True, help="folder of the tokenizer that prompts are written with")
    parser.add_argument("--config", help="rates of errors: a JSON object, or a file that holds one")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the URL is printed")
    options = parser.parse_args(arguments)
    try:
        teacher = StandInTeacher(ChatTokenizer.load(options.tokenizer), load_config(options.config))
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(teacher, options.port))
    except UserError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Make the training targets of GenSelect: a new summary of each comparison stands in its place (paper section 4.3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nemo_openmath.chat import Author, Span, Transcript, load_template
from nemo_openmath.chat.blocks import final_judgment_of, judgment_of
from nemo_openmath.core.records import Drop, Generation, Mode
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.inference.asking import PreparedPrompt
from nemo_openmath.synthesis.summaries import SummariesConfig, longest_valid


@dataclass(frozen=True)
class TargetsConfig(SummariesConfig):
    """Settings of ``genselect.targets``."""


class Targets(UnitStage[TargetsConfig, Generation]):
    """Replace the text of each selection, its reasoning and its judgment, by a short version of the comparison that
    ends in the same ``Judgment: IDX``.

    A model that is trained on these compares in at most ``max_tokens`` tokens, so that a selection costs little. A
    selection of which no summary keeps the judgment is dropped. The question stays: it is the prompt that was asked.
    """

    kind = "genselect.targets"
    version = 2  # 2: a summary that states several judgments is not used
    Config = TargetsConfig
    ports = {"selections": "selections to train on, as genselect.select leaves them with keep_correct"}
    takes = {"selections": "Generation"}
    record = Generation

    def __init__(self, config: TargetsConfig):
        super().__init__(config)
        self.concurrency = config.concurrency
        self._template = load_template("summarize-comparison", config.prompt)

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    async def prepare(self, context: StageContext) -> None:
        self._engine, self._tokenizer = await context.services.engine(self.config.engine)

    def units(self, context: StageContext) -> Iterable[tuple[str, Generation]]:
        return ((g.id, g) for g in context.read("selections", Generation))

    async def process(self, unit: Generation, context: StageContext) -> Result:
        if unit.mode is not Mode.GENSELECT:
            return Result(drops=[Drop("not a selection", f"{unit.mode}: {unit.id}")], asked=False)
        transcript = Transcript.from_json(unit.transcript, ids=False)
        chosen = judgment_of(transcript.summary or "")
        if not unit.finished or chosen is None or unit.predicted_answer is None:
            return Result(drops=[Drop("no valid judgment", transcript.text[-200:])], asked=False)
        messages = self._template.messages(question=transcript.messages[-1].content, comparison=transcript.text)
        prompt = await PreparedPrompt.of(self._engine, self._tokenizer, messages)
        seeds = [derive_seed(context.seed, "target", unit.id, number) for number in range(self.config.candidates)]

        async def keeps(text: str) -> bool:
            return final_judgment_of(text) == chosen

        summary = await longest_valid(prompt, self.config, seeds, keeps)
        if summary.text is None:
            reason = "no summary was finished" if summary.unfinished else "no summary kept the judgment"
            return Result(drops=[Drop(reason, summary.example)])
        target = Transcript(transcript.messages, (Span(Author.MODEL, summary.text),))
        return Result([unit.with_(transcript=target.to_json(), thinks=target.thinks, completion_tokens=summary.tokens)])

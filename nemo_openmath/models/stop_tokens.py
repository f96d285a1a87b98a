"""Where the texts of a model end, as its folder says it: read from one, written into another.

Four files say it, and every reader takes another of them: transformers' ``generate`` and vLLM read
``generation_config.json``, TensorRT-LLM and chat clients the ``eos_token`` of ``tokenizer_config.json``, training
libraries ``config.json``. A base model names its end-of-text token in all of them; fine-tuning teaches it the end of a
turn, which none of them names. What a training writes therefore names both, the taught one first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_openmath.chat.model_files import read_object
from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.errors import UserError

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class StopTokens:
    """``ends``: ids of the tokens that end a text, the preferred one first; ``pad``, ``bos``: ids, where there are."""

    ends: tuple[int, ...] = ()
    pad: int | None = None
    bos: int | None = None

    @classmethod
    def of(cls, folder: Path) -> StopTokens:
        """Return what generation_config.json, config.json and the tokenizer of a model folder name together.

        A file that is not there says nothing. Raises UserError for a file that is not a JSON object and for an id that
        is none: what is trained would carry it on.
        """
        files = [_checked(folder / GENERATION), _checked(folder / "config.json")]
        ids = _token_ids(folder)
        files.append(
            {
                f"{kind}_token_id": ids.get(text)
                for kind, text in _named(read_object(folder / _TOKENIZER)).items()
                if text
            }
        )
        ends: list[int] = []
        for settings in files:
            value = settings.get("eos_token_id")
            ends += value if isinstance(value, list) else [] if value is None else [value]
        first = {kind: next((f[k] for f in files if f.get(k := f"{kind}_token_id") is not None), None) for kind in _ONE}
        return cls(tuple(dict.fromkeys(ends)), first["pad"], first["bos"])

    def taught(self, ends: Iterable[int]) -> StopTokens:
        """Return the same after a training on texts that end in ``ends``: these come first, the others stay."""
        both = tuple(dict.fromkeys((*ends, *self.ends)))
        pad = self.pad if self.pad is not None else next(iter(self.ends), next(iter(both), None))
        return StopTokens(both, pad, self.bos)

    def with_others(self, others: Iterable[StopTokens]) -> StopTokens:
        """Return the stop tokens of a model combined of several: it may end a text as any of them does."""
        return self.taught(()).taught((*self.ends, *(end for other in others for end in other.ends)))

    def change(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``config.json`` that names these tokens."""
        named: dict[str, Any] = {"eos_token_id": _one_or_all(self.ends), "pad_token_id": self.pad}
        if self.bos is not None:
            named["bos_token_id"] = self.bos
        return {**config, **{key: value for key, value in named.items() if value is not None}}

    def write(self, folder: Path) -> None:
        """Make all files of ``folder`` name these tokens. ``generation_config.json`` then says nothing else: the
        sampling defaults of the model that a training started from (temperature, top_k, repetition_penalty, lengths)
        would change what is measured wherever a client leaves a field out."""
        config = folder / "config.json"
        if config.is_file():
            _write(config, self.change(read_object(config)))
        _write(folder / GENERATION, self.change({}))
        text: dict[int | None, str] = {number: token for token, number in _token_ids(folder).items()}
        chosen = {"eos_token": text.get(next(iter(self.ends), None)), "pad_token": text.get(self.pad)}
        for name in (_TOKENIZER, "special_tokens_map.json"):
            if not (folder / name).is_file():
                continue
            entry = read_object(folder / name)
            for key, token in chosen.items():
                if token is not None and _text(entry.get(key)) != token:
                    entry[key] = {**entry[key], "content": token} if isinstance(entry.get(key), dict) else token
            _write(folder / name, entry)


_TOKENIZER = "tokenizer_config.json"
_ONE = ("pad", "bos")


def end_ids(tokenizer: ChatTokenizer) -> frozenset[int]:
    """Return the ids of all tokens that end a text.

    These are the tokens that the model's files name, and the end of a turn of its template.
    """
    return frozenset({tokenizer.end_of_turn, *StopTokens.of(tokenizer.folder).ends})


def special_ids(folder: Path) -> frozenset[int]:
    """Return the ids of the tokens that stand for no text.

    These are the tokens that ``tokenizer.json`` calls special and those that :meth:`StopTokens.of` finds named.
    """
    added = read_object(folder / "tokenizer.json").get("added_tokens") or []
    named = StopTokens.of(folder)
    ids = {*(token["id"] for token in added if token.get("special")), *named.ends}
    return frozenset(ids if named.pad is None else {*ids, named.pad})


def _token_ids(folder: Path) -> dict[str, int]:
    """Ids of the added tokens, and of whole entries of the vocabulary, that special tokens may be named by."""
    tokenizer = read_object(folder / "tokenizer.json")
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    known = vocabulary if isinstance(vocabulary, dict) else {}
    return {**known, **{token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}}


def _named(tokenizer_config: Mapping[str, Any]) -> dict[str, str | None]:
    return {kind: _text(tokenizer_config.get(f"{kind}_token")) for kind in ("eos", *_ONE)}


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _one_or_all(ends: Sequence[int]) -> int | list[int] | None:
    return None if not ends else ends[0] if len(ends) == 1 else list(ends)


def _checked(path: Path) -> dict[str, Any]:
    settings = read_object(path)
    for key in ("eos_token_id", *(f"{kind}_token_id" for kind in _ONE)):
        value, ends = settings.get(key), key == "eos_token_id"
        for number in value if isinstance(value, list) and ends else [value]:
            if value is not None and (type(number) is not int or (ends and number < 0)):
                raise UserError(f"{key} is {value!r}", file=path, remedy="write the id of a token")
    return settings


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")

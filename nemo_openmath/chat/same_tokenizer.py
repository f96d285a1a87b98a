"""Whether two folders hold the same tokenizer: by what it does, not by its bytes.

Programs write one tokenizer in many ways: merges as lines or as pairs, padding and truncation as they were last used,
settings that are the default left out. What counts is which ids a text becomes, and which text ids become: vocabulary,
merges, added tokens, and the steps before and after the model. Chat templates and which token ends a text do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_openmath.chat.model_files import read_object
from nemo_openmath.core.errors import UserError

_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def tokenizer_difference(folder: str | Path, other: str | Path) -> str | None:
    """Return the first thing in which the tokenizer of ``folder`` differs from that of ``other``, in words. None where
    they are the same, or one of the folders has none. Raises DamagedFile naming a file that cannot be read."""
    a, b = _state(Path(folder)), _state(Path(other))
    if not a or not b:
        return None
    for part in a:
        if part in b and a[part] != b[part]:
            return next(_words(part, a[part], b[part]))
    return None


def _state(folder: Path) -> dict[str, Any]:
    """Return part -> what it does, for the parts that the folder's files say something about."""
    parts: dict[str, Any] = {}
    whole = read_object(folder / "tokenizer.json")
    model = whole.get("model") or {}
    if whole:
        parts["vocabulary"] = _vocabulary(folder / "tokenizer.json", model.get("vocab"))
        parts["merges"] = [_pair(merge) for merge in model.get("merges") or []]
        settings = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
        # BPE is what a model without a type is; None, "" and false are how programs write "not used"
        parts["model"] = {"type": "BPE"} | {key: value for key, value in settings.items() if value}
        parts |= {step: _step(step, whole.get(step)) for step in _STEPS}
    elif (folder / "vocab.json").is_file():
        parts["vocabulary"] = _vocabulary(folder / "vocab.json", read_object(folder / "vocab.json"))
        if (folder / "merges.txt").is_file():
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            parts["merges"] = [_pair(line) for line in lines if line and not line.startswith("#version")]
    if parts:
        parts["added token"] = _added(folder, whole)
    return parts


def _added(folder: Path, whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return text -> id and flags of the added tokens: those of tokenizer.json, and those that transformers adds from
    the other files."""
    decoder = read_object(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    listed = [{"id": int(number), **token} for number, token in decoder.items() if isinstance(token, dict)]
    listed += [token for token in whole.get("added_tokens") or [] if isinstance(token, dict)]
    tokens = {str(t.get("content")): (t.get("id"), *(bool(t.get(flag)) for flag in _FLAGS)) for t in listed}
    if not whole:
        for text, number in read_object(folder / "added_tokens.json").items():
            tokens.setdefault(text, (number, False, False, False, False, True))
    return tokens


def _vocabulary(path: Path, vocabulary: Any) -> dict[str, Any]:
    """Return token -> id, or id and score."""
    if isinstance(vocabulary, list):
        return {str(entry[0] if isinstance(entry, list) else entry): (i, entry) for i, entry in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict | None):
        raise UserError("its vocabulary is no list of tokens", file=path, remedy="copy or download it again")
    return dict(vocabulary or {})


def _pair(merge: Any) -> tuple[str, ...]:
    return tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(map(str, merge))


def _step(name: str, step: Any) -> Any:
    """Return a step without what changes no id and no text; None where nothing is left."""
    if not isinstance(step, dict):
        return step
    kind = step.get("type")
    if kind == "Sequence":
        inner = next((key for key in ("normalizers", "pretokenizers", "processors", "decoders") if key in step), "")
        parts = [part for part in (_step(name, part) for part in step.get(inner) or []) if part is not None]
        return None if not parts else parts[0] if len(parts) == 1 else parts
    if kind == "TemplateProcessing":  # one that puts no token around a text does nothing
        parts = [part for form in ("single", "pair") for part in step.get(form) or []]
        if not any("SpecialToken" in part for part in parts):
            return None
    if kind == "ByteLevel":
        if name == "post_processor":  # it moves offsets alone
            return None
        if name == "decoder":  # its settings are those of the way there
            return {"type": kind}
        step = {"add_prefix_space": True, "use_regex": True, **step}
    return {key: value for key, value in step.items() if key != "trim_offsets"}


def _words(part: str, a: Any, b: Any) -> Iterator[str]:
    if part in ("vocabulary", "added token"):
        what = "the token" if part == "vocabulary" else "the added token"
        for text in sorted(a.keys() | b.keys()):
            if a.get(text) != b.get(text):
                if text not in a or text not in b:
                    yield f"{what} {text!r} is {'missing' if text not in a else 'here alone'}"
                elif part == "vocabulary" or a[text][0] != b[text][0]:
                    ids = [entry if isinstance(entry, int) else entry[0] for entry in (a[text], b[text])]
                    yield f"{what} {text!r} has the id {ids[0]}, there {ids[1]}"
                else:
                    flag = next(f for f, x, y in zip(_FLAGS, a[text][1:], b[text][1:], strict=True) if x != y)
                    yield f"{what} {text!r} differs in {flag}"
    elif part == "merges":
        for number, (x, y) in enumerate(zip(a, b, strict=False), 1):
            if x != y:
                yield f"merge {number} is {' '.join(x)!r}, there {' '.join(y)!r}"
        yield f"{len(a)} merges, there {len(b)}"
    else:
        short = [json.dumps(value, ensure_ascii=False)[:120] for value in (a, b)]
        yield f"its {part} is {short[0]}, there {short[1]}"

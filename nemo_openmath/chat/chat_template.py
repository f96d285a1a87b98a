"""The chat template of a model folder: which one counts, and its text for a conversation.

Both exactly as transformers 5.23 does (``apply_chat_template``; a test compares the two over twenty families): the
same files in the same order, sandboxed jinja2 with loop controls and ``{% generation %}``, ``tojson`` without HTML
escapes, ``strftime_now``, ``raise_exception``, and the named special tokens as variables. Without importing
transformers, which costs seconds in every process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nemo_openmath.chat.model_files import read_object
from nemo_openmath.core.errors import UserError

FILE = "chat_template.jinja"
GIVEN = ("messages", "tools", "documents", "add_generation_prompt")  # the variables that are no options
FOLDER = "additional_chat_templates"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What transformers takes where tokenizer_config.json does not name a token depends on the tokenizer's class, and that
# on the model: these two are known, of the others the tokens that a template writes must be named.
_QWEN2 = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
_PLAIN = ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
_ADD_ONE = f"save the model's template as {FILE} in this folder"


class ChatTemplate:
    """A compiled template. Raises UserError where it does not compile.

    - ``source``: its text; ``file``: where it stands.
    - ``literals``: the strings in its text, the only places where it can write a control token by itself.
    - ``reads``: its variables; ``options``: those that the user sets, such as Qwen3's ``enable_thinking``.
    """

    def __init__(
        self,
        source: str,
        file: Path,
        tokens: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
        options: Mapping[str, Any] | None = None,
    ):
        self.source, self.file, self.tokens = source, file, dict(tokens)
        self.options = dict(options or {})
        environment = _environment(now)
        try:
            parsed = environment.parse(source)
            self._jinja = environment.from_string(source)
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            raise UserError(
                f"the chat template is not a template ({error})", file=file, row=line, remedy="mend it"
            ) from error
        strings = [node.data for node in parsed.find_all(jinja2.nodes.TemplateData)]
        strings += [node.value for node in parsed.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
        self.literals = "\0".join(strings)
        self.reads = jinja2.meta.find_undeclared_variables(parsed)

    def with_options(self, options: Mapping[str, Any]) -> ChatTemplate:
        """Return the template with other options. Raises UserError for one that it does not read."""
        for name in options:
            if name not in self.reads or name in GIVEN or name in self.tokens:
                known = sorted(self.reads - set(GIVEN) - self.tokens.keys())
                raise UserError(
                    f"the chat template has no option {name}",
                    file=self.file,
                    remedy=f"leave it out; it reads {', '.join(known)}" if known else "leave it out",
                )
        return ChatTemplate(self.source, self.file, self.tokens, options=options)

    def render(self, turns: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """Return the text of a conversation. Raises UserError where the template refuses it, fails, or writes
        nothing."""
        try:
            text = self._jinja.render(
                messages=[dict(turn) for turn in turns],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.tokens | self.options,
            )
        except Exception as error:  # a template is a program of somebody else's: anything may be raised
            raise UserError(
                f"the chat template refuses or fails on {_shape(turns)} ({error})",
                file=self.file,
                remedy="give it the turns that it knows, or mend it",
            ) from error
        if not text.strip():
            raise UserError(f"the chat template writes nothing for {_shape(turns)}", file=self.file, remedy="mend it")
        return text


def load_chat_template(folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the template that counts in a folder whose tokenizer_config.json holds ``config``; None where there is
    none.

    Files (``chat_template.jinja``, ``additional_chat_templates/``) go before the entry of the configuration. Of several
    named ones the one called ``default`` counts. Raises UserError where several have no default.
    """
    file = folder / FILE
    named: dict[str, tuple[str, Path]] = {}
    if file.is_file():
        named["default"] = _read(file), file
    for path in sorted((folder / FOLDER).glob("*.jinja")):
        named[path.name.removesuffix(".jinja")] = _read(path), path
    if not named and config.get("chat_template") is not None:
        file = folder / "tokenizer_config.json"
        entry = config["chat_template"]
        try:
            listed = {"default": entry} if isinstance(entry, str) else {t["name"]: t["template"] for t in entry}
        except (TypeError, KeyError) as error:
            raise UserError(
                "chat_template is neither a text nor a list of {name, template}", file=file, remedy=_ADD_ONE
            ) from error
        named = {name: (text, file) for name, text in listed.items()}
    if not named:
        return None
    if "default" not in named:
        raise UserError(
            f"several chat templates ({', '.join(sorted(named))}) and none called default",
            file=next(iter(named.values()))[1],
            remedy=f"save the one to use as {FILE}",
        )
    text, place = named["default"]
    if not isinstance(text, str):
        raise UserError("the chat template is not a text", file=place, remedy=_ADD_ONE)
    tokens, unknown = special_tokens(folder, config)
    template = ChatTemplate(text, place, tokens)
    if missing := sorted(unknown & template.reads):
        raise UserError(
            f"the chat template writes {missing[0]}, which tokenizer_config.json does not name",
            file=place,
            remedy=f"name {missing[0]} in tokenizer_config.json (null: none)",
        )
    return template


def no_chat_template(folder: Path) -> UserError:
    """Return the error of a folder that has no chat template."""
    return UserError("no chat template", file=folder, remedy=_ADD_ONE)


def special_tokens(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], set[str]]:
    """Return the variables of a template: the named special tokens of the tokenizer (bos_token and the like), and those
    of which it is not known what they are. Raises UserError where one is not a token."""
    file = folder / "tokenizer_config.json"
    sources: list[tuple[Path, Mapping[str, Any]]] = [(file, config)]
    legacy = folder / "special_tokens_map.json"
    if legacy.is_file() and "added_tokens_decoder" not in config:
        sources.append((legacy, read_object(legacy)))
    tokens: dict[str, Any] = {}
    for file, source in sources:
        named = {name: value for name, value in source.items() if name in _NAMED}
        for name, value in named.items():
            if not isinstance(_content(value), str | None):
                raise UserError(f"{name} is not a token: {value!r}", file=file, remedy="write its text, or null")
        tokens |= named
        tokens |= {k: v for k, v in source.items() if k.endswith("_token") and isinstance(v, str | dict)}
        if isinstance(extra := source.get("extra_special_tokens"), dict):
            tokens |= extra
    defaults = _class_defaults(folder, config)
    unknown = set() if defaults is not None else set(_NAMED) - tokens.keys()
    texts = {name: _content(value) for name, value in ((defaults or {}) | tokens).items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}, unknown


def _class_defaults(folder: Path, config: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the tokens of transformers' class for this folder; None for a class whose tokens are not known here."""
    model = read_object(folder / "config.json").get("model_type")
    name = config.get("tokenizer_class")
    if model == "qwen2" or (name in ("Qwen2Tokenizer", "Qwen2TokenizerFast", None) and model == "qwen3"):
        return _QWEN2
    if name in ("Qwen2Tokenizer", "Qwen2TokenizerFast") and model is None:
        return _QWEN2
    return {} if name in _PLAIN or (name is None and model is None) else None


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the chat template ({error})", file=file, remedy="copy it again") from error


def _shape(turns: Sequence[Mapping[str, str]]) -> str:
    return "the turns " + ", ".join(turn["role"] for turn in turns)


class _Generation(jinja2.ext.Extension):
    """``{% generation %} ... {% endgeneration %}``: its body is written as it is."""

    tags = {"generation"}  # jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict`` without its other attributes."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` without names that begin with an underscore."""

    def __init__(*values: Any, **named: Any) -> None:  # no name of its own: a template may call a field ``self``
        attributes = dict(*values[1:], **named)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(values[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"chat templates cannot set {name!r} of a namespace")


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda format: now().strftime(format)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)

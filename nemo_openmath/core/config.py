"""Configuration files: YAML, ``extends``, dotted overrides; every value remembers its file and line.

What a file or the command line says is laid over what it extends, section by section. ``key: null`` takes a key out: a
setting that may be null is then null, any other has its default. A section that changes its ``run`` (the kind of a
stage) begins anew: settings of another kind are not settings of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_openmath.core.build import OVERRIDE, Key, Origin
from nemo_openmath.core.errors import UserError, refuse_device
from nemo_openmath.core.snapshot import KEY, Snapshot, read_snapshot

_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class Source:
    """Nested plain data with the origin of each key.

    ``files``: the file and what it extends. ``snapshot``: where the file is from, if it is the snapshot of another.
    """

    def __init__(self, data: dict[str, Any], origins: dict[Key, Origin], path: Path):
        self.data = data
        self.path = path
        self.files: tuple[Path, ...] = (path,)
        self.snapshot: Snapshot | None = None
        self._origins = origins

    def origin(self, key: Key) -> Origin:
        """Return the origin of ``key``, or of the nearest enclosing key that was written down."""
        for n in range(len(key), -1, -1):
            if (origin := self._origins.get(key[:n])) is not None:
                return origin
        return Origin(str(self.path))

    def taken_out(self, key: Key) -> bool:
        """Return whether ``key: null`` was written over a value: the last word on it has a place, but left nothing."""
        at: Any = self.data
        for part in key:
            if not isinstance(at, dict) or part not in at:
                return key in self._origins
            at = at[part]
        return False

    @property
    def origins(self) -> dict[Key, Origin]:
        """Return where each key was written."""
        return self._origins

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Source:
        """Read a file, what it extends, and the overrides ``a.b.c=value``, whose values are YAML. Raises UserError."""
        path = Path(path)
        data, origins = _read(path, ())
        source = cls(data, origins, path)
        if KEY in data:
            source.snapshot, source._origins = read_snapshot(data.pop(KEY), path)
            origins = source._origins
        source.files = tuple(dict.fromkeys([path, *(Path(o.file) for o in origins.values())]))
        kinds_first = sorted(overrides, key=lambda text: not text.partition("=")[0].strip().endswith(".run"))
        for text in kinds_first:
            source._override(text)
        return source

    def _override(self, text: str) -> None:
        name, equals, value = text.partition("=")
        key = tuple(name.strip().split("."))
        if not equals or not all(key):
            raise UserError(f"not an override: {text!r}", remedy="write section.setting=value")
        if not value.strip():
            raise UserError(f"override {name}: no value", remedy="write one; null takes the setting out")
        try:
            node = yaml.compose(value, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise UserError(f"cannot read the value of {name} ({_first_line(error)})") from error
        parsed = None if node is None else _plain(node, key, {}, Path(OVERRIDE.file))
        at = self.data
        for depth, part in enumerate(key[:-1], 1):
            if part not in at:
                self._origins[key[:depth]] = OVERRIDE
            child = at.setdefault(part, {})
            if not isinstance(child, dict):
                raise UserError(f"override {name}: {part} holds no settings")
            at = child
        if key[-1] == "run" and at.get("run", parsed) != parsed:
            at.clear()
            self._forget(key[:-1])
            self._origins[key[:-1]] = OVERRIDE
        self._forget(key)
        self._origins[key] = OVERRIDE
        if parsed is None and key[-1] in at:
            del at[key[-1]]
        else:
            at[key[-1]] = parsed

    def rename(self, key: Key, origin: Origin) -> None:
        """Say that ``key`` and what lies below it were written elsewhere: a command wrote this file for somebody.
        Overrides stay what they are."""
        for at, before in self._origins.items():
            if at[: len(key)] == key and before is not OVERRIDE:
                self._origins[at] = origin

    def _forget(self, key: Key) -> None:
        """Forget where ``key`` and what lies below it were written."""
        self._origins = {k: o for k, o in self._origins.items() if k[: len(key)] != key}


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[Key, Origin]]:
    if path.resolve() in seen:
        raise UserError("this file extends itself", file=path)
    try:
        refuse_device(path)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read it ({error.strerror})", file=path, remedy="check the path") from error
    except UnicodeDecodeError as error:
        raise UserError("not a text file", file=path, remedy="give a recipe in YAML") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise UserError("nested too deeply", file=path) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"not YAML ({_first_line(error)})", file=path, row=mark.line + 1 if mark else None) from error
    if root is None:
        raise UserError("the file is empty", file=path)
    origins: dict[Key, Origin] = {}
    try:
        data = _plain(root, (), origins, path)
    except RecursionError:
        raise UserError("nested too deeply, or an anchor that holds itself", file=path) from None
    if not isinstance(data, dict):
        raise UserError("expected a mapping (lines of name: value)", file=path, row=1)
    base = data.pop("extends", None)
    if base is None:
        return data, origins
    if not isinstance(base, str):
        raise UserError("extends: expected a path", file=path, row=origins[("extends",)].line)
    if not (path.parent / base).exists():
        raise UserError(
            f"extends: no file {path.parent / base}",
            file=path,
            row=origins[("extends",)].line,
            remedy="copy that file too, or write where it is",
        )
    below, below_origins = _read(path.parent / base, (*seen, path.resolve()))
    if KEY in below:
        _, below_origins = read_snapshot(below.pop(KEY), path.parent / base)
    return _merge(below, data, (), below_origins, origins), below_origins


def _plain(node: yaml.Node, key: Key, origins: dict[Key, Origin], path: Path) -> Any:
    origins[key] = Origin(str(path), node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        merged = [v for k, v in node.value if k.tag == _MERGE]  # <<: *anchor, below what is written here
        for source in (n for v in merged for n in (reversed(v.value) if isinstance(v, yaml.SequenceNode) else [v])):
            out |= _plain(source, key, origins, path)
        written: set[str] = set()
        for name_node, value_node in (pair for pair in node.value if pair[0].tag != _MERGE):
            name = str(name_node.value)
            if name in written:
                raise UserError(f"{'.'.join((*key, name))}: given twice", file=path, row=name_node.start_mark.line + 1)
            written.add(name)
            out[name] = _plain(value_node, (*key, name), origins, path)
            origins[(*key, name)] = Origin(str(path), name_node.start_mark.line + 1)
        origins[key] = Origin(str(path), node.start_mark.line + 1)
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*key, str(i)), origins, path) for i, child in enumerate(node.value)]
    if node.tag in _NUMBERS and ":" in node.value:
        return node.value  # a time: YAML 1.1 would make a number to the base of 60 of it
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, yaml.YAMLError) as error:  # a date that is none, thousands of digits, a tag of another program
        raise UserError(
            f"cannot read the value of {'.'.join(key)} ({_first_line(error)})", file=path, row=node.start_mark.line + 1
        ) from error


def _merge(
    below: dict[str, Any], above: dict[str, Any], key: Key, origins: dict[Key, Origin], new: dict[Key, Origin]
) -> dict[str, Any]:
    """Lay ``above`` over ``below``, section by section. Lists and plain values are replaced whole."""
    out = dict(below)
    for name, value in above.items():
        at, was = (*key, name), out.get(name)
        if isinstance(value, dict) and isinstance(was, dict) and value.get("run", was.get("run")) == was.get("run"):
            out[name] = _merge(was, value, at, origins, new)
            if value and at in new:
                origins[at] = new[at]  # a mistake of the whole section is more likely where it was changed
            continue
        for old in [k for k in origins if k[: len(at)] == at]:
            del origins[old]
        if value is None and name in out:
            del out[name]
        else:
            out[name] = value
        origins.update({k: o for k, o in new.items() if k[: len(at)] == at})
    return out


def _first_line(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).split("\n", 1)[0]

"""config.json, checked key by key."""

import ast
import inspect
import json
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from math import lcm
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint.keys import ONLY, why_harmless
from ..checkpoint.settings import CheckpointError, Settings
from ..loading import ALIASES, FAMILIES, unnamed_family

MOST_HEADS = 64


class Key(NamedTuple):
    """A key of config.json, or one that the family would read there."""

    key: str
    value: str  # as JSON, cut to 80 characters; of a key that is not there the default
    status: str  # "read", "default", "missing", "only" (one value is supported), "ignored", "unknown", "not read"
    meaning: str  # the field of Config that it sets, the value supported, or why it is ignored
    fault: str | None


@contextmanager
def noted(faults: list[str]) -> Iterator[None]:
    """Note what is wrong with a file, and go on."""
    try:
        yield
    except CheckpointError as error:
        faults.append(str(error))


class _Noting(Settings):
    """Settings that know which key was refused."""

    refused = ""

    def refusal(self, key: str, value: Any, expected: str) -> CheckpointError:
        self.refused = key
        return super().refusal(key, value, expected)


def audit(values: dict[str, Any], path: Path, ignoring: Collection[str] = ()) -> tuple[str | None, Any, list[Key]]:
    """The family, its Config where every key that it reads is right, and all keys.

    ignoring: keys that minilens does not know, and that the caller knows to change nothing.
    """
    settings = _Noting(values, path)
    family, config, fields, faults, aliases = None, None, {}, {}, {}
    try:
        family = settings.choice("model_type", {name: name for name in FAMILIES}, unnamed_family(values))
    except CheckpointError as error:
        faults["model_type"] = str(error)
    else:
        aliases = {alias: key for alias, key in ALIASES[family].items() if alias in values}
        for alias, key in aliases.items():
            try:
                settings.rename(alias, key)
            except CheckpointError as error:
                faults[alias] = str(error)
        config, others = _config(FAMILIES[family], settings.unread, path)
        config, faults = None if faults else config, faults | others
        fields = _fields(FAMILIES[family])

    def row(key: str, value: Any) -> Key:
        if key in aliases:
            return Key(key, _json(value), "read", fields.get(aliases[key], ""), faults.get(key))
        if key in fields or key == "model_type":
            return Key(key, _json(value), "read", fields.get(key, "family"), faults.get(key))
        if key not in ONLY and key not in ignoring and family is None and not why_harmless(key, value):
            return Key(key, _json(value), "not read", "", None)
        alone, refusals = Settings({key: value}, path), list[str]()
        with noted(refusals), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is ignored as asked is said in the row
            alone.finish(why_harmless, ONLY, ignoring)
        why = alone.ignored.get(key, "")
        if key in ONLY and why != "as asked":
            return Key(key, _json(value), "only", _json(ONLY[key]), refusals[0] if refusals else None)
        return Key(key, _json(value), "ignored" if why else "unknown", why, refusals[0] if refusals else None)

    keys = [row(key, value) for key, value in values.items()]
    set_by_others = {fields.get(key) for key in values}
    for key, field in fields.items():
        if key not in values and key in faults:
            keys.append(Key(key, "", "missing", field, faults[key]))
        elif key not in (*values, *aliases.values()) and config and field and field not in set_by_others:
            keys.append(Key(key, _json(getattr(config, field)), "default", field, None))
    if "model_type" not in values:
        keys.append(
            Key("model_type", _json(family), "default" if family else "missing", "family", faults.get("model_type"))
        )
    return family, config, keys


def _config(family: Any, values: dict[str, Any], path: Path) -> tuple[Any, dict[str, str]]:
    """The Config, if no key is refused, and what is wrong with each key that is.

    A key that is refused gets its default, or a number that the other sizes divide, or 1, so that the next is seen.
    """
    faults: dict[str, str] = {}
    stand_ins = lcm(*(n for n in values.values() if type(n) is int and 0 < n <= MOST_HEADS)), 1
    trial, left = dict(values), dict[str, Iterator[int]]()
    while True:
        settings = _Noting(trial, path)
        try:
            config = family.Config.read(settings)
        except CheckpointError as error:
            key = settings.refused
            if key not in faults:
                faults[key], left[key] = str(error), iter(stand_ins)
                trial.pop(key, None)
            elif (stand_in := next(left[key], None)) is not None:
                trial[key] = stand_in
            else:
                return None, faults
        else:
            return None if faults else config, faults


def _fields(family: Any) -> dict[str, str]:
    """The keys that a family reads, and the field of Config that each sets, if it does, as the source has it."""
    tree = ast.parse(inspect.getsource(family))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

    def keys(source: ast.AST) -> Iterator[str]:
        """Those read there, or in a function of the file that is called there."""
        for node in ast.walk(source):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("settings")), args=[ast.Constant(str(key)), *_]):
                    yield key
                case ast.Call(func=ast.Name(name)) if name in functions:
                    yield from keys(functions[name])

    found = dict.fromkeys(keys(functions["read"]), "")
    for node in ast.walk(functions["read"]):
        match node:
            case ast.Assign(targets=[ast.Name(field)], value=value) | ast.keyword(arg=str(field), value=value):
                found |= dict.fromkeys(keys(value), field)
    return found


def _json(value: Any) -> str:
    """A value of config.json; of a field of Config, the name of a function."""
    return json.dumps(value, default=lambda function: function.__name__)[:80]

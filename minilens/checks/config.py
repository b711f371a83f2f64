"""config.json, checked key by key."""

import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint.keys import ONLY, why_harmless
from ..checkpoint.settings import CheckpointError, Settings, Unreachable
from ..loading import ALIASES, FAMILIES, unnamed_family

MEASURES = {"d_model", "n_layers", "n_heads"}  # sizes that other keys must suit
PLAINEST: dict[str, Any] = {"attention_layers": ["global"]}  # what a model of one layer must say beyond its sizes


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
    except Unreachable:  # the Hub's trouble is none of the checkpoint's
        raise
    except CheckpointError as error:
        faults.append(str(error))


class _Size(int):
    """A size that is an object of its own, so that a field which holds it is known by it."""


class _Collecting(Settings):
    """Settings that note what is wrong with a key, and go on with a value that fits."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        super().__init__(values, path)
        self.faults: dict[str, str] = {}
        self.given: dict[str, Any] = {}  # what each key was read as
        self.replaced: set[str] = set()  # the keys that get a stand-in, whatever they say
        self.refused = ""

    def again(self) -> Settings:
        """The same, with nothing read yet."""
        self.unread = dict(self.values)
        return self

    def take(self, key: str, default: Any = None) -> Any:
        self.given.setdefault(key, None)
        return super().take(key, default)

    def integer(self, key: str, default: int | None = None, *, most: int = 2**31 - 1) -> Any:
        return self._noted(key, partial(super().integer, key, default, most=most), 1)

    def number(self, key: str, default: float) -> Any:
        return self._noted(key, partial(super().number, key, default), default)

    def flag(self, key: str, default: bool) -> Any:
        return self._noted(key, partial(super().flag, key, default), default)

    def choice(self, key: str, choices: Mapping[str, Any], default: str | None = None) -> Any:
        return self._noted(key, partial(super().choice, key, choices, default), next(iter(choices.values())))

    def refusal(self, key: str, value: Any, expected: str) -> CheckpointError:
        self.refused = key
        return super().refusal(key, value, expected)

    def _noted(self, key: str, read: Callable[[], Any], stand_in: Any) -> Any:
        value = stand_in
        try:
            found = read()
            value = stand_in if key in self.replaced else found
        except CheckpointError as error:
            self.faults.setdefault(key, str(error))
        if isinstance(value, bool):
            return value
        self.given[key] = _Size(value) if isinstance(value, int) else value
        return self.given[key]


def audit(values: dict[str, Any], path: Path, ignoring: Collection[str] = ()) -> tuple[str | None, Any, list[Key]]:
    """The family, its Config where every key that it reads is right, and all keys.

    ignoring: keys that minilens does not know, and that the caller knows to change nothing.
    """
    settings = Settings(values, path)
    family, config, sets, faults, aliases = None, None, {}, {}, {}
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
        sets = fields_set(FAMILIES[family].Config)
        config, others = _config(FAMILIES[family].Config, settings.unread, path, sets)
        config, faults = None if faults else config, faults | others

    def row(key: str, value: Any) -> Key:
        if key in aliases:
            return Key(key, _json(value), "read", sets.get(aliases[key], ""), faults.get(key))
        if key in sets or key == "model_type":
            return Key(key, _json(value), "read", sets.get(key, "family"), faults.get(key))
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
    set_by_others = {sets.get(key) for key in values}
    for key, field in sets.items():
        if key not in values and key in faults:
            keys.append(Key(key, "", "missing", field, faults[key]))
        elif key not in (*values, *aliases.values()) and config and field and field not in set_by_others:
            keys.append(Key(key, _json(getattr(config, field)), "default", field, None))
    if "model_type" not in values:
        keys.append(
            Key("model_type", _json(family), "default" if family else "missing", "family", faults.get("model_type"))
        )
    return family, config, keys


def _config(kind: Any, values: dict[str, Any], path: Path, sets: dict[str, str]) -> tuple[Any, dict[str, str]]:
    """The Config, if no key is refused, and the fault of each key that is.

    Where keys do not suit each other, all are read again with a stand-in for the one that is refused.
    """
    settings = _Collecting(values, path)
    while True:
        try:
            kind.read(settings.again())
            break
        except CheckpointError as error:
            if not MEASURES & {sets[key] for key in settings.faults}:  # else it may come of the stand-in for that size
                settings.faults[settings.refused] = str(error)
            if settings.refused in settings.replaced:
                break
            settings.replaced.add(settings.refused)
    return None if settings.faults else kind.read(Settings(values, path)), settings.faults


def fields_set(kind: Any) -> dict[str, str]:
    """The keys that a family's Config reads, and the field that each sets; nothing of flags and of several keys."""
    settings = _Collecting(PLAINEST, Path())
    config = kind.read(settings)
    held = [(field.name, getattr(config, field.name)) for field in fields(config)]
    return {key: next((name for name, value in held if value is given), "") for key, given in settings.given.items()}


def _json(value: Any) -> str:
    """A value of config.json; of a field of Config, the name of a function."""
    return json.dumps(value, default=lambda function: function.__name__)[:80]

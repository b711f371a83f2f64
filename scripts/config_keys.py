"""The keys of config.json that transformers has known, version by version: where checkpoint/keys.py has its lists from.

    pip download transformers==4.57.1 --no-deps --dest wheels       (and other versions, from 2.0 to 5)
    python scripts/config_keys.py wheels/*.whl

Nothing of a wheel is run: its sources are parsed. Printed are, for each kind, the keys that keys.py does not know yet
(nothing, where it is complete), and those that it knows and no version had, which are there for a reason of their own.
A key is a config's where the `__init__` of its class assigns it, takes it as an argument or pops it from what it is
given, or, from transformers 5 on, where the class has it as a field.
"""

import ast
import re
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator

from minilens.checkpoint.keys import HARMLESS, ONLY, why_harmless
from minilens.checkpoint.settings import Settings
from minilens.loading import FAMILIES

KINDS = {  # how the file's name ends -> whose keys it has
    "generation/configuration_utils.py": "generation",
    "generation_configuration_utils.py": "generation",
    "transformers/configuration_utils.py": "any model",
    "configuration_gpt2.py": "gpt2",
    "configuration_gpt_neo.py": "gpt_neo",
    "configuration_ctrl.py": "ctrl",
}
NAMES = re.compile("^(GenerationConfig|.*(?<!Onnx)(?<!Watermarking)(?<!Compile)(?<!Batching)Config)$")
NO_KEYS = {  # arguments, and what stands in the classes and in no file
    *("self", "args", "kwargs", "vocab_size_or_config_json_file", "attribute_map", "base_config_key", "is_composition"),
    *("has_no_defaults_at_init", "ignore_keys_at_rope_validation", "sub_configs"),
}


def keys_of(source: str) -> Iterator[str]:
    """The keys of the configs in a file; but for those of what a generation config may hold in itself."""
    for config in ast.walk(ast.parse(source)):
        if not isinstance(config, ast.ClassDef) or not NAMES.search(config.name):
            continue
        for node in config.body:
            if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
                yield ast.unparse(node.target)
        inits = [node for node in config.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        for node in (part for init in inits for part in ast.walk(init)):
            match node:
                case ast.arg(arg=key):
                    yield key
                case ast.Call(func=ast.Attribute(value=ast.Name("kwargs"), attr="pop"), args=[ast.Constant(key), *_]):
                    yield str(key)
                case ast.Attribute(value=ast.Name("self"), attr=key, ctx=ast.Store()):
                    yield key


def known(wheels: list[str]) -> dict[str, dict[str, list[str]]]:
    """Kind -> key -> the versions that have it."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for wheel in wheels:
        version = wheel.split("transformers-")[1].split("-")[0]
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                kind = next((kind for end, kind in KINDS.items() if name.endswith(end)), None)
                if kind is None and "/configuration_" in name and name.endswith(".py"):
                    kind = "other models"
                if kind:
                    for key in set(keys_of(archive.read(name).decode())) - NO_KEYS:
                        found[kind][key].append(version)
    return found


def read_by_families() -> set[str]:
    """The keys that minilens reads, whichever family it is."""
    config = dict(n_embd=4, n_head=2, n_layer=1, n_positions=4, dff=4, hidden_size=4, num_heads=2, num_layers=1)
    config |= dict(vocab_size=4, max_position_embeddings=4, attention_types=[[["global"], 1]])
    asked: set[str] = set()

    class Asking(dict[str, object]):
        def pop(self, key: str, default: object = None) -> object:
            asked.add(key)
            return super().pop(key, default)

    for family in FAMILIES.values():
        settings = Settings({}, None)  # type: ignore[arg-type]
        settings.unread = Asking(config)
        family.Config.read(settings)
    return asked


def main(wheels: list[str]) -> None:
    found, read = known(wheels), read_by_families()
    ours = {kind: keys for kind, keys in found.items() if kind != "other models"}
    for kind, keys in ours.items():
        new = [key for key in keys if not key.startswith("_") and key not in read | ONLY.keys()]
        new = [key for key in new if not why_harmless(key, 1)]
        print(f"{kind}: {len(keys)} keys in {len(wheels)} versions; not in keys.py: {' '.join(sorted(new)) or 'none'}")
    of_any = {key for keys in ours.values() for key in keys}
    named = {key: why for why, keys in HARMLESS.items() for key in keys.split()}
    print("in keys.py for a reason of its own:", " ".join(sorted(named.keys() - of_any)) or "none")
    others = found["other models"].keys() & named.keys() - of_any
    print("of these, keys of other models:", " ".join(sorted(others)) or "none")


if __name__ == "__main__":
    main(sys.argv[1:])

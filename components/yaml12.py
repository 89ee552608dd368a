"""YAML 1.2, which is what DVC reads: to PyYAML alone 0200 would be 128, ``no`` false, and 1e-3 a text."""

from __future__ import annotations

import re
from typing import Any

import yaml

BASES = ("0b", "0o", "0x")


class _Loader(yaml.SafeLoader):
    """The patterns are those of ruamel.yaml; dates stay text, and no key is there twice."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)  # as written: once blocks are merged, a key may be there twice
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[1]!r} is there twice", node.start_mark)
        return node

    def process_directives(self) -> Any:
        directives = super().process_directives()  # type: ignore[no-untyped-call]
        if self.yaml_version not in (None, (1, 2)):  # DVC would follow it
            raise yaml.parser.ParserError(None, None, "only YAML 1.2 is allowed")
        return directives


def _whole_number(loader: Any, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    number = int(text, 0 if text.lstrip("+-").startswith(BASES) else 10)
    str(number)  # raises ValueError where no message could show it: reading checks the digits of decimal ones only
    return number


CORE = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag.split(":")[-1] in CORE
}
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
for _tag, _pattern, _begins in (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("float", r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
              r"|[-+]?\.[0-9_]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", [*"-+0123456789."]),
    ("int", r"[-+]?0b[01_]+|[-+]?0o[0-7_]+|[-+]?[0-9_]+|[-+]?0x[0-9a-fA-F_]+", [*"-+0123456789"]),
    ("merge", r"<<", ["<"]),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _begins)


def load(text: str) -> Any:
    """One document. Raises yaml.YAMLError where it is none, a key is there twice, or something is not plain data."""
    return yaml.load(text, Loader=_Loader)  # a safe one

"""Changes of ``params.yaml`` that keep its comments, order and layout."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from components.files import write_text
from components.settings import PARAMS_FILE, read_yaml

if TYPE_CHECKING:  # `ctfoundry --help` does without it
    from ruamel.yaml import YAML


def pin(line: str, stage: str | None, values: dict[str, Any]) -> None:
    """Change a stage's block of ``params.yaml``, or what belongs to no stage, and nothing else in the file: comments,
    order and layout stay."""
    current = read_yaml()[line] if stage is None else read_yaml()[line][stage]
    if all(current.get(key) == value for key, value in values.items()):
        return
    editor = yaml_editor()
    content = editor.load(PARAMS_FILE.read_text())
    (content[line] if stage is None else content[line][stage]).update(values)
    text = io.StringIO()
    editor.dump(content, text)
    write_text(PARAMS_FILE, text.getvalue())


def yaml_editor() -> YAML:
    """Reads and writes YAML with its comments, order and layout."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096  # never fold a line
    editor.indent(mapping=2, sequence=4, offset=2)
    editor.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return editor

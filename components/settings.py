"""Typed, frozen view of ``params.yaml``: the only place where a run's settings come from.

Every value lives in ``params.yaml``; the classes hold types and bounds, never defaults. A mistake ends in one line
that names the key, its value, what is allowed and, for an unknown key, the nearest known one.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from components import yaml12
from components.arithmetic import MACHINE, PORTABLE
from components.errors import UserError

PARAMS_FILE = Path("params.yaml")
SHOWN = 200  # characters of a value, in messages
LINE_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")  # names folders, DVC stages and Bentos
KEYS = ("lines", "shards", "tasks")  # those of the file that are no line
RESERVED = (*KEYS, "dicom", "nifti", "lidc_nodules")  # folders of a machine have these names in roots.json
REPRODUCIBLE = "reproducible"  # the one setting of a line that belongs to no stage
# Settings of transport and scheduling, which change no output: no stage and no release depends on them.
OF_THE_MACHINE = {
    "acquire": ("workers", "max_memory_gib", "raw", "transfer"),
    "preprocess": ("max_memory_gib",),
}
# What computes otherwise on other machines, whatever the libraries are held to.
BREAKS_PORTABLE = (
    ("pretrain", "precision", "bfloat16"),
    ("pretrain", "device", "cuda"),
    ("evaluate", "device", "cuda"),
)


class StageConfig(BaseModel):
    """Base of every block: frozen, strict about types, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the lower first")
    return pair


def _apart(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise ValueError("the lower first, and not equal")
    return pair


Ordered = AfterValidator(_ordered)  # of a pair that is a range
Apart = AfterValidator(_apart)  # of one that would leave nothing if both ends were equal
StoredHU = Annotated[int, Field(ge=-32_768, le=32_767)]  # what int16, in which voxels are stored, can hold
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what NumPy and torch take


class ParamsError(UserError):
    """A mistake in ``params.yaml``; the message is one line per mistake and meant for the user."""


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse(config_class: type[ConfigT], block: Any, prefix: str, file: str = str(PARAMS_FILE)) -> ConfigT:
    """Parse one block of parameters.

    Args:
        config_class: the block's class.
        block: the mapping read from YAML or JSON.
        prefix: dotted path of the block in ``file``, for messages; empty for the whole file.
        file: where it was read.

    Raises:
        ParamsError: one line per mistake: key, value, what is allowed, the nearest known key.
    """
    try:
        return config_class.model_validate(_tuples(block))
    except ValidationError as error:
        places = [problem["loc"] for problem in error.errors()]
        told = [  # a list whose only item is wrong is also called too short: the mistake is within it
            problem
            for problem in error.errors()
            if not any(place != problem["loc"] and place[: len(problem["loc"])] == problem["loc"] for place in places)
        ]
        raise ParamsError("\n".join(_line(config_class, problem, prefix, block, file) for problem in told)) from None


def _tuples(value: Any) -> Any:
    """YAML lists as tuples, so that a frozen config is immutable all the way down."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def did_you_mean(name: object, known: Sequence[str], cutoff: float = 0.5) -> str:
    """The end of an error line: the known name that ``name`` was probably meant to be, or nothing."""
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def _known_keys(config_class: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The keys allowed where ``path`` points, walking through blocks, lists of them, and those that may be null."""
    known: list[type[BaseModel]] = [config_class]
    for part in path:
        named = [k for k in known if "kind" in k.model_fields and part in get_args(k.model_fields["kind"].annotation)]
        if len(known) > 1 and named:  # of several kinds, each a block: pydantic puts the kind in between
            known = named
        elif not isinstance(part, int):  # a number is a place in a list of blocks
            known = [b for k in known if part in k.model_fields for b in _blocks(k.model_fields[part].annotation)]
    return sorted({key for k in known for key in k.model_fields})


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in get_args(annotation) for block in _blocks(part)]


def _written(path: tuple[Any, ...], block: Any) -> tuple[Any, ...]:
    """``path`` as it stands in the file: where a block may be of several kinds, pydantic puts the kind in between."""
    kept: list[Any] = []
    was_kind = False
    for part in path:
        if not was_kind and isinstance(block, dict) and block.get("kind") == part:
            was_kind = True
            continue
        kept.append(part)
        was_kind = False
        block = block[part] if isinstance(block, dict) and part in block else None
    return tuple(kept)


def _line(config_class: type[BaseModel], problem: Any, prefix: str, block: Any, file: str) -> str:
    path = _written(tuple(problem["loc"]), block)
    key = f"{file}: " + ".".join([*filter(None, [prefix]), *map(str, path)])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(config_class, tuple(problem["loc"])[:-1])
        hint = did_you_mean(path[-1], known)
        return f"{key}: unknown key (value {shown(problem['input'])}); allowed here: {', '.join(known)}{hint}"
    if problem["type"] == "missing":
        return f"{key}: missing; add it ({problem['msg'].lower()})"
    text = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict):  # the block's parts do not go together; its text names them
        return f"{key}: {text}"
    return f"{key}: {shown(problem['input'])} is not allowed: {text}"


def shown(value: Any) -> str:
    """A value as it stands in the file, the start of a long one."""
    text = _flow(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _flow(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def read_yaml(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """The whole file as a mapping. Raises ParamsError where it is missing or not YAML."""
    try:
        content = yaml12.load(path.read_text(encoding="utf-8-sig"))
        _tuples(content)  # of a block within itself there is no end
    except FileNotFoundError:
        raise ParamsError(
            f"{path}: not found; run from the project's root, or bring it back with `git checkout {path}`"
        ) from None
    except UnicodeDecodeError as error:
        raise ParamsError(
            f"{path}: not UTF-8 text: byte {error.start + 1} is {error.object[error.start]:#04x}"
        ) from None
    except RecursionError:
        raise ParamsError(f"{path}: not valid YAML: blocks within blocks without end") from None
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, KeyError) as error:  # KeyError: of a text that is tagged as a bool
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: expected a mapping at the top, found {type(content).__name__}")
    return content


def block_of(line: str, stage: str, path: Path = PARAMS_FILE) -> dict[str, Any]:
    """The block of one stage of one line, as it is. Raises ParamsError where line or block is missing."""
    of_line = read_yaml(path).get(line)
    block = of_line.get(stage) if isinstance(of_line, dict) else None
    if not isinstance(block, dict):
        raise ParamsError(f"params.yaml: {line}.{stage}: missing")
    return block


def decisive(block: dict[str, Any]) -> dict[str, Any]:
    """A line's block without :data:`OF_THE_MACHINE`."""
    return {
        stage: {key: value for key, value in values.items() if key not in OF_THE_MACHINE.get(stage, ())}
        if isinstance(values, dict)
        else values
        for stage, values in block.items()
    }


def load_stage(config_class: type[ConfigT], line: str, stage: str, path: Path = PARAMS_FILE) -> ConfigT:
    """The typed block of one stage of one line.

    Raises:
        ParamsError: as :func:`parse`, or where line or block is missing.
    """
    block = read_yaml(path).get(line)
    if not isinstance(block, dict) or stage not in block:
        raise ParamsError(f"params.yaml: {line}.{stage}: missing")
    return parse(config_class, block[stage], f"{line}.{stage}")


def load_part(config_class: type[ConfigT], line: str, stage: str, path: Path = PARAMS_FILE) -> ConfigT:
    """As :func:`load_stage`, of a block that ``config_class`` knows only a part of: what a room below the stages needs.
    Other keys are the stage's to check."""
    block = read_yaml(path).get(line)
    values = block.get(stage) if isinstance(block, dict) else None
    if not isinstance(values, dict):
        return load_stage(config_class, line, stage, path)  # says what is wrong
    known = {key: value for key, value in values.items() if key in config_class.model_fields}
    return parse(config_class, known, f"{line}.{stage}")


def reproducible(line: str, path: Path = PARAMS_FILE) -> str:
    """On which machines the line's outputs are the same bytes: see :mod:`components.arithmetic`.

    Raises:
        ParamsError: no such mode, or one that the line's other settings break.
    """
    block = read_yaml(path).get(line)
    block = block if isinstance(block, dict) else {}
    value = block.get(REPRODUCIBLE)
    if value not in (MACHINE, PORTABLE):
        raise ParamsError(
            f"params.yaml: {line}.reproducible: {shown(value)} is not allowed: {MACHINE} (equal bytes on one kind of "
            f"processor) or {PORTABLE} (on every x86-64 one with AVX2)"
        )
    for stage, key, wrong in BREAKS_PORTABLE if value == PORTABLE else ():
        settings = block.get(stage)
        if isinstance(settings, dict) and settings.get(key) == wrong:
            raise ParamsError(
                f"params.yaml: {line}.{stage}.{key}: {wrong!r} is not allowed with reproducible: {PORTABLE}; "
                f"change it, or set {line}.reproducible to {MACHINE}"
            )
    return str(value)


def lines(path: Path = PARAMS_FILE) -> tuple[str, ...]:
    """The model lines, in order; each is a block of the file. Raises ParamsError where the list is none of names."""
    value = read_yaml(path).get("lines")
    names = value if isinstance(value, list) else []
    if not names or len({str(name) for name in names}) < len(names) or not all(map(_names_a_line, names)):
        raise ParamsError(
            f"params.yaml: lines: {shown(value)} is not allowed: a list of names, each once, of a-z, 0-9 and _ with a "
            f"letter first, of at most 40 characters, not {', '.join(RESERVED)}"
        )
    return tuple(names)


def _names_a_line(name: Any) -> bool:
    return isinstance(name, str) and LINE_NAME.fullmatch(name) is not None and name not in RESERVED


def require_line(line: str, path: Path = PARAMS_FILE) -> str:
    """``line`` itself. Raises ParamsError where it is none of the file's."""
    known = lines(path)
    if line not in known:
        raise ParamsError(f"line {line!r} is not allowed: use one of {', '.join(known)}{did_you_mean(line, known)}")
    return line


def shards(path: Path = PARAMS_FILE) -> tuple[int, ...]:
    """The shard numbers of the data stages: 0, 1, ... in order."""
    value = read_yaml(path).get("shards")
    numbers = value if isinstance(value, list) and all(type(number) is int for number in value) else []
    if not numbers or numbers != list(range(len(numbers))):
        told = shown(value)
        raise ParamsError(f"params.yaml: shards: {told} is not allowed: a list 0, 1, 2, ... of at least one shard")
    return tuple(numbers)

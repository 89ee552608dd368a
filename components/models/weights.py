"""Weights by name and shape: read from safetensors, held against a module, put into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from components.errors import UserError

ENCODER = "encoder."  # before the names of an encoder that was saved with what was trained beside it
# Of batch norms: torch's own loader does without them, and a frozen encoder never uses them.
COUNTERS = "num_batches_tracked"
NAMED = 3  # names of each kind that a message tells

Tensors = dict[str, Tensor]


def read_weights(path: Path) -> Tensors:
    """Every tensor of a safetensors file. Raises UserError where it is none, or a value of it is not finite."""
    try:
        tensors: Tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"weights {path.name}: not readable as safetensors: {error}") from None
    for name, value in sorted(tensors.items()):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"weights {path.name}: {name} holds values that are not finite; allowed: finite weights")
    return tensors


def parted(tensors: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """The encoder's tensors under its own names, and what else there is: heads, a teacher. Where no name begins with
    ``encoder.``, all are the encoder's."""
    if not any(name.startswith(ENCODER) for name in tensors):
        return dict(tensors), {}
    own = {name.removeprefix(ENCODER): value for name, value in tensors.items() if name.startswith(ENCODER)}
    return own, {name: value for name, value in tensors.items() if not name.startswith(ENCODER)}


def mismatches(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What keeps ``tensors`` from being those of a module whose state is ``wanted``: how many names are lacking,
    unknown, of another shape or type, and the first of each; '' where they fit."""
    needed = {name for name in wanted if not name.endswith(COUNTERS)}
    both = sorted(needed & set(tensors))
    shapes = [
        f"{name}: {tuple(tensors[name].shape)} for {tuple(wanted[name].shape)}"
        for name in both
        if tensors[name].shape != wanted[name].shape
    ]
    types = [
        f"{name}: {tensors[name].dtype} for {wanted[name].dtype}"
        for name in both
        if tensors[name].is_floating_point() != wanted[name].is_floating_point()
    ]
    kinds = [
        ("lacking", sorted(needed - set(tensors))),
        ("unknown", sorted(set(tensors) - set(wanted))),
        ("of another shape", shapes),
        ("of another type", types),
    ]
    return "; ".join(f"{len(names)} {kind}, first {_some(names)}" for kind, names in kinds if names)


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def put(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Give ``module`` the values of ``tensors``, in its own precision.

    Args:
        module: whose state has these names and shapes; counters of batch norms may be lacking, and stay as they are.
        tensors: by name.
        what: they are to be told as, such as ``weights model.safetensors: do not fit encoder 'segres'``.

    Raises:
        UserError: other tensors than the module's; the message tells of all that is wrong.
    """
    wrong = mismatches(tensors, module.state_dict())
    if wrong:
        raise UserError(f"{what}: {wrong}")
    module.load_state_dict(dict(tensors), strict=False)

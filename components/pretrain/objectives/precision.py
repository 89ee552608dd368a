"""Losses in float32 inside of autocast, which would run their products in bfloat16: a loss of 10 to 1/16."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

LossArguments = ParamSpec("LossArguments")


def in_full_precision(loss: Callable[LossArguments, Tensor]) -> Callable[LossArguments, Tensor]:
    """``loss`` without autocast, on float32 copies of what is half as wide; float32 and float64 stay as they are."""

    @wraps(loss)
    def run(*args: LossArguments.args, **kwargs: LossArguments.kwargs) -> Tensor:
        devices = {value.device.type for value in args if isinstance(value, Tensor)}
        with torch.autocast(devices.pop(), enabled=False):
            return loss(*(_wide(value) for value in args), **kwargs)  # type: ignore[arg-type]

    return run


def _wide(value: object) -> object:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value  # type: ignore[attr-defined]

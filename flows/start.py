"""The weights that a line starts from: checked before anything is made, for a release takes hours to come to them."""

from __future__ import annotations

from components.pretrain.config import PretrainConfig
from components.settings import load_stage


def check_start(line: str, fetch: bool) -> str:
    """Hold the weights against the line's parameters.

    Args:
        line: model line.
        fetch: whether the hub may be asked for what its cache has not got.

    Returns:
        What is known of them, for a person; '' of a line that starts from none.

    Raises:
        UserError: no such file, another digest, or another encoder's weights.
    """
    config = load_stage(PretrainConfig, line, "pretrain")
    if config.start is None:
        return ""
    from components.pretrain.start import checked  # torch takes seconds to import

    if checked(line, config, fetch) is None:
        return f"{line}: {config.start.told}: not here yet; the release fetches it"
    return f"{line}: {config.start.told}: fits"

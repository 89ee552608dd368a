"""Masked image modelling with a small decoder: masked autoencoders (arXiv 2111.06377)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.models.config import VitConfig
from components.models.vit import Block, Size3, sincos_positions, take_tokens
from components.pretrain.config import MaeConfig
from components.pretrain.objectives.precision import in_full_precision


@in_full_precision
def mae_loss(predicted_BHP: Tensor, target_BHP: Tensor, normalise: bool) -> Tensor:
    """Mean squared error over the hidden patches' voxels; with ``normalise`` each target patch is standardised."""
    if normalise:
        mean = target_BHP.mean(dim=-1, keepdim=True)
        target_BHP = (target_BHP - mean) / (target_BHP.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    return ((predicted_BHP - target_BHP) ** 2).mean()


class MaeDecoder(nn.Module):
    """Predicts the voxels of the hidden patches from the tokens of the visible ones.

    Args:
        encoder: the encoder's sizes.
        grid: patches along each axis.
        voxels: numbers per patch, channels * patch^3.
        config: sizes.
    """

    def __init__(self, encoder: VitConfig, grid: Size3, voxels: int, config: MaeConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.dim, config.decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        positions_ND = sincos_positions(grid, grid, config.decoder_dim, encoder.position_waves)
        self.register_buffer("positions_ND", positions_ND, persistent=False)
        self.blocks = nn.Sequential(
            *(Block(config.decoder_dim, config.decoder_heads, 4.0) for _ in range(config.decoder_depth))
        )
        self.norm = nn.LayerNorm(config.decoder_dim)
        self.predict = nn.Linear(config.decoder_dim, voxels)

    def forward(self, tokens_BLD: Tensor, visible_BK: Tensor, hidden_BH: Tensor) -> Tensor:
        """(B, H, voxels): tokens are the class token and the K visible patches, in the order of ``visible_BK``."""
        positions_BND = self.get_buffer("positions_ND").expand(len(tokens_BLD), -1, -1)
        x_BLD = self.embed(tokens_BLD)
        seen_BKD = x_BLD[:, 1:] + take_tokens(positions_BND, visible_BK)
        hidden_BHD = self.mask_token + take_tokens(positions_BND, hidden_BH)
        x_BLD = self.blocks(torch.cat([x_BLD[:, :1], seen_BKD, hidden_BHD], dim=1))
        predicted_BHP: Tensor = self.predict(self.norm(x_BLD[:, 1 + visible_BK.shape[1] :]))
        return predicted_BHP

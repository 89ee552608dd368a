"""The head encoder: a 3D vision transformer with sin-cos positions, a class token and optional registers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.models.config import VitConfig

Size3 = tuple[int, int, int]
# Vectors of a token's length in an embedding, and how many of them, the first, self-distillation is given.
VECTORS = {"class": (1, 1), "mean": (1, 1), "class_mean": (2, 2), "whole_centre": (6, 4)}
EPSILON = 1e-6
TOKENS = ("class_token", "registers", "mask_token")  # names of parameters that are seen beside the patches


def sincos_positions(grid: Size3, reference: Size3, dim: int, waves: str) -> Tensor:
    """Fixed positions of a grid of patches, (N, dim) float32; what is left of dim after its sixths is zero.

    A smaller ``grid`` is spread over the extent of the ``reference`` grid, as DINO does for its local views: positions
    tell where in the view a patch lies. With ``waves`` "customary", angular frequencies fall from 1 a patch to nearly
    1 in 10,000 (arXiv 1706.03762): made for sentences, and on grids of 6 to 8 patches most of the numbers are constant.
    With "grid", wavelengths go from 3 patches to 4 times the grid.
    """
    count = dim // 6
    if waves == "customary":
        frequencies = 10_000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    else:
        shortest, longest = 3.0, 4.0 * max(reference)
        exponents = torch.linspace(0, 1, count, dtype=torch.float64)
        frequencies = 2 * math.pi / (shortest * (longest / shortest) ** exponents)
    axes = [(torch.arange(n, dtype=torch.float64) + 0.5) * (r / n) - 0.5 for n, r in zip(grid, reference, strict=True)]
    coordinates_N3 = torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], dim=1)
    angles_N3F = coordinates_N3[:, :, None] * frequencies
    positions_ND = torch.cat([angles_N3F.sin(), angles_N3F.cos()], dim=2).flatten(1).float()
    return functional.pad(positions_ND, (0, dim - positions_ND.shape[1]))


def patchify(x_BCDHW: Tensor, patch: int) -> Tensor:
    """Cut into cubes: (B, N, C * patch^3), N in row-major order of the grid."""
    return (
        x_BCDHW.unfold(2, patch, patch)
        .unfold(3, patch, patch)
        .unfold(4, patch, patch)
        .permute(0, 2, 3, 4, 1, 5, 6, 7)
        .flatten(4)
        .flatten(1, 3)
    )


class Block(nn.Module):
    """Pre-norm transformer block on (B, L, dim)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x_BLD: Tensor) -> Tensor:
        B, L, D = x_BLD.shape
        q, k, v = self.qkv(self.norm1(x_BLD)).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        attended_BLD = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, D)
        x_BLD = x_BLD + self.proj(attended_BLD)
        out_BLD: Tensor = x_BLD + self.mlp(self.norm2(x_BLD))
        return out_BLD


class Vit(nn.Module):
    """3D ViT. Source: arXiv 2502.02779 (FM-CT); registers: arXiv 2309.16588; masked-token dropping: arXiv 2111.06377.

    Args:
        config: sizes.
        channels: input channels, one per CT window.
        size: the full input in voxels; smaller boxes are allowed and get their positions spread over it.
    """

    def __init__(self, config: VitConfig, channels: int, size: Size3) -> None:
        super().__init__()
        self.config = config
        self.patch = config.patch_vox
        self.grid: Size3 = self._grid_of(size)
        self.embedding_dim, self.distilled_dim = (config.dim * count for count in VECTORS[config.pooling])
        self.widths = [config.dim] * config.depth  # of the levels
        self.patch_embed = nn.Linear(channels * self.patch**3, config.dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.registers = nn.Parameter(torch.zeros(1, config.registers, config.dim)) if config.registers else None
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self._positions: dict[Size3, Tensor] = {}
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_token, std=0.02)
        if self.registers is not None:
            nn.init.normal_(self.registers, std=0.02)

    def _grid_of(self, size: Size3) -> Size3:
        a, b, c = size
        if a % self.patch or b % self.patch or c % self.patch:
            raise ValueError(f"input {size} voxels is not allowed: each side must be a multiple of {self.patch}")
        return a // self.patch, b // self.patch, c // self.patch

    def _positions_for(self, grid: Size3, like: Tensor) -> Tensor:
        known = self._positions.get(grid)
        if known is None or known.device != like.device:  # once: a copy to a GPU would wait for all that it has to do
            new = sincos_positions(grid, self.grid, self.config.dim, self.config.position_waves)
            known = self._positions[grid] = new.to(like.device)
        return known.to(like)

    def tokens(
        self,
        x_BCDHW: Tensor,
        keep_BK: Tensor | None = None,
        masked: tuple[Tensor, Tensor] | None = None,
        each: list[Tensor] | None = None,
    ) -> Tensor:
        """Normalised tokens after the last block.

        Args:
            x_BCDHW: windows in [0, 1].
            keep_BK: indices of the patches to keep; the others are dropped before the first block.
            masked: which patches, bool (B, N), are seen as a token (dim,) instead; they keep their positions.
            each: gets the normalised tokens after every block but the last.

        Returns:
            (B, 1 + K, dim): class token, then the patch tokens in the order of ``keep_BK`` (all N in grid order
            without it). Registers are removed.
        """
        grid = self._grid_of((x_BCDHW.shape[2], x_BCDHW.shape[3], x_BCDHW.shape[4]))
        patches_BNP = patchify(x_BCDHW, self.patch)
        positions_BND = self._positions_for(grid, x_BCDHW).expand(len(x_BCDHW), -1, -1)
        if keep_BK is not None:
            patches_BNP = take_tokens(patches_BNP, keep_BK)
            positions_BND = take_tokens(positions_BND, keep_BK)
        x_BLD = self.patch_embed(patches_BNP)
        if masked is not None:
            x_BLD = torch.where(masked[0][:, :, None], masked[1].to(x_BLD), x_BLD)
        x_BLD = x_BLD + positions_BND
        front = [self.class_token] if self.registers is None else [self.class_token, self.registers]
        x_BLD = torch.cat([*(part.expand(len(x_BLD), -1, -1) for part in front), x_BLD], dim=1)
        for number, block in enumerate(self.blocks, 1):
            x_BLD = block(x_BLD)
            if each is not None and number < len(self.blocks):
                each.append(self._without_registers(self.norm(x_BLD)))
        return self._without_registers(self.norm(x_BLD))

    def _without_registers(self, x_BLD: Tensor) -> Tensor:
        if self.registers is None:
            return x_BLD
        return torch.cat([x_BLD[:, :1], x_BLD[:, 1 + self.config.registers :]], dim=1)

    def pool(self, tokens_BLD: Tensor, grid: Size3, keep_BK: Tensor | None = None) -> Tensor:
        """The embedding (B, embedding_dim) of ``tokens`` of a ``grid``, or of those of its patches ``keep_BK``."""
        class_BD, patches_BND = tokens_BLD[:, 0], tokens_BLD[:, 1:]
        if self.config.pooling == "class":
            return class_BD
        if self.config.pooling == "whole_centre":
            inner_BN = middle_of(grid).to(patches_BND.device).expand(len(patches_BND), -1)
            inner_BN = inner_BN if keep_BK is None else inner_BN.gather(1, keep_BK)
            (whole_BE, top_BD), (centre_BE, of_centre_BD) = (
                distribution(patches_BND, part_BN) for part_BN in (torch.ones_like(inner_BN), inner_BN)
            )
            return torch.cat([whole_BE, centre_BE, top_BD, of_centre_BD], dim=1)
        mean_BD = patches_BND.mean(dim=1)
        return mean_BD if self.config.pooling == "mean" else torch.cat([class_BD, mean_BD], dim=1)

    def feature_map(self, x_BCDHW: Tensor) -> Tensor:
        """Patch tokens on their grid, (B, dim, d, h, w)."""
        return self._on_grid(self.tokens(x_BCDHW), x_BCDHW)

    def levels(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Patch tokens after every block, normalised, each (B, dim, d, h, w)."""
        each: list[Tensor] = []
        each.append(self.tokens(x_BCDHW, each=each))
        return [self._on_grid(tokens_BLD, x_BCDHW) for tokens_BLD in each]

    def _on_grid(self, tokens_BLD: Tensor, x_BCDHW: Tensor) -> Tensor:
        grid = self._grid_of((x_BCDHW.shape[2], x_BCDHW.shape[3], x_BCDHW.shape[4]))
        return tokens_BLD[:, 1:].transpose(1, 2).reshape(len(x_BCDHW), -1, *grid)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """The pooled embedding, (B, embedding_dim)."""
        grid = self._grid_of((x_BCDHW.shape[2], x_BCDHW.shape[3], x_BCDHW.shape[4]))
        return self.pool(self.tokens(x_BCDHW), grid)


def middle_of(grid: Size3) -> Tensor:
    """Which patches lie in the middle half of every axis, bool (N,) in the order of the grid."""
    axes = [(torch.arange(n) >= n // 4) & (torch.arange(n) < n - n // 4) for n in grid]
    return (axes[0][:, None, None] & axes[1][:, None] & axes[2]).flatten()


def distribution(x_BND: Tensor, counted_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, 2 D), and maximum (B, D), of each feature over the tokens that count; of none, 0
    but for the deviation's smallest value."""
    counted_BN1 = counted_BN[:, :, None]
    weight_BN1 = counted_BN1 / counted_BN1.sum(dim=1, keepdim=True).clamp(min=1)
    mean_BD = (x_BND * weight_BN1).sum(dim=1)
    variance_BD = ((x_BND - mean_BD[:, None]).square() * weight_BN1).sum(dim=1)
    largest_BD = x_BND.masked_fill(~counted_BN1, -math.inf).amax(dim=1).masked_fill(~counted_BN1.any(dim=1), 0)
    return torch.cat([mean_BD, (variance_BD + EPSILON).sqrt()], dim=1), largest_BD  # the root of 0 has no gradient


def take_tokens(x_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Row ``index_BK[b, k]`` of ``x_BND[b]``: (B, K, D)."""
    return x_BND.gather(1, index_BK[:, :, None].expand(-1, -1, x_BND.shape[2]))

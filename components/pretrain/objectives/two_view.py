"""Objectives on two views of each crop: an encoder, a projection head and the loss that the parameters name."""

from __future__ import annotations

from torch import Tensor, nn

from components.models.build import Encoder
from components.pretrain.config import NtXentConfig, SimSiamConfig, TwoViewConfig, VicRegConfig
from components.pretrain.monitors import alignment
from components.pretrain.objectives.ntxent import across_volume_ntxent, within_volume_ntxent
from components.pretrain.objectives.simsiam import simsiam_loss
from components.pretrain.objectives.vicreg import vicreg_loss
from components.pretrain.views import Batch


class TwoView(nn.Module):
    """CT-FM and its ablations: within-volume and across-volume NT-Xent, VICReg, SimSiam."""

    def __init__(self, encoder: Encoder, config: TwoViewConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        dim, hidden, out = encoder.embedding_dim, config.hidden, config.projection
        if isinstance(config, NtXentConfig):
            self.head = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, out))
        else:
            last = [nn.BatchNorm1d(out, affine=False)] if isinstance(config, SimSiamConfig) else []
            self.head = nn.Sequential(*_layer(dim, hidden), *_layer(hidden, hidden), nn.Linear(hidden, out), *last)
        if isinstance(config, SimSiamConfig):
            self.predictor = nn.Sequential(*_layer(out, config.predictor), nn.Linear(config.predictor, out))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["views"]
        V, K, P = views.shape[:3]
        embedding_BE: Tensor = self.encoder(views.flatten(0, 2))
        seen_NPE = embedding_BE.detach().view(V * K, P, -1)
        return {
            "loss": self._loss(self.head(embedding_BE).view(V, K, P, -1)),
            "embedding": embedding_BE.detach(),
            "alignment": alignment(seen_NPE[:, 0], seen_NPE[:, 1]),
        }

    def _loss(self, z_VKPE: Tensor) -> Tensor:
        config, z_NPE = self.config, z_VKPE.flatten(0, 1)
        if isinstance(config, VicRegConfig):
            return vicreg_loss(z_NPE, config.invariance, config.variance, config.covariance)
        if isinstance(config, SimSiamConfig):
            return simsiam_loss(self.predictor(z_NPE.flatten(0, 1)).view_as(z_NPE), z_NPE)
        if config.kind == "across_volume":
            return across_volume_ntxent(z_NPE, config.temperature)
        return within_volume_ntxent(z_VKPE, config.temperature)

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""


def _layer(dim: int, out: int) -> list[nn.Module]:
    return [nn.Linear(dim, out, bias=False), nn.BatchNorm1d(out), nn.ReLU()]

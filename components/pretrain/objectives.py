"""What is minimised: an encoder with the heads of its objective. The choice is ``objective.kind`` in the parameters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.pretrain.config import ContrastiveConfig, HeadObjectiveConfig, PretrainConfig, VitConfig
from components.pretrain.dino import (
    DinoHead,
    cosine_schedule,
    dino_loss,
    entropy,
    teacher_probabilities,
    update_teacher,
)
from components.pretrain.mae import MaeDecoder, mae_loss
from components.pretrain.models import build_encoder
from components.pretrain.ntxent import within_volume_ntxent
from components.pretrain.segres import SegRes
from components.pretrain.views import Batch, CropViews, MultiCropViews, Views
from components.pretrain.vit import Vit, patchify, take_tokens

Outcome = dict[str, Tensor]  # "loss" with gradient, "embedding" (B, E) detached, further monitors (scalars)


class Contrastive(nn.Module):
    """CT-FM: SimCLR head of two layers on the pooled encoder, NT-Xent within the volume."""

    def __init__(self, encoder: SegRes, config: ContrastiveConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.head = nn.Sequential(
            nn.Linear(encoder.embedding_dim, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.projection)
        )

    def forward(self, batch: Batch) -> Outcome:
        views = batch["views"]
        V, K, P = views.shape[:3]
        embedding_BE = self.encoder(views.flatten(0, 2))
        z_VKPE = self.head(embedding_BE).view(V, K, P, -1)
        loss = within_volume_ntxent(z_VKPE, self.config.temperature)
        return {"loss": loss, "embedding": embedding_BE.detach()}

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""


class HeadObjective(nn.Module):
    """FM-CT: self-distillation with multi-crop, masked image modelling, or both on one encoder."""

    centre: Tensor

    def __init__(self, encoder: Vit, config: HeadObjectiveConfig, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.distils, self.paints = "dino" in config.kind, "mae" in config.kind
        if self.distils:
            self.head = DinoHead(encoder.embedding_dim, config.dino)
            self.teacher = copy.deepcopy(nn.ModuleList([encoder, self.head])).requires_grad_(False)
            self.register_buffer("centre", torch.zeros(config.dino.prototypes))
        if self.paints:
            self.decoder = MaeDecoder(
                encoder.config.dim, encoder.grid, channels * encoder.config.patch_vox**3, config.mae
            )

    def forward(self, batch: Batch) -> Outcome:
        global_BCDHW = batch["global"].transpose(0, 1).flatten(0, 1)  # view by view: (G * B, ...)
        outcome: Outcome = {}
        if self.distils:
            outcome |= self._distil(batch, global_BCDHW)
        if self.paints:
            outcome |= self._paint(batch, global_BCDHW)
        if self.distils and self.paints:
            outcome["loss"] = outcome["dino_loss"] + self.config.mae_weight * outcome["mae_loss"]
        else:
            outcome["loss"] = outcome["dino_loss" if self.distils else "mae_loss"]
        return {key: value if key == "loss" else value.detach() for key, value in outcome.items()}

    def _distil(self, batch: Batch, global_BCDHW: Tensor) -> Outcome:
        config, G = self.config.dino, self.config.views.globals
        with torch.no_grad():
            teacher_encoder, teacher_head = self.teacher
            logits_GBM = teacher_head(teacher_encoder(global_BCDHW)).unflatten(0, (G, -1))
            teacher_GBM = teacher_probabilities(logits_GBM, self.centre, config.teacher_temperature)
            mean_M = logits_GBM.mean(dim=(0, 1))
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(mean_M)
                mean_M /= torch.distributed.get_world_size()
            centre_M = self.centre.lerp(mean_M, 1 - config.centre_momentum)
        embeddings = [self.encoder(global_BCDHW)]
        if "local" in batch:
            embeddings.append(self.encoder(batch["local"].transpose(0, 1).flatten(0, 1)))
        B = len(batch["global"])
        student_SBM = self.head(torch.cat(embeddings)).unflatten(0, (-1, B))
        loss = dino_loss(student_SBM, teacher_GBM, config.student_temperature)
        self.centre.copy_(centre_M)
        return {"dino_loss": loss, "embedding": embeddings[0], "teacher_entropy": entropy(teacher_GBM)}

    def _paint(self, batch: Batch, global_BCDHW: Tensor) -> Outcome:
        visible_BK = batch["visible"].transpose(0, 1).flatten(0, 1)
        hidden_BH = batch["hidden"].transpose(0, 1).flatten(0, 1)
        tokens_BLD = self.encoder.tokens(global_BCDHW, visible_BK)
        predicted_BHP = self.decoder(tokens_BLD, visible_BK, hidden_BH)
        target_BHP = take_tokens(patchify(global_BCDHW, self.encoder.patch), hidden_BH)
        return {
            "mae_loss": mae_loss(predicted_BHP, target_BHP, self.config.mae.normalise),
            **({} if self.distils else {"embedding": self.encoder.pool(tokens_BLD)}),
        }

    def after_step(self, progress: float) -> None:
        """Move the teacher; ``progress`` is the share of all steps done, so the schedule runs over the whole run."""
        if self.distils:
            momentum = cosine_schedule(self.config.dino.ema_start, self.config.dino.ema_end, progress)
            teacher_encoder, teacher_head = self.teacher
            update_teacher(teacher_encoder, self.encoder, momentum)
            update_teacher(teacher_head, self.head, momentum)


Objective = Contrastive | HeadObjective


def build_objective(config: PretrainConfig) -> Objective:
    """The encoder (``.encoder``) and heads, initialised from ``config.seed`` alone. The teacher starts as a copy."""
    encoder = build_encoder(config.encoder, config.input, config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        if isinstance(config.objective, ContrastiveConfig) and isinstance(encoder, SegRes):
            return Contrastive(encoder, config.objective)
        if isinstance(config.objective, HeadObjectiveConfig) and isinstance(encoder, Vit):
            return HeadObjective(encoder, config.objective, channels=len(config.input.windows))
    raise ValueError(f"objective {config.objective.kind!r} with encoder {config.encoder.kind!r} is not allowed")


def build_views(config: PretrainConfig) -> Views:
    """The view maker that goes with the objective."""
    if isinstance(config.objective, ContrastiveConfig):
        return CropViews(config.input, config.objective.views)
    assert isinstance(config.encoder, VitConfig)
    return MultiCropViews(
        config.input, config.objective.views, config.encoder.patch_vox, config.objective.mae.mask_ratio
    )


def spread(embedding_BE: Tensor) -> float:
    """Mean standard deviation of unit-length embeddings times sqrt(E): 1 when spread evenly, 0 when collapsed."""
    unit_BE = functional.normalize(embedding_BE.double(), dim=-1)
    return float(unit_BE.std(dim=0, correction=0).mean() * unit_BE.shape[1] ** 0.5)


def effective_rank(embedding_BE: Tensor) -> float:
    """Exponential of the entropy of the centred embeddings' singular values (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals(embedding_BE.double() - embedding_BE.double().mean(dim=0))
    shares = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))

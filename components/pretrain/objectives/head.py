"""FM-CT: self-distillation with multi-crop, masked image modelling, or both on one encoder."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from components.models.vit import Vit, patchify, take_tokens
from components.pretrain.config import HeadObjectiveConfig
from components.pretrain.monitors import alignment
from components.pretrain.objectives.dino import (
    DinoHead,
    dino_loss,
    entropy,
    logit_sums,
    moved_centre,
    teacher_probabilities,
    update_teacher,
)
from components.pretrain.objectives.ibot import ibot_loss
from components.pretrain.objectives.koleo import koleo_loss
from components.pretrain.objectives.mae import MaeDecoder, mae_loss
from components.pretrain.optimiser import cosine_schedule
from components.pretrain.views import Batch

Outcome = dict[str, Tensor]


class HeadObjective(nn.Module):
    """DINO, DINO with masked tokens (iBOT), MAE, or DINO and MAE: ``config.kind``."""

    centre: Tensor
    patch_centre: Tensor

    def __init__(self, encoder: Vit, config: HeadObjectiveConfig, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.distils, self.paints = "dino" in config.kind, "mae" in config.kind
        self.masks = config.kind == "dino_ibot"
        self._taught: dict[str, list[Tensor]] = {}  # by centre: sums of the teacher's logits in this step's parts
        if self.distils:
            self.head = DinoHead(encoder.distilled_dim, config.dino, config.dino.prototypes)
            taught: list[nn.Module] = [encoder, self.head]
            self.register_buffer("centre", torch.zeros(config.dino.prototypes))
            if self.masks:
                self.patch_head = DinoHead(encoder.config.dim, config.dino, config.ibot.prototypes)
                taught.append(self.patch_head)
                self.register_buffer("patch_centre", torch.zeros(config.ibot.prototypes))
                self.mask_token = nn.Parameter(torch.zeros(encoder.config.dim))
            self.teacher = copy.deepcopy(nn.ModuleList(taught)).requires_grad_(False)
        if self.paints:
            self.decoder = MaeDecoder(encoder.config, encoder.grid, channels * encoder.config.patch_vox**3, config.mae)

    def forward(self, batch: Batch) -> Outcome:
        global_BCDHW = batch["global"].transpose(0, 1).flatten(0, 1)  # view by view: (G * B, ...)
        outcome: Outcome = {}
        loss = torch.zeros((), device=global_BCDHW.device)
        if self.distils:
            outcome |= self._distil(batch, global_BCDHW)
            loss = loss + outcome["dino_loss"]
            if self.masks:
                loss = loss + self.config.ibot.weight * outcome["ibot_loss"]
            if self.config.dino.koleo_weight:
                loss = loss + self.config.dino.koleo_weight * outcome["koleo_loss"]
        if self.paints:
            outcome |= self._paint(batch, global_BCDHW)
            loss = loss + (self.config.mae_weight if self.distils else 1.0) * outcome["mae_loss"]
        views_GBE = outcome["embedding"].detach().view(self.config.views.globals, len(batch["global"]), -1)
        outcome["alignment"] = alignment(views_GBE[0], views_GBE[1])
        return {"loss": loss, **{key: value.detach() for key, value in outcome.items()}}

    def _distil(self, batch: Batch, global_BCDHW: Tensor) -> Outcome:
        config, G, B = self.config.dino, self.config.views.globals, len(batch["global"])
        masked_BN = batch["masked"].transpose(0, 1).flatten(0, 1) if self.masks else None
        with torch.no_grad():
            teacher = self.teacher[0]
            assert isinstance(teacher, Vit)
            taught_BLD = teacher.tokens(global_BCDHW)
            logits_GBM = self.teacher[1](self._distilled(taught_BLD)).unflatten(0, (G, -1))
            teacher_GBM = teacher_probabilities(logits_GBM, self.centre, config.teacher_temperature)
            self._taught.setdefault("centre", []).append(logit_sums(logits_GBM.flatten(0, 1)))
        hidden = None if masked_BN is None else (masked_BN, self.mask_token)
        tokens_BLD = self.encoder.tokens(global_BCDHW, masked=hidden)
        embeddings = [self._distilled(tokens_BLD)]
        if "local" in batch:
            local_BE = self.encoder(batch["local"].transpose(0, 1).flatten(0, 1))
            embeddings.append(local_BE[:, : self.encoder.distilled_dim])
        student_SBM = self.head(torch.cat(embeddings)).unflatten(0, (-1, B))
        outcome = {
            "dino_loss": dino_loss(student_SBM, teacher_GBM, config.student_temperature),
            "embedding": embeddings[0],
            "teacher_entropy": entropy(teacher_GBM),
        }
        if masked_BN is not None:
            outcome["ibot_loss"] = self._name_hidden(tokens_BLD[:, 1:], taught_BLD[:, 1:], masked_BN)
        if config.koleo_weight:
            outcome["koleo_loss"] = torch.stack([koleo_loss(view) for view in embeddings[0].chunk(G)]).mean()
        return outcome

    def _distilled(self, global_BLD: Tensor) -> Tensor:
        """What of the embedding of global views self-distillation is given."""
        return self.encoder.pool(global_BLD, self.encoder.grid)[:, : self.encoder.distilled_dim]

    def _name_hidden(self, student_BND: Tensor, taught_BND: Tensor, masked_BN: Tensor) -> Tensor:
        config = self.config.dino
        with torch.no_grad():
            logits_XM = self.teacher[2](taught_BND[masked_BN])
            teacher_XM = teacher_probabilities(logits_XM, self.patch_centre, config.teacher_temperature)
            self._taught.setdefault("patch_centre", []).append(logit_sums(logits_XM))
        student_XM = self.patch_head(student_BND[masked_BN])
        return ibot_loss(student_XM, teacher_XM, masked_BN, config.student_temperature)

    def _paint(self, batch: Batch, global_BCDHW: Tensor) -> Outcome:
        visible_BK = batch["visible"].transpose(0, 1).flatten(0, 1)
        hidden_BH = batch["hidden"].transpose(0, 1).flatten(0, 1)
        tokens_BLD = self.encoder.tokens(global_BCDHW, visible_BK)
        predicted_BHP = self.decoder(tokens_BLD, visible_BK, hidden_BH)
        target_BHP = take_tokens(patchify(global_BCDHW, self.encoder.patch), hidden_BH)
        return {
            "mae_loss": mae_loss(predicted_BHP, target_BHP, self.config.mae.normalise),
            **({} if self.distils else {"embedding": self.encoder.pool(tokens_BLD, self.encoder.grid, visible_BK)}),
        }

    def after_step(self, progress: float) -> None:
        """Move centres and teacher; ``progress`` is the share of all steps done, so the schedule runs over the whole
        run. A step's parts see the same centres, which move once, by all of them."""
        if self.distils:
            for name, sums in self._taught.items():
                centre_M = self.get_buffer(name)
                centre_M.copy_(moved_centre(centre_M, torch.stack(sums).sum(dim=0), self.config.dino.centre_momentum))
            self._taught.clear()
            momentum = cosine_schedule(self.config.dino.ema_start, self.config.dino.ema_end, progress)
            students = [self.encoder, self.head, *([self.patch_head] if self.masks else [])]
            for teacher, student in zip(self.teacher, students, strict=True):
                update_teacher(teacher, student, momentum)

"""Pretraining written a second time, plainly and slowly, from the papers: what a step of ours is held against.

It shares no arithmetic with ``components.pretrain``: weights come as a dictionary of leaf tensors, everything else is
said here. Only MONAI's SegResEncoder is taken as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import Tensor

Weights = dict[str, Tensor]


def half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def batch_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    unit = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    return unit * w[f"{name}.weight"] + w[f"{name}.bias"] if f"{name}.weight" in w else unit


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Per row."""
    return -(target * ((logits / temperature) - (logits / temperature).logsumexp(-1, keepdim=True))).sum(-1)


def positions(grid: list[int], reference: list[int], dim: int, waves_of: str) -> Tensor:
    """Waves of 3 patches to 4 grids, or the customary ones: sines, then cosines, axis by axis; kept in float32."""
    count = dim // 6
    waves = [3.0 * (4.0 * max(reference) / 3.0) ** (k / (count - 1)) for k in range(count)]
    if waves_of == "customary":
        waves = [2 * math.pi * 10_000 ** (k / count) for k in range(count)]
    rows = []
    for place in [(a, b, c) for a in range(grid[0]) for b in range(grid[1]) for c in range(grid[2])]:
        row: list[float] = []
        for index, n, r in zip(place, grid, reference, strict=True):
            at = (index + 0.5) * r / n - 0.5
            row += [math.sin(2 * math.pi * at / wave) for wave in waves]
            row += [math.cos(2 * math.pi * at / wave) for wave in waves]
        rows.append(row + [0.0] * (dim - len(row)))
    return torch.tensor(rows, dtype=torch.float64).float().double()


def patches_of(x: Tensor, p: int) -> Tensor:
    a, b, c = (n // p for n in x.shape[2:])
    cubes = [
        x[:, :, i * p : (i + 1) * p, j * p : (j + 1) * p, k * p : (k + 1) * p].flatten(1)
        for i in range(a)
        for j in range(b)
        for k in range(c)
    ]
    return torch.stack(cubes, dim=1)


def block(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    q, k, v = linear(w, f"{name}.qkv", layer_norm(w, f"{name}.norm1", x)).chunk(3, dim=-1)
    side = q.shape[-1] // heads
    attended = []
    for head in range(heads):
        part = slice(head * side, (head + 1) * side)
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(side), dim=-1)
        attended.append(weights @ v[..., part])
    x = x + linear(w, f"{name}.proj", torch.cat(attended, dim=-1))
    hidden = gelu(linear(w, f"{name}.mlp.0", layer_norm(w, f"{name}.norm2", x)))
    return x + linear(w, f"{name}.mlp.2", hidden)


class PlainVit:
    """Tokens and embedding, as the parameters say."""

    def __init__(self, encoder: dict[str, Any], size: list[int]) -> None:
        self.config, self.reference = encoder, [n // encoder["patch_vox"] for n in size]

    def tokens(
        self, w: Weights, at: str, x: Tensor, keep: Tensor | None = None, masked: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Class token, then patches; registers have left."""
        config, p = self.config, self.config["patch_vox"]
        tokens = linear(w, f"{at}patch_embed", patches_of(x, p))
        if masked is not None:
            tokens = torch.where(masked[0][..., None], masked[1], tokens)
        tokens = tokens + positions(
            [n // p for n in x.shape[2:]], self.reference, config["dim"], config["position_waves"]
        )
        if keep is not None:
            tokens = torch.stack([row[index] for row, index in zip(tokens, keep, strict=True)])
        front = [w[f"{at}class_token"], *([w[f"{at}registers"]] if config["registers"] else [])]
        y = torch.cat([*(part.expand(len(x), -1, -1) for part in front), tokens], dim=1)
        for number in range(config["depth"]):
            y = block(w, f"{at}blocks.{number}", y, config["heads"])
        y = layer_norm(w, f"{at}norm", y)
        return torch.cat([y[:, :1], y[:, 1 + config["registers"] :]], dim=1)

    def pool(self, tokens: Tensor) -> Tensor:
        both = {"class": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}
        both["class_mean"] = torch.cat([both["class"], both["mean"]], dim=1)
        return both[self.config["pooling"]]


class PlainHead:
    """DINO, iBOT and masked image modelling on one vision transformer; ``centres`` move with ``forward``."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.objective, self.encoder = config["objective"], config["encoder"]
        self.vit = PlainVit(config["encoder"], config["input"]["size_vox"])
        self.centres = {"centre": torch.zeros(()), "patch_centre": torch.zeros(())}
        self.moved = dict(self.centres)

    def head(self, w: Weights, at: str, x: Tensor) -> Tensor:
        """Over the whole batch to zero mean and unit variance where told, three layers, cosine to the prototypes."""
        if self.objective["dino"]["standardise"]:
            x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        x = gelu(linear(w, f"{at}mlp.1", x))
        x = gelu(linear(w, f"{at}mlp.3", x))
        return unit(linear(w, f"{at}mlp.5", x)) @ unit(w[f"{at}prototypes"]).T

    def answer(self, logits: Tensor, centre: str) -> Tensor:
        """The teacher's, sharpened and centred; the centre moves towards the mean of its logits after the step."""
        dino, mean = self.objective["dino"], logits.reshape(-1, logits.shape[-1]).mean(0)
        answer = torch.softmax((logits - self.centres[centre]) / dino["teacher_temperature"], dim=-1)
        m = dino["centre_momentum"]
        self.moved[centre] = m * self.centres[centre] + (1 - m) * mean
        return answer

    def distil(self, w: Weights, batch: Weights) -> Tensor:
        dino, kind = self.objective["dino"], self.objective["kind"]
        G, L = batch["global"].shape[1], batch["local"].shape[1]
        views = [batch["global"][:, g] for g in range(G)] + [batch["local"][:, n] for n in range(L)]
        with torch.no_grad():
            taught = [self.vit.tokens(w, "teacher.0.", view) for view in views[:G]]
            logits = self.head(w, "teacher.1.", torch.cat([self.vit.pool(tokens) for tokens in taught]))
            teacher = self.answer(logits, "centre").chunk(G)
        masks = [batch["masked"][:, g] if kind == "dino_ibot" else None for g in range(G)] + [None] * L
        seen = [
            self.vit.tokens(w, "encoder.", view, masked=None if mask is None else (mask, w["mask_token"]))
            for view, mask in zip(views, masks, strict=True)
        ]
        embeddings = [self.vit.pool(tokens) for tokens in seen]
        student = self.head(w, "head.", torch.cat(embeddings)).chunk(G + L)
        temperature = dino["student_temperature"]
        pairs = [
            cross_entropy(teacher[g], student[s], temperature).mean() for g in range(G) for s in range(G + L) if s != g
        ]
        loss = torch.stack(pairs).mean()
        if kind == "dino_ibot":
            loss = loss + self.objective["ibot"]["weight"] * self.name_hidden(w, batch, seen, taught)
        if dino["koleo_weight"]:
            loss = loss + dino["koleo_weight"] * torch.stack([koleo(view) for view in embeddings[:G]]).mean()
        return loss

    def name_hidden(self, w: Weights, batch: Weights, seen: list[Tensor], taught: list[Tensor]) -> Tensor:
        """Per view the mean over its hidden patches; then over all views, one without any as zero."""
        masks = torch.cat([batch["masked"][:, g] for g in range(len(taught))])
        student = torch.cat(seen[: len(taught)])[:, 1:][masks]
        with torch.no_grad():
            named = self.head(w, "teacher.2.", torch.cat(taught)[:, 1:][masks])
            teacher = self.answer(named, "patch_centre")
        each = cross_entropy(
            teacher, self.head(w, "patch_head.", student), self.objective["dino"]["student_temperature"]
        )
        of_views = [part.mean() if len(part) else torch.zeros(()) for part in each.split(masks.sum(1).tolist())]
        return torch.stack(of_views).mean()

    def paint(self, w: Weights, batch: Weights) -> Tensor:
        """Mean squared error of the hidden patches, of which the decoder knows the place only."""
        mae, p, errors = self.objective["mae"], self.encoder["patch_vox"], []
        places = positions(self.vit.reference, self.vit.reference, mae["decoder_dim"], self.encoder["position_waves"])
        for g in range(batch["global"].shape[1]):
            view, visible, hidden = batch["global"][:, g], batch["visible"][:, g], batch["hidden"][:, g]
            known = linear(w, "decoder.embed", self.vit.tokens(w, "encoder.", view, keep=visible))
            unknown = w["decoder.mask_token"] + places[hidden]
            x = torch.cat([known[:, :1], known[:, 1:] + places[visible], unknown], dim=1)
            for number in range(mae["decoder_depth"]):
                x = block(w, f"decoder.blocks.{number}", x, mae["decoder_heads"])
            painted = linear(w, "decoder.predict", layer_norm(w, "decoder.norm", x[:, -hidden.shape[1] :]))
            target = torch.stack([row[index] for row, index in zip(patches_of(view, p), hidden, strict=True)])
            if mae["normalise"]:
                target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
            errors.append((painted - target).square())
        return torch.stack(errors).mean()

    def loss(self, w: Weights, batch: Weights) -> Tensor:
        kind = self.objective["kind"]
        if kind == "mae":
            return self.paint(w, batch)
        loss = self.distil(w, batch)
        return loss + self.objective["mae_weight"] * self.paint(w, batch) if kind == "dino_mae" else loss

    def after_step(self, w: Weights, share: float) -> None:
        """Centres and teacher follow; the teacher's momentum runs over the whole run."""
        self.centres = dict(self.moved)
        dino = self.objective["dino"]
        momentum = half_cosine(dino["ema_start"], dino["ema_end"], share)
        for name in [name for name in w if name.startswith("teacher.")]:
            number, rest = name.removeprefix("teacher.").split(".", 1)
            student = w[f"{('encoder', 'head', 'patch_head')[int(number)]}.{rest}"]
            w[name] = (momentum * w[name] + (1 - momentum) * student).detach()


def koleo(embedding: Tensor) -> Tensor:
    rows = unit(embedding)
    nearest = []
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        nearest.append(others[int(torch.stack([row @ other for other in others]).argmax())])
    distances = ((rows - torch.stack(nearest) + 1e-8).square().sum(-1)).sqrt()
    return -(distances + 1e-8).log().mean()


class PlainTwoView:
    """CT-FM and its ablations on MONAI's encoder."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.objective, encoder = config["objective"], config["encoder"]
        self.encoder = SegResEncoder(
            spatial_dims=3, init_filters=encoder["init_filters"], in_channels=len(config["input"]["windows"]),
            act="relu", norm="batch", blocks_down=encoder["blocks_down"],
        ).double()  # fmt: skip

    def loss(self, w: Weights, batch: Weights) -> Tensor:
        views = batch["views"]
        V, K = views.shape[:2]
        own = {name: w[f"encoder.{name}"] for name, _ in self.encoder.named_parameters()}
        x = torch.func.functional_call(self.encoder, own, (views.flatten(0, 2),))[-1].mean((2, 3, 4))
        kind = self.objective["kind"]
        if kind in ("within_volume", "across_volume"):
            z = unit(linear(w, "head.2", linear(w, "head.0", x).relu())).view(V, K, 2, -1)
            return self.contrast(z)
        for number in (0, 3):
            x = batch_norm(w, f"head.{number + 1}", linear(w, f"head.{number}", x)).relu()
        z = linear(w, "head.6", x)
        if kind == "vicreg":
            return self.vicreg(z.view(V * K, 2, -1))
        z = batch_norm(w, "head.7", z)
        p = linear(w, "predictor.3", batch_norm(w, "predictor.1", linear(w, "predictor.0", z)).relu())
        p, z = unit(p).view(V * K, 2, -1), unit(z.detach()).view(V * K, 2, -1)
        return -((p[:, 0] * z[:, 1]).sum(-1) + (p[:, 1] * z[:, 0]).sum(-1)).mean() / 2

    def contrast(self, z: Tensor) -> Tensor:
        """The positive against all, over one volume's crops from view 0, or over the batch from either view."""
        across, terms = self.objective["kind"] == "across_volume", []
        groups = [z.flatten(0, 1)] if across else list(z)
        for crops in groups:
            for i in range(len(crops)):
                for view in (0, 1) if across else (0,):
                    similar = torch.exp(crops @ crops[i, view] / self.objective["temperature"])
                    rest = similar.sum() - similar[i, view]
                    terms.append(-(similar[i, 1 - view] / rest).log())
        return torch.stack(terms).mean()

    def vicreg(self, z: Tensor) -> Tensor:
        objective, (N, _, E) = self.objective, z.shape
        agree = (z[:, 0] - z[:, 1]).square().mean()
        vary, others = [], []
        for view in (z[:, 0], z[:, 1]):
            covariance = (view - view.mean(0)).T @ (view - view.mean(0)) / (N - 1)
            vary.append((1 - (covariance.diagonal() + 1e-4).sqrt()).relu().mean())
            others.append((covariance.square().sum() - covariance.diagonal().square().sum()) / E)
        terms = agree, torch.stack(vary).mean(), torch.stack(others).sum()
        weights = objective["invariance"], objective["variance"], objective["covariance"]
        return sum((weight * term for weight, term in zip(weights, terms, strict=True)), torch.zeros(()))

    def after_step(self, w: Weights, share: float) -> None:
        """Nothing."""


class PlainRun:
    """AdamW with its schedules, a tensor at a time: warm-up, cosine, decay of weights only, clipping."""

    def __init__(self, config: dict[str, Any], weights: Weights) -> None:
        self.config = config
        self.objective = (
            PlainTwoView(config) if "crops_per_volume" in config["objective"]["views"] else PlainHead(config)
        )
        self.w = {name: value.clone() for name, value in weights.items()}
        self.trained = [name for name in self.w if not name.startswith("teacher.")]
        if isinstance(self.objective, PlainTwoView):
            encoder = {name.removeprefix("encoder."): value for name, value in weights.items()}
            self.objective.encoder.load_state_dict(encoder, strict=False)
        self.moments = {name: (torch.zeros_like(self.w[name]), torch.zeros_like(self.w[name])) for name in self.trained}
        self.step = 0

    def rate(self) -> float:
        optimiser, steps = self.config["optimiser"], self.config["steps"]
        warm = round(optimiser["warmup"] * steps)
        if self.step < warm:
            return float(optimiser["learning_rate"]) * (self.step + 1) / warm
        share = (self.step - warm) / (steps - warm)
        return half_cosine(optimiser["learning_rate"], optimiser["final_learning_rate"], share)

    @staticmethod
    def decayed(name: str, value: Tensor) -> bool:
        """Matrices, kernels and prototypes; neither norms nor biases nor tokens."""
        return value.ndim > 1 and (name.endswith("weight") or name.endswith("prototypes"))

    def run_step(self, batch: Weights) -> tuple[float, float]:
        """Loss, and the gradient's norm before it is clipped."""
        optimiser, steps = self.config["optimiser"], self.config["steps"]
        leaves = {name: self.w[name].clone().requires_grad_() for name in self.trained}
        loss = self.objective.loss(self.w | leaves, batch)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradients = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in gradients.values()))
        clip = min(1.0, optimiser["clip_norm"] / (norm + 1e-6)) if optimiser["clip_norm"] else 1.0
        rate, (b1, b2) = self.rate(), optimiser["betas"]
        decay = half_cosine(*optimiser["weight_decay"], self.step / steps)
        self.step += 1
        for name, grad in gradients.items():
            m, v = self.moments[name]
            m, v = b1 * m + (1 - b1) * grad * clip, b2 * v + (1 - b2) * (grad * clip).square()
            self.moments[name] = m, v
            value = self.w[name] * (1 - rate * decay if self.decayed(name, self.w[name]) else 1.0)
            m, v = m / (1 - b1**self.step), v / (1 - b2**self.step)
            self.w[name] = value - rate * m / (v.sqrt() + 1e-8)
        self.objective.after_step(self.w, self.step / steps)
        return loss.item(), norm

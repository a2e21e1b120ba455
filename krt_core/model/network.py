"""The whole classifier: backbone → patch tokens → ICA → a head per session; or pooling and a growing linear head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.export
from torch import Tensor, nn

from ..config import Model
from ..errors import ConfigError
from ..machine.precision import full_precision
from .backbone import Backbone, make_backbone
from .ica import Attention, IncrementalCrossAttention, SessionHead, _truncated_normal


@dataclass
class Output:
    """What one forward pass yields; everything beyond the logits is there for losses and pictures."""

    logits: Tensor  # (B, C) float32, columns in learning order
    tokens: Tensor | None  # (B, T, D) session embeddings; None with the linear head
    features: Tensor  # (B, channels, h, w) last feature map
    attention: Attention | None = None
    stages: tuple[Tensor, ...] | None = None  # (B, c_i, h_i, w_i) outputs of the backbone's stages

    @property
    def pooled(self) -> Tensor:
        """(B, channels) mean over the feature map: the embedding that herding uses."""
        return pool(self.features)

    def clone(self) -> Output:
        """Copies of all tensors but the attention."""

        def copy(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None else tensor.clone()

        stages = self.stages and tuple(map(copy, self.stages))
        return Output(self.logits.clone(), copy(self.tokens), self.features.clone(), None, stages)


torch.export.register_dataclass(Output)  # so that a network can be exported as it is


class Network(nn.Module):
    """A multi-label classifier that grows by `add_session`.

    head "ica": the published model. head "linear": global average pooling and a linear layer that grows, the usual
    baseline; with ``expand`` a fixed random layer of that width and ReLU between them (McDonnell et al., *RanPAC*,
    NeurIPS 2023). Input images are (B, 3, S, S) in [0, 1], or the feature maps that the backbone has made of them.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: str = "ica",
        embed_dim: int = 384,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        query: str = "transfer",
        expand: int = 0,
    ):
        super().__init__()
        self.backbone = backbone
        self.kind = head
        self.session_sizes: list[int] = []
        self.frozen_statistics = False
        self.still = False  # does the backbone stand still?
        self.looking: dict[torch.dtype, nn.Module] = {}  # of one that does: itself as `for_inference` makes it
        self.leak: str | None = None  # why the first weights had seen the labels to be learned
        self.heads = nn.ModuleList()
        if head == "ica":
            height, width = backbone.grid
            self.projection = nn.Conv2d(backbone.channels, embed_dim, kernel_size=1)
            self.position = nn.Parameter(_truncated_normal(1, height * width, embed_dim))
            self.ica = IncrementalCrossAttention(embed_dim, heads, mlp_ratio, query)
            self.embed_dim = embed_dim
        elif head != "linear":
            raise ValueError(f"head must be 'ica' or 'linear', not {head!r}")
        elif expand:
            self.expansion = nn.Linear(backbone.channels, expand, bias=False).requires_grad_(False)
            nn.init.normal_(self.expansion.weight, std=backbone.channels**-0.5)

    @property
    def sessions(self) -> int:
        return len(self.session_sizes)

    def add_session(self, classes: int) -> None:
        """Freeze what belongs to earlier sessions, then add a token and a head for ``classes`` new classes."""
        like = next(self.backbone.parameters())
        if self.kind == "ica":
            for head in self.heads:
                head.requires_grad_(False)
            self.ica.add_session()
            self.heads.append(SessionHead(self.embed_dim, classes).to(like))
        else:  # the linear head's old columns go on training, as is usual for this baseline
            linear = nn.Linear(self.width, classes)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
            nn.init.zeros_(linear.bias)
            self.heads.append(linear.to(like))
        self.session_sizes.append(classes)

    @property
    def width(self) -> int:
        """Numbers that a linear head reads of each image."""
        return self.expansion.out_features if hasattr(self, "expansion") else self.backbone.channels

    def freeze_backbone(self) -> None:
        """The backbone learns no more, and its running statistics stand still too."""
        self.still = True
        self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Network:
        """Training or eval mode; with ``frozen_statistics`` batch norm stays in eval mode, its weights learn."""
        super().train(mode)
        self.backbone.rest()
        if self.still:
            self.backbone.eval()
        if self.frozen_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor, with_attention: bool = False, with_stages: bool = False) -> Output:
        if with_stages and self.backbone.made(images):
            raise ConfigError(
                "The outputs of the backbone's stages are asked for, but it stands still, and of the images only the "
                "last map is kept. Do without them where Network.still, or set data.features=false."
            )
        features, stages = self.backbone.with_stages(images) if with_stages else (self.features(images), None)
        logits, tokens, attention = self._classify(features, with_attention)
        return Output(logits, tokens, features, attention, stages)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, C) of a last feature map (B, channels, h, w)."""
        return self._classify(features, False)[0]

    def _classify(self, features: Tensor, with_attention: bool) -> tuple[Tensor, Tensor | None, Attention | None]:
        if self.kind == "linear":
            with torch.autocast(features.device.type, enabled=False):  # rounded to bfloat16, scores would tie
                embedded = self.embed(features)
                return torch.cat([head(embedded) for head in self.heads], dim=1), None, None
        tokens, attention = self.ica(self.patch_tokens(features), with_attention)
        logits = torch.cat([head(tokens[:, t]) for t, head in enumerate(self.heads)], dim=1)
        return full_precision(logits), tokens, attention

    def features(self, images: Tensor) -> Tensor:
        """Feature maps (B, channels, h, w); those that a backbone that stands still has made are given back."""
        return images if self.backbone.made(images) else self.backbone(images)

    def embed(self, features: Tensor) -> Tensor:
        """What a linear head reads (B, width) of feature maps (B, channels, h, w)."""
        pooled = pool(features)
        return self.expansion(pooled).relu() if hasattr(self, "expansion") else pooled

    def patch_tokens(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) → (B, N, D) with the position embedding added."""
        patches = self.projection(features).flatten(2).transpose(1, 2)  # (B, N, D)
        if patches.shape[1] != self.position.shape[1]:
            raise ValueError(
                f"The model was built for {self.position.shape[1]} patches, the images give {patches.shape[1]}: "
                "use images of the size in data.image_size"
                + (", or feature maps, not their means (needs_maps of the method)." if patches.shape[1] == 1 else ".")
            )
        return patches + self.position


def pool(features: Tensor) -> Tensor:
    """(B, channels) means of feature maps, or of what were means already, float32 or better."""
    features = full_precision(features)
    return features.flatten(1) if features.shape[2:] == (1, 1) else features.mean(dim=(2, 3))


def build_network(model: Model, head: str, image_size: int, compile: bool = False, frozen: bool = False) -> Network:
    """The network before its first session, with random weights. head "ica" or "linear"; image_size in pixels;
    compile: run the backbone through torch.compile; frozen: leave batch norm's statistics as they are."""
    backbone = make_backbone(model, image_size)
    backbone.compiled = compile
    network = Network(backbone, head, model.embed_dim, model.heads, model.mlp_ratio, model.query, model.expand)
    network.frozen_statistics = frozen
    return network

"""VGG19 under torchvision's names, so that its public ImageNet weights load."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from cfal_experiments.models import pretrained
from cfal_experiments.models.base import EmbeddingModel

#: Channels of the 16 convolutions; "M" is a max-pool (configuration E of Simonyan & Zisserman).
LAYERS = (
    64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M",
    512, 512, 512, 512, "M", 512, 512, 512, 512, "M",
)  # fmt: skip
IMAGENET = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"


class VGG19(EmbeddingModel):
    """VGG19 (Simonyan & Zisserman 2015) with an embedding in place of its last layer.

    The paper fine-tunes all of it from ImageNet weights and leaves the head between convolutions
    and embedding open. Both known ways are here.

    Args:
        embedding_dim: D; 64 to 128 suits sigma = 130.
        head: "pooled" averages the last 512 maps and projects them to D; "imagenet" keeps VGG's two
            layers of 4096, ImageNet weights included, as Kather et al. (2019) do, and projects
            those.
        weights: "imagenet", or a local file with a state dict under torchvision's names (.pth or
            .safetensors; other entries in it are left alone). None for random weights.
        input_size: S, >= 32; 112 as in the authors' notebooks, or 224 as in Kather et al.
        dropout: after each layer of 4096.

    Raises:
        InputError: weights that cannot be read or do not fit.
        ValueError: an option out of range.

    Example:
        >>> model = VGG19(weights="imagenet", embedding_dim=128)
        >>> model(torch.zeros(8, 3, 112, 112)).shape
        torch.Size([8, 128])
    """

    smallest_input = 32

    def __init__(
        self,
        *,
        embedding_dim: int = 128,
        head: Literal["pooled", "imagenet"] = "pooled",
        weights: str | None = None,
        input_size: int = 112,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(embedding_dim, input_size)
        if head not in ("pooled", "imagenet"):
            raise ValueError(f"head must be pooled or imagenet, got {head!r}")
        self.features = _convolutions()
        self.avgpool = nn.AdaptiveAvgPool2d(1 if head == "pooled" else 7)
        self.classifier = nn.Sequential()
        if head == "imagenet":
            self.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(4096, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
            )
        self.embedding = nn.Linear(512 if head == "pooled" else 4096, embedding_dim)
        if weights is None:
            self.apply(_initialise)
        else:
            # The embedding is this package's own; everything else has a counterpart in torchvision.
            pretrained.load_into(self, pretrained.read(weights, IMAGENET), own=("embedding.",))

    def forward(self, images: Tensor) -> Tensor:
        """Embed images `[B, 3, S, S]` as `[B, D]`."""
        self.check(images)
        return self.embedding(self.classifier(self.avgpool(self.features(images)).flatten(1)))


def _convolutions() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in LAYERS:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers)


def _initialise(module: nn.Module) -> None:
    """He initialisation: so many layers without normalisation do not train from torch's default."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)

"""Networks that the benchmarks of private training train: what they are made of keeps examples apart.

* VGG-9 and ResNet-32 as in Myelin's measurements, as far as those are known: the ResNet of He et al. 2016, section 4.2,
  with group norms in place of batch norms; the VGG with widths that have the published number of multiplications.
* ViT: a vision transformer of ``transformers``, made from its configuration, as wide as ViT-Tiny and half as deep.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CLASSES", "NETWORKS", "PIXELS", "resnet32", "vgg9", "vit"]

CLASSES, PIXELS = 10, 32


class Block(nn.Module):
    """Two convolutions and a shortcut, as ResNets of CIFAR have them, with group norms."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.first, self.second = nn.GroupNorm(8, outputs), nn.GroupNorm(8, outputs)
        plain = stride == 1 and inputs == outputs
        self.short = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of images, ``(B, C, H, W)``."""
        y = self.second(self.two(functional.relu(self.first(self.one(x)))))
        return functional.relu(y + self.short(x))


def vgg9(narrow: int = 1) -> nn.Module:
    """Six convolutions of 32 to 128 channels and three Linear layers: 0.88 M parameters, 39.2 M multiplications."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in (32, 32, 0, 64, 64, 0, 128, 128, 0):
        if width:
            layers += [nn.Conv2d(inputs, width // narrow, 3, padding=1), nn.ReLU()]
            inputs = width // narrow
        else:
            layers.append(nn.MaxPool2d(2))
    wide = 256 // narrow
    head = (nn.Linear(16 * inputs, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, CLASSES))
    return nn.Sequential(*layers, nn.Flatten(), *head)


def resnet32(narrow: int = 1) -> nn.Module:
    """Three stages of five blocks at 16, 32 and 64 channels: 0.47 M parameters, 69 M multiplications."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.GroupNorm(8, 16), nn.ReLU()]
    inputs = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for place in range(5 if narrow == 1 else 1):
            layers.append(Block(inputs, width, stride if place == 0 else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


class Scores(nn.Module):
    """What a classifier of ``transformers`` gives, without what it is wrapped in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Of images, ``(B, 3, H, W)``."""
        return self.network(pixel_values=pixels).logits


def vit(narrow: int = 1) -> nn.Module:
    """Six layers, 192 wide, three heads, 64 patches of 4×4 pixels: 2.7 M parameters, 183 M multiplications."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=PIXELS,
        patch_size=4,
        hidden_size=192 // narrow,
        intermediate_size=768 // narrow,
        num_hidden_layers=6 if narrow == 1 else 1,
        num_attention_heads=3,
        num_labels=CLASSES,
    )
    return Scores(ViTForImageClassification(config))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"vgg9": vgg9, "resnet32": resnet32, "vit": vit}

"""Networks that the benchmarks train and run, as published: VGG, ResNet, MobileNet, ViT, a block of a transformer.

Importable from tests too, which build them narrow. Nothing in this file knows of offloading.

* VGG: Simonyan and Zisserman, 2015, configurations A (11) and D (16), with the published head of three layers at 224
  pixels; for CIFAR-10 with batch normalisation and one linear layer behind the convolutions.
* ResNet-18 and ResNet-50: He et al., 2016, table 1, a bottleneck's stride at its 3×3 convolution. ResNet-32: the
  same paper, section 4.2, for CIFAR-10, with shortcuts of kind B (a 1×1 convolution where the shape changes), which
  keeps every shape change a layer.
* MobileNet: Howard et al., 2017, table 1, the one that Slalom ran.
* ViT-B/16: Dosovitskiy et al., 2021, table 1. The block is its, as wide as that of a language model.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = [
    "NETWORKS",
    "BasicBlock",
    "Bottleneck",
    "MobileNet",
    "ResNet",
    "TransformerBlock",
    "Vgg",
    "VisionTransformer",
    "folded",
    "mobilenet",
    "resnet18",
    "resnet32",
    "resnet50",
    "vgg11",
    "vgg16",
    "vit",
]

_VGG = {
    11: (1, 1, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
}
_VGG_WIDTHS = (64, 128, 256, 512, 512)


class Vgg(nn.Module):
    """VGG of 11 or 16 layers.

    Args:
        depth: 11 or 16.
        classes: Outputs.
        pixels: Height and width of an image; 32 or fewer get the small head, others the published one.
        batch_norm: After each convolution.
        narrow: Divides every width.

    Shapes: ``(B, 3, pixels, pixels)`` to ``(B, classes)``.
    """

    def __init__(
        self, depth: int, *, classes: int = 10, pixels: int = 32, batch_norm: bool = True, narrow: int = 1
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for count, width in zip(_VGG[depth], _VGG_WIDTHS, strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(channels, width // narrow, 3, padding=1, bias=not batch_norm))
                channels = width // narrow
                layers += [nn.BatchNorm2d(channels)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        inputs = channels * (pixels // 32) ** 2
        if pixels <= 32:
            self.classifier: nn.Module = nn.Linear(inputs, classes)
        else:
            hidden = 4096 // narrow
            self.classifier = nn.Sequential(
                nn.Linear(inputs, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(),
                nn.Linear(hidden, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(),
                nn.Linear(hidden, classes),
            )

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes."""
        return self.classifier(self.features(images).flatten(1))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class Bottleneck(nn.Module):
    """A 3×3 convolution between two 1×1 ones, a quarter as wide as the block's output, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.bn3(self.conv3(y)) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """A residual network.

    Args:
        blocks: How many in each stage; the image halves and the width doubles at each stage but the first.
        width: Channels of the first stage, of a bottleneck's 3×3 convolution.
        classes: Outputs.
        stem: ``"cifar"`` for a 3×3 convolution, ``"imagenet"`` for a 7×7 one and pooling.
        bottlenecks: In place of basic blocks.

    Shapes: ``(B, 3, H, W)`` to ``(B, classes)``.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        *,
        width: int,
        classes: int = 10,
        stem: str = "cifar",
        bottlenecks: bool = False,
    ) -> None:
        super().__init__()
        kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
        first = [nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.stem = nn.Sequential(*first, *([] if stem == "cifar" else [nn.MaxPool2d(3, 2, 1)]))
        stages: list[nn.Module] = []
        channels = width
        kind, wider = (Bottleneck, 4) if bottlenecks else (BasicBlock, 1)
        for stage, count in enumerate(blocks):
            for block in range(count):
                stages.append(kind(channels, wider * width << stage, 2 if stage > 0 and block == 0 else 1))
                channels = wider * width << stage
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes."""
        return self.classifier(self.stages(self.stem(images)).mean((2, 3)))


class MobileNet(nn.Module):
    """MobileNet of 2017: a convolution, then thirteen pairs of a depthwise and a 1×1 one.

    Args:
        classes: Outputs.
        narrow: Divides every width.

    Shapes: ``(B, 3, H, W)`` to ``(B, classes)``.
    """

    def __init__(self, *, classes: int = 1000, narrow: int = 1) -> None:
        super().__init__()
        channels = 32 // narrow
        layers = [nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        for width, stride in _MOBILENET:
            layers += _separable(channels, width // narrow, stride)
            channels = width // narrow
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes."""
        return self.classifier(self.features(images).mean((2, 3)))


_MOBILENET = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


def _separable(inputs: int, outputs: int, stride: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
    yield nn.BatchNorm2d(inputs)
    yield nn.ReLU(inplace=True)
    yield nn.Conv2d(inputs, outputs, 1, bias=False)
    yield nn.BatchNorm2d(outputs)
    yield nn.ReLU(inplace=True)


class TransformerBlock(nn.Module):
    """Attention and two linear layers four times as wide between, each behind its normalisation.

    Args:
        width: Of a token.
        heads: Of the attention.
        causal: Whether a token sees only those before it.

    Shapes: ``(B, T, width)`` to the same.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.wider = nn.Linear(width, 4 * width)
        self.narrower = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """The block's output."""
        three = self.attention(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = three.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        tokens = tokens + self.projection(seen.transpose(1, 2).flatten(2))
        return tokens + self.narrower(functional.gelu(self.wider(self.norm2(tokens))))


class VisionTransformer(nn.Module):
    """A transformer over an image's patches.

    Args:
        width: Of a token.
        heads: Of each block.
        depth: Blocks.
        classes: Outputs.
        pixels: Height and width of an image, a multiple of the patch's.
        patch: Height and width of a patch.

    Shapes: ``(B, 3, pixels, pixels)`` to ``(B, classes)``.
    """

    def __init__(
        self, *, width: int, heads: int, depth: int, classes: int = 1000, pixels: int = 224, patch: int = 16
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (pixels // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(images), -1, -1), patches], 1) + self.places
        return self.classifier(self.norm(self.blocks(tokens))[:, 0])


def folded(model: nn.Module) -> nn.Module:
    """Folds each batch normalisation into the convolution before it, in place; the model is one for inference then."""
    model.eval()
    for parent in list(model.modules()):
        before: tuple[str, nn.Conv2d] | None = None
        for name, child in list(parent.named_children()):
            if before is not None and isinstance(child, nn.BatchNorm2d):
                setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(parent, name, nn.Identity())
            before = (name, child) if isinstance(child, nn.Conv2d) else None
    return model


def vgg11(*, classes: int = 10, pixels: int = 32, narrow: int = 1) -> Vgg:
    """VGG-11, with batch normalisation for small images."""
    return Vgg(11, classes=classes, pixels=pixels, batch_norm=pixels <= 32, narrow=narrow)


def vgg16(*, classes: int = 1000, pixels: int = 224, narrow: int = 1) -> Vgg:
    """VGG-16, with batch normalisation for small images."""
    return Vgg(16, classes=classes, pixels=pixels, batch_norm=pixels <= 32, narrow=narrow)


def resnet18(*, classes: int = 10, stem: str = "cifar", narrow: int = 1) -> ResNet:
    """ResNet-18."""
    return ResNet((2, 2, 2, 2), width=64 // narrow, classes=classes, stem=stem)


def resnet32(*, classes: int = 10, narrow: int = 1) -> ResNet:
    """ResNet-32 for CIFAR-10: 31 convolutions in three stages of five blocks, and the classifier."""
    return ResNet((5, 5, 5), width=16 // narrow, classes=classes)


def resnet50(*, classes: int = 1000, narrow: int = 1) -> ResNet:
    """ResNet-50, for images of 224 pixels."""
    return ResNet((3, 4, 6, 3), width=64 // narrow, classes=classes, stem="imagenet", bottlenecks=True)


def mobilenet(*, classes: int = 1000, narrow: int = 1) -> MobileNet:
    """MobileNet, for images of 224 pixels."""
    return MobileNet(classes=classes, narrow=narrow)


def vit(*, classes: int = 1000, pixels: int = 224, narrow: int = 1) -> VisionTransformer:
    """ViT-B/16; a narrow one is shallow too."""
    return VisionTransformer(width=768 // narrow, heads=12, depth=12 // narrow or 1, classes=classes, pixels=pixels)


NETWORKS = {"vgg11": vgg11, "vgg16": vgg16, "resnet18": resnet18, "resnet32": resnet32}
"""By the names that the benchmarks print."""

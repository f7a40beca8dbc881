"""Networks that the benchmarks train and run: VGG and ResNet as published, for CIFAR-sized and ImageNet-sized images.

Importable from tests too, which build them narrow. Nothing in this file knows of offloading.

* VGG: Simonyan and Zisserman, 2015, configurations A (11) and D (16), with the published head of three layers at 224
  pixels; for CIFAR-10 with batch normalisation and one linear layer behind the convolutions.
* ResNet-18: He et al., 2016, table 1. ResNet-32: the same paper, section 4.2, for CIFAR-10, with shortcuts of kind B
  (a 1×1 convolution where the shape changes), which keeps every shape change a layer.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["NETWORKS", "BasicBlock", "ResNet", "Vgg", "resnet18", "resnet32", "vgg11", "vgg16"]

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


class ResNet(nn.Module):
    """A residual network of basic blocks.

    Args:
        blocks: How many in each stage; the image halves and the width doubles at each stage but the first.
        width: Channels of the first stage.
        classes: Outputs.
        stem: ``"cifar"`` for a 3×3 convolution, ``"imagenet"`` for a 7×7 one and pooling.

    Shapes: ``(B, 3, H, W)`` to ``(B, classes)``.
    """

    def __init__(self, blocks: tuple[int, ...], *, width: int, classes: int = 10, stem: str = "cifar") -> None:
        super().__init__()
        kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
        first = [nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.stem = nn.Sequential(*first, *([] if stem == "cifar" else [nn.MaxPool2d(3, 2, 1)]))
        stages: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                stages.append(BasicBlock(channels, width << stage, 2 if stage > 0 and block == 0 else 1))
                channels = width << stage
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes."""
        return self.classifier(self.stages(self.stem(images)).mean((2, 3)))


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


NETWORKS = {"vgg11": vgg11, "vgg16": vgg16, "resnet18": resnet18, "resnet32": resnet32}
"""By the names that the benchmarks print."""

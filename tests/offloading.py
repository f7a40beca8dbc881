"""Multipliers in memory, every call on record; and small models of every kind, with random weights.

:class:`Recorder` is the oracle: float64 products in place of workers. :class:`InPlace` multiplies with the very
kernels of the model itself, so that whatever a conversion changes shows in the last bit.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from benchmarks import networks
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from cloister.offload import Layer
from cloister.offload._router import plain
from cloister.ring import Conv2d, MatMul, Product, Role


@dataclass
class Recorder:
    """Multiplies as ``Product`` says, and remembers it.

    Attributes:
        made: Each product's layer and geometry, in order.
        passes: For each root forward that ended, whether gradients were recorded.
        operands: Both operands of each forward product.
    """

    made: list[tuple[Layer, Product]] = field(default_factory=list)
    passes: list[bool] = field(default_factory=list)
    operands: list[tuple[Layer, Tensor, Tensor]] = field(default_factory=list)
    _here: threading.local = field(default_factory=threading.local)

    @property
    def open(self) -> int:
        """Root forwards that run on this thread."""
        return getattr(self._here, "open", 0)

    def enter(self) -> None:
        self._here.open = self.open + 1

    def leave(self, *, training: bool) -> None:
        self._here.open = self.open - 1
        self.passes.append(training)

    def multiply(self, layer: Layer, x: Tensor, w: Tensor) -> Tensor:
        assert self.open == 1, "no root forward is open, or two are"
        for operand in (x, w):
            assert (operand.dtype, operand.device.type) == (torch.float32, "cpu")
        self.operands.append((layer, x, w))
        return self.product(layer, x, w)

    def product(self, layer: Layer, x: Tensor, w: Tensor) -> Tensor:
        return _Multiplied.apply(x, w, layer, self)

    def multiplications(self, role: Role | None = None) -> int:
        return sum(product.multiplications for _, product in self.made if role in (None, product.role))

    @property
    def weights(self) -> list[Tensor]:
        """The second operand of each forward product."""
        return [w for _, _, w in self.operands]

    @property
    def names(self) -> list[str]:
        """Layers in the order of their first product."""
        return list(dict.fromkeys(layer.name for layer, _, _ in self.operands))

    def of(self, name: str) -> list[Product]:
        return [product for layer, product in self.made if layer.name == name]


class InPlace(Recorder):
    """Multiplies with torch's own kernel; backward is torch's too."""

    def product(self, layer: Layer, x: Tensor, w: Tensor) -> Tensor:
        return plain(layer.operator, x, w)


class Doubling(InPlace):
    """Answers twice the product for one layer, as a worker might.

    Args:
        name: The layer's.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def product(self, layer: Layer, x: Tensor, w: Tensor) -> Tensor:
        y = super().product(layer, x, w)
        return 2 * y if layer.name == self.name else y


class BiasAfter(TorchFunctionMode):
    """A model as it stands, but for its association: a layer makes one product of all rows, and then adds the bias.

    Torch's kernels may begin a sum with the bias, or go image by image, and the last bit moves: so whoever compares to
    the last bit compares with this.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _BIAS_AFTER.get(func, func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = F.linear(input.reshape(-1, input.shape[-1]), weight)
    y = y if bias is None else y + bias
    return y.reshape(*input.shape[:-1], -1)


def _convolved(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    y = F.conv2d(input, weight, None, *args, **kwargs)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


_BIAS_AFTER = {F.linear: _linear, F.conv2d: _convolved, torch.addmm: lambda bias, a, b: a @ b + bias}


def exact(product: Product, left: Tensor, right: Tensor) -> Tensor:
    """The product in float64, rounded once; unseen by any mode that counts what torch multiplies."""
    with _disable_current_modes(), torch.no_grad():
        left, right = left.double(), right.double()
        if isinstance(product.operator, MatMul):
            made = {
                "forward": lambda: left @ right.mT,
                "input_gradient": lambda: left @ right,
                "weight_gradient": lambda: right.mT @ left,
            }[product.role]()
        else:
            made = _conv2d(product, product.operator, left, right)
        assert tuple(made.shape) == product.result
        return made.float()


def _conv2d(product: Product, operator: Conv2d, left: Tensor, right: Tensor) -> Tensor:
    geometry: dict[str, Any] = {
        "stride": operator.stride,
        "padding": operator.padding,
        "dilation": operator.dilation,
        "groups": operator.groups,
    }
    if product.role == "forward":
        return F.conv2d(left, right, **geometry)
    if product.role == "input_gradient":
        return conv2d_input(list(product.x), right, left, **geometry)
    return conv2d_weight(left, list(product.w), right, **geometry)


class _Multiplied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, layer: Layer, recorder: Recorder) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.layer, ctx.recorder = layer, recorder
        return _made(ctx, "forward", x, w, x, w)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, w = ctx.saved_tensors
        dx = _made(ctx, "input_gradient", x, w, dy, w) if ctx.needs_input_grad[0] else None
        dw = _made(ctx, "weight_gradient", x, w, x, dy) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


def _made(ctx: Any, role: Role, x: Tensor, w: Tensor, left: Tensor, right: Tensor) -> Tensor:
    product = Product(ctx.layer.operator, role, x=tuple(x.shape), w=tuple(w.shape))
    ctx.recorder.made.append((ctx.layer, product))
    return exact(product, left, right)


class Example(NamedTuple):
    """A small model with random weights, and a batch for it.

    Attributes:
        model: With dropout where the published one has it.
        batch: Images, or tokens.
        products: Forward products of one batch, counted by hand.
    """

    model: nn.Module
    batch: Tensor
    products: int


def outputs(model: nn.Module, batch: Tensor) -> Tensor:
    """A model's scores, whatever it wraps them in."""
    answer = model(batch)
    return answer if isinstance(answer, Tensor) else answer.logits


def step(model: nn.Module, batch: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    """One forward and backward: the scores, every gradient and every buffer, by name; the model keeps no gradient."""
    torch.manual_seed(seed)
    batch = batch.clone().requires_grad_(batch.is_floating_point())
    scores = outputs(model, batch)
    (scores * torch.randn(scores.shape, generator=torch.Generator().manual_seed(seed))).sum().backward()
    found = {"scores": scores.detach().clone(), **{name: each.clone() for name, each in model.named_buffers()}}
    if batch.grad is not None:
        found["gradient of the batch"] = batch.grad
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"], parameter.grad = parameter.grad, None
    return found


def twin(model: nn.Module) -> nn.Module:
    """A copy with the same numbers in it."""
    return copy.deepcopy(model)


def near(one: Mapping[str, Tensor], other: Mapping[str, Tensor], *, part: float = 2e-5) -> bool:
    """Whether all differ by rounding only, measured by the largest value of their kind: many gradients are zeros."""
    assert one.keys() == other.keys()
    for kind in ("gradient", ""):
        names = [name for name in one if name.startswith("gradient") == (kind == "gradient")]
        scale = max((one[name].abs().max().item() for name in names if one[name].numel()), default=0.0)
        if not all(torch.allclose(one[name], other[name], rtol=0, atol=part * scale) for name in names):
            return False
    return True


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether all are equal to the last bit."""
    assert one.keys() == other.keys()
    return all(torch.equal(each, other[name]) for name, each in one.items())


def _images(pixels: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, pixels, pixels)


def _resnet() -> Example:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    # the stem, two bottlenecks of three convolutions, a shortcut where the shape changes, the classifier
    return Example(ResNetForImageClassification(config), _images(32), 1 + 2 * 3 + 1 + 1)


def _mobilenet() -> Example:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.25, image_size=64, num_labels=3)
    # three convolutions of the stem, 16 inverted residuals of three each, the last convolution, the classifier
    return Example(MobileNetV2ForImageClassification(config), _images(64), 3 + 16 * 3 + 1 + 1)


_TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def _vit(attention: str) -> Example:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**_TRANSFORMER, image_size=16, patch_size=4, num_labels=3, attn_implementation=attention)
    # the patches, two blocks of query, key, value, scores, context, output and two of the perceptron, the classifier
    return Example(ViTForImageClassification(config), _images(16), 1 + 2 * 8 + 1)


def _bert(attention: str) -> Example:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(**_TRANSFORMER, vocab_size=50, max_position_embeddings=16, attn_implementation=attention)
    # two blocks as above, the head's transform, and the decoder, whose weight is the embedding's
    return Example(BertForMaskedLM(config), torch.randint(0, 50, (2, 9)), 2 * 8 + 2)


def _gpt2(attention: str) -> Example:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=50,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    # two blocks of query-key-value, scores, context, output and two of the perceptron, and the tied decoder
    return Example(GPT2LMHeadModel(config), torch.randint(0, 50, (2, 9)), 2 * 6 + 1)


EXAMPLES: dict[str, Callable[[], Example]] = {
    "vgg11": lambda: Example(networks.vgg11(narrow=8), _images(32), 8 + 1),
    "vgg16": lambda: Example(networks.vgg16(classes=10, pixels=32, narrow=8), _images(32), 13 + 1),
    "vgg11-224": lambda: Example(networks.vgg11(pixels=64, narrow=16), _images(64, 1), 8 + 3),
    "resnet18": lambda: Example(networks.resnet18(narrow=8), _images(16), 1 + 8 * 2 + 3 + 1),
    "resnet32": lambda: Example(networks.resnet32(narrow=2), _images(16), 1 + 15 * 2 + 2 + 1),
    "hf-resnet": _resnet,
    "hf-mobilenet": _mobilenet,
    "hf-vit": lambda: _vit("sdpa"),
    "hf-vit-eager": lambda: _vit("eager"),
    "hf-bert": lambda: _bert("sdpa"),
    "hf-bert-eager": lambda: _bert("eager"),
    "hf-gpt2": lambda: _gpt2("sdpa"),
    "hf-gpt2-eager": lambda: _gpt2("eager"),
}
"""By name; ``hf`` is Hugging Face's own code, built from a configuration."""

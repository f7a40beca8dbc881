"""Models that treat each example by itself: each must get a certificate. Tiny and random."""

from collections.abc import Callable
from typing import Any

import torch
from benchmarks import networks
from torch import Tensor, nn
from torch.nn import functional

HONEST: "dict[str, Callable[[], Triple]]" = {}
SLOW: "dict[str, Callable[[], Triple]]" = {}

Triple = tuple[nn.Module, Callable[[nn.Module, Any], Tensor], Any]


def honest(build: Callable[[], Triple]) -> Callable[[], Triple]:
    HONEST[build.__name__] = build
    return build


def slow(build: Callable[[], Triple]) -> Callable[[], Triple]:
    SLOW[build.__name__] = build
    return build


def classes(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of scores."""
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def scored(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of a ``transformers`` classifier."""
    given = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return functional.cross_entropy(model(**given).logits, batch["labels"], reduction="none")


def next_tokens(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Each text's mean loss over its tokens."""
    scores = model(**batch).logits[:, :-1]
    target = batch["input_ids"][:, 1:]
    return functional.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(1)


def images(model: nn.Module, pixels: int = 32, loss: Callable[..., Tensor] = classes) -> Triple:
    return model, loss, (torch.randn(3, 3, pixels, pixels), torch.tensor([1, 2, 0]))


def vectors(model: nn.Module) -> Triple:
    return model, classes, (torch.randn(4, 8), torch.tensor([0, 1, 2, 1]))


def texts() -> dict[str, Tensor]:
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1, 9:] = 0
    return {"input_ids": torch.randint(2, 60, (3, 12)), "attention_mask": mask, "labels": torch.tensor([1, 0, 1])}


def tokens(model: nn.Module) -> Triple:
    return model, classes, (torch.randint(0, 30, (4, 10)), torch.tensor([0, 1, 2, 1]))


def grouped(model: nn.Module) -> nn.Module:
    """GroupNorm in the place of BatchNorm."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(2 if child.num_features % 2 == 0 else 1, child.num_features))
    return model


# ---- networks of the benchmarks, norms swapped ----------------------------------------------------------------


@honest
def vgg11() -> Triple:
    return images(grouped(networks.vgg11(narrow=16)))


@slow
def vgg16_large_images() -> Triple:
    return images(networks.vgg16(pixels=64, classes=4, narrow=32), 64)


@slow
def resnet18() -> Triple:
    return images(grouped(networks.resnet18(narrow=16)))


@slow
def resnet32() -> Triple:
    return images(grouped(networks.resnet32(narrow=4)))


@slow
def resnet50() -> Triple:
    return images(grouped(networks.resnet50(narrow=16, classes=4)), 64)


@slow
def mobilenet() -> Triple:
    return images(grouped(networks.mobilenet(narrow=8, classes=4)))


@slow
def vision_transformer() -> Triple:
    return images(networks.vit(classes=4, pixels=32, narrow=16))


@slow
def frozen_batch_norm() -> Triple:
    model = networks.vgg11(narrow=16).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return images(model)


# ---- single ideas ----------------------------------------------------------------------------------------------


@honest
def perceptron_with_dropout() -> Triple:
    layers = [nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 4)]
    return vectors(nn.Sequential(*layers))


@honest
def seldom_used_activations() -> Triple:
    kinds = (
        nn.SiLU,
        nn.Mish,
        nn.ELU,
        nn.SELU,
        nn.Softplus,
        nn.Hardswish,
        nn.LeakyReLU,
        nn.Tanh,
        nn.Sigmoid,
        nn.LogSigmoid,
    )
    kinds += (nn.Softsign, nn.CELU, nn.ReLU6, nn.Hardtanh, nn.Softshrink, nn.Tanhshrink, nn.Hardsigmoid)
    return vectors(nn.Sequential(*(layer for kind in kinds for layer in (nn.Linear(8, 8), kind())), nn.Linear(8, 4)))


class Standardised(nn.Conv2d):
    """Weights of mean 0 and variance 1."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


@honest
def weight_standardisation() -> Triple:
    norm = nn.GroupNorm(2, 8)
    layers = [
        Standardised(3, 8, 3),
        norm,
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ]
    return images(nn.Sequential(*layers), 16)


@honest
def weight_normalisation() -> Triple:
    return vectors(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 4)))


class Residual(nn.Module):
    """Strided, dilated, depthwise and transposed convolutions, pools, padding and resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False)
        self.back = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.norm = nn.InstanceNorm2d(8, affine=True)
        self.drop = nn.Dropout2d(0.2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu_(self.norm(self.wide(functional.pad(x, (1, 1, 1, 1), mode="reflect"))))
        y = self.drop(y + self.deep(y))
        y = functional.interpolate(self.back(y), scale_factor=0.5, mode="bilinear")
        y = functional.max_pool2d(y, 2) + functional.avg_pool2d(y, 2)
        return self.head(torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1))


@honest
def convolutions() -> Triple:
    return images(Residual(), 16)


class Recurrent(nn.Module):
    """Embedding, two layers of LSTM or GRU, the last state."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8, padding_idx=0)
        self.memory = kind(8, 6, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(self.table(x))[0][:, -1])


@honest
def long_short_term_memory() -> Triple:
    return tokens(Recurrent(nn.LSTM))


@slow
def gated_recurrence() -> Triple:
    return tokens(Recurrent(nn.GRU))


class Attending(nn.Module):
    """``nn.TransformerEncoder`` with a padding mask and a causal one."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.first = batch_first
        self.table = nn.Embedding(30, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table(x)
        rows = rows if self.first else rows.transpose(0, 1)
        causal = torch.triu(torch.ones(10, 10, dtype=torch.bool), 1)
        seen = self.encoder(rows, mask=causal, is_causal=True, src_key_padding_mask=x == 29)
        return self.head(seen.mean(1 if self.first else 0))


@honest
def transformer_encoder() -> Triple:
    return tokens(Attending(batch_first=True))


@slow
def transformer_encoder_time_first() -> Triple:
    return tokens(Attending(batch_first=False))


class Pointing(nn.Module):
    """The token that stands last, by each text's own length; a mask by where; one-hot; gather."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table(x)
        last = (x != 29).sum(1).clamp(min=1) - 1
        one = rows[torch.arange(x.shape[0]), last]
        two = rows.gather(1, last[:, None, None].expand(-1, 1, 8)).squeeze(1)
        weights = functional.one_hot(last, 10).to(rows.dtype)
        three = torch.einsum("bt,btc->bc", weights, rows)
        best = rows.topk(3, dim=1).values.sum(1) + rows.sort(1).values[:, 0] + rows.cumsum(1)[:, -1]
        kept = torch.where(one > 0, one, torch.zeros_like(one)).masked_fill(two > 2, 0.0)
        kept[:, 0] = three[:, 0]
        return self.head(kept + two + three + best)


@honest
def indexing() -> Triple:
    return tokens(Pointing())


class StochasticDepth(nn.Module):
    """A branch that each example keeps by its own coin, and augmentation multiplicity by repeating rows."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        seen = x.repeat_interleave(2, 0)
        seen = seen + 0.1 * torch.randn_like(seen)
        coin = torch.rand(seen.shape[0], 1).add(0.8).floor()
        return self.head(seen + coin / 0.8 * self.branch(seen)).view(x.shape[0], 2, 4).mean(1)


@honest
def stochastic_depth_and_multiplicity() -> Triple:
    return vectors(StochasticDepth())


class Tied(nn.Module):
    """A language model with tied embeddings and rows folded into one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.inner = nn.Linear(8, 8)
        self.out = nn.Linear(8, 30, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        flat = self.table(x).view(-1, 8)
        return self.out(torch.tanh(self.inner(flat))).view(x.shape[0], x.shape[1], -1)


@honest
def tied_weights() -> Triple:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        scores = model(batch)[:, :-1]
        return functional.cross_entropy(scores.transpose(1, 2), batch[:, 1:], reduction="none").mean(1)

    return Tied(), loss, torch.randint(0, 30, (4, 9))


@honest
def losses() -> Triple:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        y, target = model(batch["x"]), batch["target"]
        each = functional.mse_loss(y, target, reduction="none") + functional.smooth_l1_loss(y, target, reduction="none")
        each = each + functional.binary_cross_entropy_with_logits(y, target.sigmoid(), reduction="none")
        each = (
            each + functional.huber_loss(y, target, reduction="none") + functional.l1_loss(y, target, reduction="none")
        )
        return each.mean(1) + (1 - functional.cosine_similarity(y, target, dim=1)) + (y - target).norm(dim=1)

    return nn.Linear(8, 4), loss, {"x": torch.randn(4, 8), "target": torch.randn(4, 4)}


@honest
def probabilities() -> Triple:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.binary_cross_entropy(model(batch[0]), batch[1], reduction="none").mean(1)

    return nn.Sequential(nn.Linear(8, 4), nn.Sigmoid()), loss, (torch.randn(4, 8), torch.rand(4, 4))


class Losses(nn.Module):
    """A loss that is a module, with smoothing and weights a class."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.tensor([1.0, 2.0, 1.0, 0.5])
        self.entropy = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1, reduction="none")

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.entropy(model(batch[0]), batch[1])


@honest
def loss_module() -> Triple:
    return nn.Linear(8, 4), Losses(), (torch.randn(4, 8), torch.tensor([0, 1, 2, 1]))


@honest
def gradient_stopped() -> Triple:
    class Stopped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = self.layer(x).abs().amax(1, keepdim=True) + 1
            return self.layer(x) / scale * self.layer(x).detach().tanh()

    return vectors(Stopped())


# ---- transformers ---------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@slow
def bert() -> Triple:
    import transformers as t

    config = t.BertConfig(vocab_size=64, max_position_embeddings=32, num_labels=3, **SMALL)
    return t.BertForSequenceClassification(config).train(), scored, texts()


@slow
def roberta() -> Triple:
    import transformers as t

    config = t.RobertaConfig(vocab_size=64, max_position_embeddings=32, num_labels=3, pad_token_id=1, **SMALL)
    return t.RobertaForSequenceClassification(config).train(), scored, texts()


@slow
def distilbert() -> Triple:
    import transformers as t

    config = t.DistilBertConfig(vocab_size=64, max_position_embeddings=32, dim=16, n_layers=2, n_heads=2, hidden_dim=24)
    return t.DistilBertForSequenceClassification(config).train(), scored, texts()


def gpt2_config() -> Any:
    import transformers as t

    return t.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2, pad_token_id=0, use_cache=False)


def unlabelled() -> dict[str, Tensor]:
    return {name: tensor for name, tensor in texts().items() if name != "labels"}


@slow
def gpt2() -> Triple:
    import transformers as t

    return t.GPT2LMHeadModel(gpt2_config()).train(), next_tokens, unlabelled()


@slow
def gpt2_classifier() -> Triple:
    import transformers as t

    return t.GPT2ForSequenceClassification(gpt2_config()).train(), scored, texts()


@slow
def llama() -> Triple:
    import transformers as t

    config = t.LlamaConfig(vocab_size=64, max_position_embeddings=32, num_key_value_heads=1, use_cache=False, **SMALL)
    return t.LlamaForCausalLM(config).train(), next_tokens, unlabelled()


@slow
def vit_of_transformers() -> Triple:
    import transformers as t

    config = t.ViTConfig(image_size=32, patch_size=16, num_labels=4, **SMALL)
    model = t.ViTForImageClassification(config).train()
    return images(
        model, 32, lambda model, batch: functional.cross_entropy(model(batch[0]).logits, batch[1], reduction="none")
    )


@slow
def resnet_of_transformers() -> Triple:
    import transformers as t

    config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    model = grouped(t.ResNetForImageClassification(config)).train()
    return images(
        model, 32, lambda model, batch: functional.cross_entropy(model(batch[0]).logits, batch[1], reduction="none")
    )


@slow
def mobilenet_of_transformers() -> Triple:
    import transformers as t

    config = t.MobileNetV2Config(image_size=32, depth_multiplier=0.25, num_labels=4)
    model = grouped(t.MobileNetV2ForImageClassification(config)).train()
    return images(
        model, 32, lambda model, batch: functional.cross_entropy(model(batch[0]).logits, batch[1], reduction="none")
    )


@slow
def convnext() -> Triple:
    import transformers as t

    config = t.ConvNextConfig(
        image_size=32, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], drop_path_rate=0.1, num_labels=4
    )
    model = t.ConvNextForImageClassification(config).train()
    return images(
        model, 32, lambda model, batch: functional.cross_entropy(model(batch[0]).logits, batch[1], reduction="none")
    )


@slow
def low_rank_adapters() -> Triple:
    import peft

    model, loss, batch = bert()
    config = peft.LoraConfig(
        r=2, lora_alpha=4, lora_dropout=0.1, target_modules=["query", "value"], task_type="SEQ_CLS"
    )
    return peft.get_peft_model(model, config).train(), loss, batch

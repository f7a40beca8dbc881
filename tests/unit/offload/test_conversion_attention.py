"""Attention: two products on workers, softmax between them in the enclave, and the result is torch's."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.offloading import InPlace, Recorder, near, step, twin
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cloister.offload import convert

pytestmark = pytest.mark.usefixtures("one_thread")


class Attends(nn.Module):
    def __init__(self, **named) -> None:
        super().__init__()
        self.named = named

    def forward(self, query, key, value, mask=None):
        return F.scaled_dot_product_attention(query, key, value, mask, **self.named)


def tensors(*shapes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def agrees(shapes, mask=None, **named):
    """The products of one call, after its result and gradients were compared with torch's own."""
    operands = tensors(*shapes)
    model = Attends(**named)

    def ran():
        torch.manual_seed(0)
        with sdpa_kernel(SDPBackend.MATH):
            y = model(*operands, mask)
        inputs = operands if mask is None or not mask.requires_grad else [*operands, mask]
        weights = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
        return y, *torch.autograd.grad(y, inputs, weights)

    expected = ran()
    recorder = Recorder()
    conversion = convert(model, recorder)
    got = ran()
    for mine, torchs in zip(got, expected, strict=True):
        assert mine.shape == torchs.shape
        assert torch.allclose(mine, torchs, rtol=1e-4, atol=1e-5)
        assert not mine.isnan().any()
    assert conversion.kept == ()
    assert [layer.name for layer, _, _ in recorder.operands] == ["(root):scores", "(root):context"]
    return [(x.shape, w.shape) for _, x, w in recorder.operands]


SHAPES = [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6)]
BLIND = torch.ones(5, 7, dtype=torch.bool)
BLIND[2] = False

CALLS = {
    "plain": (SHAPES, {}),
    "no heads": ([(2, 5, 8), (2, 7, 8), (2, 7, 6)], {}),
    "no batch": ([(5, 8), (7, 8), (7, 6)], {}),
    "causal": (SHAPES, {"is_causal": True}),
    "causal, more rows than keys": ([(1, 2, 7, 8), (1, 2, 5, 8), (1, 2, 5, 8)], {"is_causal": True}),
    "scale": (SHAPES, {"scale": 0.3}),
    "mask of booleans": (SHAPES, {"mask": torch.arange(35).reshape(5, 7) % 3 > 0}),
    "mask of numbers": (SHAPES, {"mask": torch.linspace(-2, 2, 35).reshape(1, 1, 5, 7)}),
    "mask that is learnt": (SHAPES, {"mask": torch.linspace(-2, 2, 35).reshape(5, 7).requires_grad_()}),
    "mask of -inf": (SHAPES, {"mask": torch.zeros(5, 7).masked_fill(torch.ones(5, 7).triu(1) > 0, -math.inf)}),
    "a row that sees nothing": (SHAPES, {"mask": BLIND}),
    "dropout": (SHAPES, {"dropout_p": 0.4}),
    "dropout of all": (SHAPES, {"dropout_p": 1.0}),
    "grouped queries": ([(2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)], {"enable_gqa": True}),
    "grouped queries, causal": ([(2, 6, 5, 8), (2, 3, 5, 8), (2, 3, 5, 6)], {"enable_gqa": True, "is_causal": True}),
    "grouped queries, dropout": ([(2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)], {"enable_gqa": True, "dropout_p": 0.4}),
    "grouped queries, mask": ([(2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)], {"enable_gqa": True, "mask": BLIND}),
}


@pytest.mark.parametrize(("shapes", "named"), CALLS.values(), ids=CALLS)
def test_scaled_dot_product_attention(shapes, named):
    scores, context = agrees(shapes, **named)
    query, key, value = ([size for size in shape[:-2] if size > 1] + list(shape[-2:]) for shape in shapes)
    groups = query[-3] // key[-3] if named.get("enable_gqa") else 1
    rows = groups * query[-2]
    assert scores == ((*key[:-2], rows, query[-1]), tuple(key))
    assert context == ((*key[:-2], rows, key[-2]), (*value[:-2], value[-1], value[-2]))


def test_keys_that_all_queries_share_are_sent_once():
    scores, context = agrees([(2, 4, 5, 8), (2, 1, 7, 8), (2, 1, 7, 6)])
    assert scores == ((2, 20, 8), (2, 7, 8))
    assert context == ((2, 20, 7), (2, 6, 7))


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (SHAPES, {"dropout_p": 1.5}),
        ([(2, 4, 5, 8), (2, 4, 7, 9), (2, 4, 7, 6)], {}),
        ([(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 6, 6)], {}),
        ([(2, 5, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)], {"enable_gqa": True}),
        ([(8,), (7, 8), (7, 6)], {}),
    ],
)
def test_what_torch_refuses_it_refuses_in_its_own_words(shapes, named):
    operands = [each.detach() for each in tensors(*shapes)]
    with pytest.raises(RuntimeError) as expected:
        Attends(**named)(*operands)
    recorder = InPlace()
    model = Attends(**named)
    convert(model, recorder)
    with pytest.raises(RuntimeError) as caught:
        model(*operands)
    assert str(caught.value) == str(expected.value)
    assert recorder.operands == []


def test_one_product_may_stay_and_the_other_leave():
    operands = tensors(*SHAPES)
    expected = Attends()(*operands)
    for skip, left in (("*:scores", "(root):context"), ("*:context", "(root):scores")):
        model = Attends()
        recorder = InPlace()
        conversion = convert(model, recorder, skip=[skip])
        assert torch.allclose(model(*operands), expected, atol=1e-6)
        assert recorder.names == [left]
        assert [each.reason for each in conversion.kept] == [f"left out by skip={skip!r}"]
        assert conversion.kept[0].multiplications == 2 * 4 * 5 * 7 * (8 if "scores" in skip else 6)


def test_torchs_fused_kernel_runs_where_both_stay():
    operands = tensors(*SHAPES)
    model = Attends(is_causal=True)
    expected = model(*operands)
    recorder = InPlace()
    conversion = convert(model, recorder, skip=["(root)"])
    assert torch.equal(model(*operands), expected)
    assert recorder.operands == []
    assert [each.name for each in conversion.kept] == ["(root):scores", "(root):context"]


class Sees(nn.Module):
    """Self-attention, and then attention to something else, whose weights are looked at."""

    def __init__(self, **named) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(8, 2, batch_first=True, **named)
        self.other = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True, **named)

    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[0, -1] = True
        y, _ = self.own(x, x, x, need_weights=False, attn_mask=mask, key_padding_mask=padding)
        z, weights = self.other(y, x[..., :6], x[..., 3:], average_attn_weights=False)
        return torch.cat((y, z, weights.mean(1)[..., :1]), -1)


OPTIONS = [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"dropout": 0.3}]


@pytest.mark.parametrize("named", OPTIONS, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_multi_head_attention(named, training):
    torch.manual_seed(2)
    model = Sees(**named).train(training)
    plain = twin(model)
    recorder = Recorder()
    conversion = convert(model, recorder)
    batch = torch.randn(2, 5, 8)
    assert near(step(plain, batch), step(model, batch))
    assert conversion.kept == ()
    assert recorder.names == [
        "own:in_proj_weight",
        "own:scores",
        "own:context",
        "own.out_proj",
        "other:q_proj_weight",
        "other:k_proj_weight",
        "other:v_proj_weight",
        "other:scores",
        "other:context",
        "other.out_proj",
    ]


@pytest.mark.parametrize("need_weights", [True, False])
def test_the_fast_path_of_inference_is_never_taken(need_weights):
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    plain = twin(model)
    recorder = Recorder()
    conversion = convert(model, recorder)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        (y, weights), (expected, wanted) = (each(x, x, x, need_weights=need_weights) for each in (model, plain))
    assert torch.allclose(y, expected, atol=1e-6)
    assert (weights is None) == (wanted is None) == (not need_weights)
    assert weights is None or torch.allclose(weights, wanted, atol=1e-6)
    assert recorder.names == ["(root):in_proj_weight", "(root):scores", "(root):context", "out_proj"]
    assert conversion.kept == ()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("first", [True, False], ids=["norm first", "norm last"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_torchs_encoder_layers_are_reached_in_every_mode(mode, first):
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not first).eval()
    plain = twin(model)
    recorder = Recorder()
    conversion = convert(model, recorder)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    x = torch.randn(2, 5, 8)
    with mode():
        seen = ~padding[..., None]
        assert torch.allclose(
            model(x, src_key_padding_mask=padding) * seen, plain(x, src_key_padding_mask=padding) * seen, atol=1e-5
        )
    assert [name for name in recorder.names if name.startswith("layers.1")] == [
        "layers.1.self_attn:in_proj_weight",
        "layers.1.self_attn:scores",
        "layers.1.self_attn:context",
        "layers.1.self_attn.out_proj",
        "layers.1.linear1",
        "layers.1.linear2",
    ]
    assert conversion.kept == ()


def test_two_calls_of_one_attention_module_are_one_layer():
    model = nn.MultiheadAttention(8, 2)
    conversion = convert(model, InPlace())
    for length in (3, 4):
        model(*tensors((length, 1, 8)) * 3)
    assert [each.calls for each in conversion.offloaded] == [2, 2, 2, 2]

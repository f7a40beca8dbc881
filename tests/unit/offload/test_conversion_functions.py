"""Torch's functions that multiply: each gives what torch gives, with the product in it, or stays and is recorded."""

import operator
import warnings

import pytest
import torch
import torch.nn.functional as F
from tests.offloading import InPlace, Recorder
from torch import nn

from cloister.offload import UnreachedWarning, convert
from cloister.ring import Conv2d, MatMul

pytestmark = pytest.mark.usefixtures("one_thread")


class Calls(nn.Module):
    """A model that makes one call."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *operands, **named):
        return self.function(*operands, **named)


def tensors(*shapes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def gradients(y, operands):
    return torch.autograd.grad(y, operands, torch.linspace(-1, 1, y.numel()).reshape(y.shape), allow_unused=True)


def agrees(function, *operands, **named):
    """The products of a call that leaves, after its result and gradients were compared with torch's own."""
    recorder = Recorder()
    model = Calls(function)
    conversion = convert(model, recorder)
    expected = function(*operands, **named)
    y = model(*operands, **named)
    assert (y.shape, y.dtype, y.is_contiguous()) == (expected.shape, expected.dtype, expected.is_contiguous())
    assert torch.allclose(y, expected, rtol=1e-5, atol=1e-5)
    inputs = [each for each in (*operands, *named.values()) if isinstance(each, torch.Tensor) and each.requires_grad]
    for mine, torchs in zip(gradients(y, inputs), gradients(expected, inputs), strict=True):
        assert (mine is None) == (torchs is None)
        assert mine is None or torch.allclose(mine, torchs, rtol=1e-4, atol=1e-5)
    assert conversion.kept == ()
    return [product for _, product in recorder.made if product.role == "forward"]


def stays(function, *operands, warned=False, **named):
    """The one row of a call that stays, after its result was compared with torch's own."""
    recorder = InPlace()
    model = Calls(function)
    conversion = convert(model, recorder)
    expected = function(*operands, **named)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UnreachedWarning)
        y = model(*operands, **named)
    assert y.is_meta or torch.equal(y, expected)
    assert recorder.operands == []
    (kept,) = conversion.kept
    assert kept.reached != warned
    assert [type(each.message) for each in seen] == ([UnreachedWarning] if warned else [])
    assert kept.name == "(root)"
    assert kept.where.startswith(f"{__name__}:")
    return kept


MATRICES = {
    "linear": (F.linear, [(5, 4), (3, 4)], (5, 4), (3, 4)),
    "linear with bias": (F.linear, [(5, 4), (3, 4), (3,)], (5, 4), (3, 4)),
    "linear of one row": (F.linear, [(4,), (3, 4), (3,)], (1, 4), (3, 4)),
    "linear of many axes": (F.linear, [(2, 3, 5, 4), (3, 4), (3,)], (30, 4), (3, 4)),
    "mm": (torch.mm, [(5, 4), (4, 3)], (5, 4), (3, 4)),
    "method mm": (torch.Tensor.mm, [(5, 4), (4, 3)], (5, 4), (3, 4)),
    "matmul": (torch.matmul, [(5, 4), (4, 3)], (5, 4), (3, 4)),
    "method matmul": (torch.Tensor.matmul, [(5, 4), (4, 3)], (5, 4), (3, 4)),
    "linalg.matmul": (torch.linalg.matmul, [(5, 4), (4, 3)], (5, 4), (3, 4)),
    "at": (operator.matmul, [(5, 4), (4, 3)], (5, 4), (3, 4)),
    "matmul of batches": (torch.matmul, [(2, 5, 4), (2, 4, 3)], (2, 5, 4), (2, 3, 4)),
    "matmul of batches of batches": (torch.matmul, [(2, 6, 5, 4), (2, 6, 4, 3)], (2, 6, 5, 4), (2, 6, 3, 4)),
    "matmul, the right one shared": (torch.matmul, [(2, 6, 5, 4), (4, 3)], (60, 4), (3, 4)),
    "matmul, the left one shared": (torch.matmul, [(5, 4), (2, 6, 4, 3)], (2, 6, 5, 4), (2, 6, 3, 4)),
    "matmul, shared along an outer axis": (torch.matmul, [(2, 6, 5, 4), (6, 4, 3)], (6, 10, 4), (6, 3, 4)),
    "matmul, shared along an inner axis": (torch.matmul, [(2, 6, 5, 4), (2, 1, 4, 3)], (2, 30, 4), (2, 3, 4)),
    "matmul, each shared along one": (torch.matmul, [(2, 1, 5, 4), (1, 6, 4, 3)], (6, 10, 4), (6, 3, 4)),
    "bmm": (torch.bmm, [(2, 5, 4), (2, 4, 3)], (2, 5, 4), (2, 3, 4)),
    "method bmm": (torch.Tensor.bmm, [(2, 5, 4), (2, 4, 3)], (2, 5, 4), (2, 3, 4)),
    "addmm": (torch.addmm, [(3,), (5, 4), (4, 3)], (5, 4), (3, 4)),
    "method addmm": (torch.Tensor.addmm, [(5, 3), (5, 4), (4, 3)], (5, 4), (3, 4)),
    "baddbmm": (torch.baddbmm, [(2, 5, 3), (2, 5, 4), (2, 4, 3)], (2, 5, 4), (2, 3, 4)),
    "method baddbmm": (torch.Tensor.baddbmm, [(5, 3), (2, 5, 4), (2, 4, 3)], (2, 5, 4), (2, 3, 4)),
}


@pytest.mark.parametrize(("function", "shapes", "x", "w"), MATRICES.values(), ids=MATRICES)
def test_a_product_of_matrices(function, shapes, x, w):
    (product,) = agrees(function, *tensors(*shapes))
    assert (product.operator, product.x, product.w) == (MatMul(), x, w)


def test_arguments_may_be_named():
    x, w, b = tensors((5, 4), (3, 4), (3,))
    assert len(agrees(F.linear, weight=w, input=x, bias=b)) == 1
    assert len(agrees(torch.matmul, other=w.mT, input=x)) == 1
    assert len(agrees(torch.addmm, input=b, mat1=x, mat2=w.mT)) == 1


@pytest.mark.parametrize(("beta", "alpha"), [(1, 1), (0, 1), (2, 1), (1, 0.5), (0.25, -2)])
def test_sums_are_weighted(beta, alpha):
    for function, shapes in ((torch.addmm, [(5, 3), (5, 4), (4, 3)]), (torch.baddbmm, [(3,), (2, 5, 4), (2, 4, 3)])):
        added, a, b = tensors(*shapes)
        agrees(function, added.requires_grad_(beta != 0), a, b, beta=beta, alpha=alpha)


def test_with_beta_zero_nothing_is_read_from_what_is_added():
    _, a, b = tensors((5, 3), (5, 4), (4, 3))
    assert len(agrees(lambda *operands: torch.addmm(torch.full((5, 3), torch.nan), *operands, beta=0), a, b)) == 1


def test_an_operand_may_be_strided_as_it_likes():
    x, w = tensors((4, 5, 2), (6, 8))
    agrees(lambda x, w: F.linear(x.transpose(0, 2), w[::2, ::2]), x, w)
    agrees(lambda x, w: x.permute(2, 1, 0) @ w[::2, ::2].mT, x, w)
    agrees(lambda x, w: x[:1].expand(3, 5, 2) @ w[:2, :3], x, w)


def test_a_parameter_on_the_left_is_the_weight_all_the_same():
    weight = nn.Parameter(torch.randn(3, 4))
    recorder = Recorder()
    model = Calls(lambda x: weight @ x)
    model.weight = weight
    convert(model, recorder)
    x = torch.randn(2, 4, 5)
    y = model(x)
    assert torch.allclose(y, weight @ x, atol=1e-6)
    assert y.is_contiguous()
    (layer, rows, w) = recorder.operands[0]
    assert (layer.name, layer.weight) == ("(root)", "parameter")
    assert (rows.shape, w.data_ptr(), w.shape) == ((10, 4), weight.data_ptr(), (3, 4))


def test_a_weight_is_passed_as_itself_or_as_a_view_of_itself():
    """So that whoever shares it once a step can know it again."""
    model = nn.Linear(4, 3)
    table = nn.Parameter(torch.randn(4, 6))
    model.table = table
    model.register_forward_hook(lambda _, args, __: args[0] @ table[:, 2:])
    recorder = InPlace()
    convert(model, recorder)
    model(torch.randn(5, 4))
    assert recorder.weights[0] is model.weight
    assert recorder.weights[1]._base is table
    assert [layer.name for layer, _, _ in recorder.operands] == ["(root)", "(root):table"]


CONVOLUTIONS = {
    "plain": ([(2, 4, 6, 5), (3, 4, 3, 2)], {}),
    "bias": ([(2, 4, 6, 5), (3, 4, 3, 2), (3,)], {}),
    "one image": ([(4, 6, 5), (3, 4, 3, 3), (3,)], {"padding": 1}),
    "stride": ([(2, 4, 7, 6), (3, 4, 3, 3)], {"stride": (2, 3)}),
    "padding": ([(2, 4, 6, 5), (3, 4, 3, 3)], {"padding": (2, 1)}),
    "dilation": ([(2, 4, 9, 9), (3, 4, 3, 2)], {"dilation": (2, 3), "padding": [1]}),
    "groups": ([(2, 4, 6, 5), (6, 2, 3, 3), (6,)], {"groups": 2}),
    "depthwise": ([(2, 4, 6, 5), (4, 1, 3, 3)], {"groups": 4, "stride": 2, "padding": 1}),
    "all": (
        [(2, 4, 11, 9), (6, 2, 3, 2), (6,)],
        {"groups": 2, "stride": (2, 1), "padding": (3, 2), "dilation": (1, 2)},
    ),
    "valid": ([(2, 4, 6, 5), (3, 4, 3, 2)], {"padding": "valid", "stride": 2}),
    "same": ([(2, 4, 6, 5), (3, 4, 3, 3)], {"padding": "same"}),
    "same, even kernel": ([(2, 4, 6, 5), (3, 4, 2, 4)], {"padding": "same"}),  # torch copies, and warns of it
    "same, even kernel, dilated": ([(2, 4, 9, 9), (3, 4, 2, 3)], {"padding": "same", "dilation": (3, 2)}),
    "one point": ([(2, 4, 6, 5), (3, 4, 1, 1)], {"stride": 2}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("shapes", "named"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_of_images(shapes, named):
    (product,) = agrees(F.conv2d, *tensors(*shapes), **named)
    assert isinstance(product.operator, Conv2d)
    assert product.operator.groups == named.get("groups", 1)
    assert product.w == shapes[1]


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ([(2, 4, 9), (3, 4, 3), (3,)], {}),
        ([(4, 9), (3, 4, 3), (3,)], {"stride": 2, "padding": 1}),
        ([(2, 4, 9), (4, 1, 2)], {"groups": 4, "dilation": (3,), "padding": "same"}),
        ([(2, 4, 9), (6, 2, 3)], {"groups": 2, "padding": "valid", "stride": [2]}),
    ],
)
def test_a_convolution_of_rows_is_one_of_images_of_one_row(shapes, named):
    (product,) = agrees(F.conv1d, *tensors(*shapes), **named)
    assert product.w == (*shapes[1][:2], 1, shapes[1][2])


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_a_module_may_pad_as_it_likes(mode):
    model = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    recorder = Recorder()
    convert(model, recorder)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert recorder.names == ["(root)"]


REFUSED_BY_TORCH = {
    "linear, widths": (lambda: F.linear(torch.ones(2, 3), torch.ones(4, 5)), RuntimeError),
    "linear, a number": (lambda: F.linear(torch.tensor(1.0), torch.ones(4, 5)), RuntimeError),
    "linear, no tensor": (lambda: F.linear(torch.ones(2, 3), None), TypeError),
    "matmul, widths": (lambda: torch.ones(2, 3) @ torch.ones(4, 5), RuntimeError),
    "matmul, batches": (lambda: torch.ones(2, 2, 3) @ torch.ones(4, 3, 5), RuntimeError),
    "mm of batches": (lambda: torch.mm(torch.ones(2, 2, 3), torch.ones(2, 3, 3)), RuntimeError),
    "bmm, batches": (lambda: torch.bmm(torch.ones(1, 2, 3), torch.ones(4, 3, 5)), RuntimeError),
    "bmm of matrices": (lambda: torch.bmm(torch.ones(2, 3), torch.ones(3, 5)), RuntimeError),
    "addmm of batches": (lambda: torch.addmm(torch.ones(3), torch.ones(2, 2, 3), torch.ones(2, 3, 3)), RuntimeError),
    "conv2d, channels": (lambda: F.conv2d(torch.ones(1, 3, 4, 4), torch.ones(2, 4, 3, 3)), RuntimeError),
    "conv2d, small image": (lambda: F.conv2d(torch.ones(1, 3, 2, 4), torch.ones(2, 3, 3, 3)), RuntimeError),
    "conv2d, groups": (lambda: F.conv2d(torch.ones(1, 4, 4, 4), torch.ones(3, 2, 3, 3), groups=2), RuntimeError),
    "conv2d, stride 0": (lambda: F.conv2d(torch.ones(1, 3, 4, 4), torch.ones(3, 3, 3, 3), stride=0), RuntimeError),
    "conv2d, padding": (lambda: F.conv2d(torch.ones(1, 3, 4, 4), torch.ones(3, 3, 3, 3), padding=-1), RuntimeError),
    "conv2d, same": (
        lambda: F.conv2d(torch.ones(1, 3, 4, 4), torch.ones(3, 3, 3, 3), stride=2, padding="same"),
        RuntimeError,
    ),
    "conv2d, word": (lambda: F.conv2d(torch.ones(1, 3, 4, 4), torch.ones(3, 3, 3, 3), padding="full"), RuntimeError),
    "conv1d of images": (lambda: F.conv1d(torch.ones(1, 3, 4, 4), torch.ones(3, 3, 3)), RuntimeError),
}


@pytest.mark.filterwarnings("ignore::cloister.offload.UnreachedWarning")
@pytest.mark.parametrize(("call", "kind"), REFUSED_BY_TORCH.values(), ids=REFUSED_BY_TORCH)
def test_what_torch_refuses_it_refuses_in_its_own_words(call, kind):
    with pytest.raises(kind) as expected:
        call()
    model = Calls(call)
    recorder = InPlace()
    convert(model, recorder)
    with pytest.raises(kind) as caught:
        model()
    assert str(caught.value) == str(expected.value)
    assert (recorder.operands, recorder.open) == ([], 0)


def test_nothing_to_multiply_is_nobodys_product():
    for call in (
        lambda: F.linear(torch.ones(0, 4), torch.ones(3, 4)),
        lambda: torch.ones(2, 0) @ torch.ones(0, 3),
        lambda: F.conv2d(torch.ones(0, 3, 4, 4), torch.ones(2, 3, 3, 3)),
    ):
        model = Calls(call)
        recorder = InPlace()
        conversion = convert(model, recorder)
        assert torch.equal(model(), call())
        assert (recorder.operands, conversion.kept) == ([], ())


STAYS = {
    "matrix and vector": (lambda: torch.ones(3, 4) @ torch.ones(4), "one vector", False),
    "vector and matrix": (lambda: torch.ones(4) @ torch.ones(4, 3), "one vector", False),
    "mv": (lambda: torch.mv(torch.ones(3, 4), torch.ones(4)), "one vector", False),
    "dot": (lambda: torch.dot(torch.ones(4), torch.ones(4)), "one vector", False),
    "linear to one number": (lambda: F.linear(torch.ones(3, 4), torch.ones(4)), "one vector", False),
    "outer product": (lambda: torch.ones(3, 1) @ torch.ones(1, 4), "an outer product", False),
    "float64": (lambda: torch.ones(3, 4).double() @ torch.ones(4, 3).double(), "float64 arithmetic", False),
    "float16": (lambda: torch.ones(3, 4).half() @ torch.ones(4, 3).half(), "float16 arithmetic", False),
    "integers": (lambda: torch.ones(3, 4).long() @ torch.ones(4, 3).long(), "int64 arithmetic", False),
    "complex": (lambda: (torch.ones(3, 4) + 0j) @ (torch.ones(4, 3) + 0j), "complex64 arithmetic", False),
    "einsum": (lambda: torch.einsum("bi,oi->bo", torch.ones(3, 4), torch.ones(5, 4)), "no offloaded form", True),
    "tensordot": (lambda: torch.tensordot(torch.ones(3, 4), torch.ones(4, 5), 1), "no offloaded form", True),
    "bilinear": (
        lambda: F.bilinear(torch.ones(3, 4), torch.ones(3, 4), torch.ones(2, 4, 4)),
        "no offloaded form",
        True,
    ),
    "conv3d": (lambda: F.conv3d(torch.ones(1, 2, 3, 3, 3), torch.ones(2, 2, 2, 2, 2)), "no offloaded form", True),
    "transposed": (
        lambda: F.conv_transpose2d(torch.ones(1, 2, 3, 3), torch.ones(2, 2, 2, 2)),
        "no offloaded form",
        True,
    ),
    "cdist": (lambda: torch.cdist(torch.ones(30, 4), torch.ones(30, 4)), "no offloaded form", True),
    "into a tensor": (lambda: torch.mm(torch.ones(3, 4), torch.ones(4, 5), out=torch.empty(3, 5)), "a form", True),
    "in place": (lambda: torch.ones(3, 5).addmm_(torch.ones(3, 4), torch.ones(4, 5)), "no offloaded form", True),
    "by its kernel": (lambda: torch.ops.aten.mm(torch.ones(3, 4), torch.ones(4, 5)), "no offloaded form", True),
    "by its overload": (
        lambda: torch.ops.aten.addbmm.default(torch.ones(3, 3), torch.ones(2, 3, 4), torch.ones(2, 4, 3)),
        "no offloaded form",
        True,
    ),
    "sparse": (lambda: torch.eye(4).to_sparse() @ torch.ones(4, 3), "nested or sparse", True),
    "meta": (lambda: torch.ones(3, 4, device="meta") @ torch.ones(4, 3, device="meta"), "is on meta", True),
    "matrix power": (lambda: torch.linalg.matrix_power(torch.ones(3, 3), 3), "no offloaded form", True),
    "chain": (lambda: torch.linalg.multi_dot([torch.eye(3)] * 3), "no offloaded form", True),
    "addbmm": (lambda: torch.addbmm(torch.ones(3, 3), torch.ones(2, 3, 4), torch.ones(2, 4, 3)), "no offloaded", True),
}


@pytest.mark.parametrize(("call", "reason", "warned"), STAYS.values(), ids=STAYS)
def test_what_stays_is_recorded_with_its_reason(call, reason, warned):
    assert reason in stays(call, warned=warned).reason


def test_a_recurrent_layer_is_named_where_it_stands():
    model = nn.Sequential(nn.LSTM(3, 4), Calls(lambda pair: pair[0]), nn.Linear(4, 2))
    recorder = InPlace()
    conversion = convert(model, recorder)
    with pytest.warns(UnreachedWarning, match=r"^0: lstm at torch\.nn\.modules\.rnn:\d+ stays in the enclave"):
        model(torch.ones(5, 2, 3))
    assert recorder.names == ["2"]
    (kept,) = conversion.kept
    assert (kept.name, kept.what, kept.reached) == ("0", "lstm", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(5, 2, 3))
    assert conversion.kept[0].calls == 2


def test_a_transform_of_torch_func_stays():
    model = Calls(lambda x: torch.func.vmap(lambda row: row @ torch.ones(4, 3))(x))
    conversion = convert(model, InPlace())
    with pytest.warns(UnreachedWarning, match=r"transform of torch\.func"):
        assert torch.equal(model(torch.ones(2, 5, 4)), torch.full((2, 5, 3), 4.0))
    assert [(each.what, each.reached) for each in conversion.kept] == [("matmul", False)]


def _twice(x):
    return torch.mm(torch.mm(x, x), x)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_function_is_seen_below_torchs_own():
    scripted = torch.jit.script(_twice)
    model = Calls(lambda x: scripted(x))
    conversion = convert(model, InPlace())
    with pytest.warns(UnreachedWarning, match="it was not asked for by a function of torch's"):
        model(torch.ones(3, 3))
    (kept,) = conversion.kept
    assert (kept.name, kept.what, kept.reached, kept.calls) == ("(root)", "aten.mm", False, 2)
    assert kept.multiplications == 27
    model(torch.ones(3, 3))
    assert conversion.kept[0].calls == 2, "looking costs time: each kind of forward is watched once"
    model.eval()(torch.ones(3, 3))
    assert conversion.kept[0].calls == 4


def test_an_operator_of_another_library_is_opaque():
    library = torch.library.Library("cloister_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", _twice, "CPU")
    model = Calls(lambda x: torch.ops.cloister_test.twice(x))
    conversion = convert(model, InPlace())
    with pytest.warns(UnreachedWarning, match=r"\(root\): cloister_test\.twice at "):
        model(torch.ones(3, 3))
    (kept,) = conversion.kept
    assert (kept.reached, kept.calls, kept.multiplications) == (False, 1, None)
    library._destroy()


def test_what_a_handled_function_multiplies_below_is_counted_once():
    model = Calls(lambda x: torch.linalg.multi_dot([x, x, x, torch.einsum("bi,io->bo", x, x)]))
    conversion = convert(model, InPlace())
    with pytest.warns(UnreachedWarning) as seen:
        model(torch.ones(3, 3))
    assert [(each.what, each.calls, each.multiplications) for each in conversion.kept] == [
        ("einsum", 1, 27),
        ("linalg_multi_dot", 1, 81),
    ]
    assert len(seen) == 2


def test_places_are_told_apart_by_module_function_and_line():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Calls(lambda x: torch.einsum("bi,io->bo", x, x))

        def forward(self, x):
            first = torch.einsum("bi,io->bo", x, x)
            second = torch.einsum("bi,io->bo", x, x)
            return self.inner(first) + self.inner(second)

    model = Two()
    conversion = convert(model, InPlace())
    with pytest.warns(UnreachedWarning) as seen:
        model(torch.ones(3, 3))
    assert [(each.name, each.calls, each.multiplications) for each in conversion.kept] == [
        ("(root)", 1, 27),
        ("(root)", 1, 27),
        ("inner", 2, 27),
    ]
    assert len(seen) == 3
    lines = [int(each.where.rpartition(":")[2]) for each in conversion.kept]
    assert lines[1] == lines[0] + 1


def test_products_of_activations_are_numbered_by_source_line():
    class Two(nn.Module):
        def forward(self, x):
            for _ in range(2):
                x = x @ x
            return x @ x

    recorder = InPlace()
    model = Two()
    convert(model, recorder)
    for _ in range(2):
        model(torch.eye(3))
    assert [layer.name for layer, _, _ in recorder.operands] == [
        "(root):matmul",
        "(root):matmul",
        "(root):matmul.2",
    ] * 2
    assert {layer.weight for layer, _, _ in recorder.operands} == {"activation"}


@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_an_error_of_the_multipliers_is_not_taken_for_an_odd_call(kind):
    class Fails(InPlace):
        def product(self, layer, x, w):
            raise kind("the multiplier's own")

    model = nn.Linear(4, 3)
    recorder = Fails()
    conversion = convert(model, recorder)
    with pytest.raises(kind, match="the multiplier's own"):
        model(torch.ones(2, 4))
    assert (recorder.open, conversion.kept) == (0, ())

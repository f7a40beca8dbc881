"""The forward of a converted model: every function that torch is asked for on the way, caught and answered.

A :class:`Pass` is a ``TorchFunctionMode``: between its entry and its exit torch asks it before every function that is
called from Python on this thread. So it does not matter whether a module calls ``F.linear``, inherits a forward that
does, has its forward patched, or computes its weight first: the call is the same call.

Rules:

* What has an offloaded form (``HANDLERS``) gives the same result with the multiplier's product in it.
* What has none (:data:`UNREACHED`) runs as it stands, and is recorded by module, function and source line.
* Of converted models inside one another the innermost decides.
* In a private forward (:mod:`cloister.offload._private`) what that claims is handed on, with this call beside it.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from cloister.errors import UnsupportedError
from cloister.offload._private import PRIVATE
from cloister.offload._router import Caller, Route, Router, plain, weight_of, where
from cloister.ring import Conv2d, Product

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

    from torch import Tensor, nn

    from cloister.offload._apart import Apart
    from cloister.offload._records import Place
    from cloister.ring import Operator

__all__ = ["MATRIX_VECTOR", "PASSES", "UNREACHED", "Call", "Handler", "Pass", "in_pass"]

MATRIX_VECTOR = "a matrix times one vector: checking it costs as much as making it"
_NO_FORM = "it has no offloaded form"
_UNSEEN = "it was not asked for by a function of torch's that Python calls"
_ODD_FORM = "it is called in a form that has no offloaded one"
_BY_EXAMPLE = "its gradients an example are made in the enclave"
_PICTURES = "its pictures are not whole examples, or its filters are data: an example's scale would be another's too"

_MATRICES = """
    __rmatmul__ _convolution _grouped_mm _native_multi_head_attention _scaled_grouped_mm _scaled_mm _sparse_mm
    _transformer_encoder_layer_fwd addbmm addbmm_ addmm addmm_ baddbmm baddbmm_ bilinear bmm cdist chain_matmul conv1d
    conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution corrcoef cov einsum grouped_mm
    gru gru_cell hspmm inner linalg_matmul linalg_matrix_power linalg_multi_dot linear linear_cross_entropy lstm
    lstm_cell matmul matrix_power mm multi_head_attention_forward rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell
    scaled_dot_product_attention scaled_grouped_mm scaled_mm smm sparse_mm sspaddmm tensordot
"""
_COMPOSITE = "multi_head_attention_forward"
"""Calls others, which are caught one by one."""
_VECTORS = "addmv addmv_ addr addr_ dot linalg_vecdot mv vdot"

UNREACHED = {**dict.fromkeys(_MATRICES.split(), _NO_FORM), **dict.fromkeys(_VECTORS.split(), MATRIX_VECTOR)}
"""Functions that multiply and stay, by name, with the reason. A convertible function stands here too, for calls of it
that do not go through its Python name (``torch.ops.aten.mm``)."""

Handler = Any
"""A function of a :class:`Call` and the caught function's arguments; gives the result, or None to let it run."""

_SKIPPED_FILES = tuple(
    os.path.join(os.path.dirname(torch.__file__), *parts)
    for parts in (("overrides.py",), ("functional.py",), ("nn", "functional.py"), ("_ops.py",), ("_tensor.py",))
)
_OWN_FOLDER = os.path.dirname(__file__)


class _Passes(threading.local):
    def __init__(self) -> None:
        self.stack: list[Pass] = []


PASSES = _Passes()
"""The passes that run on this thread, outermost first."""


def in_pass() -> bool:
    """Whether a converted model's forward runs on this thread."""
    return bool(PASSES.stack)


class Pass(TorchFunctionMode):
    """One forward of a converted model on one thread.

    Args:
        router: Decides and counts.
        handlers: Offloaded forms by function.
        module: The module whose forward it is.
        path: Its path.

    Attributes:
        modules: Converted modules whose forwards are running, innermost last, each with its path.
        watching: What becomes of arithmetic that is seen below torch's functions: ``unknown`` when nobody has said
            anything of it yet, ``known`` when it is recorded already, or the place that it is to be added to.
        products: Names for the next products of activations, while a function runs that makes several.
    """

    def __init__(self, router: Router, handlers: Mapping[Any, Handler], module: nn.Module, path: str) -> None:
        super().__init__()
        self.router = router
        self.modules: list[tuple[nn.Module, str]] = [(module, path)]
        self.watching: Literal["unknown", "known"] | Place = "unknown"
        self.products: list[str] = []
        self._handlers = handlers
        self._seen: int | None = None

    @property
    def innermost(self) -> bool:
        """Whether no other converted model's forward runs inside this one now."""
        return PASSES.stack[-1] is self

    def saw(self, kernel: str, multiplications: int | None, frame: FrameType) -> None:
        """Is told of a kernel that multiplies, which ran in this pass."""
        if self.watching == "known":
            return
        if self.watching == "unknown":
            path = self.modules[-1][1]
            place = self.router.keep(path, kernel, where(_site(frame)), _UNSEEN, reached=False)
            self.router.records.measured(place, multiplications)
        elif multiplications is not None:
            self._seen = multiplications + (self._seen or 0)

    def run(self, function: Callable[[], Any], watching: Literal["known"] | Place) -> Any:
        """Runs a function; what it multiplies belongs to a place, or is recorded already."""
        before = self.watching, self._seen
        self.watching, self._seen = watching, None
        try:
            return function()
        finally:
            if watching != "known":
                self.router.records.measured(watching, self._seen)
            self.watching, self._seen = before

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        handler = self._handlers.get(func)
        name = getattr(func, "__name__", "").partition(".")[0]  # an overload is called 'mm.default'
        if (handler is None and name not in UNREACHED) or not self.innermost:
            return func(*args, **kwargs)
        call = Call(self, func, name, args, kwargs, sys._getframe(1))
        if PRIVATE.forward is not None and name != _COMPOSITE and PRIVATE.forward.claims(args, kwargs):
            return call.hand_on()
        return call.natively(UNREACHED[name]) if handler is None else call.answer(handler)


class Call:
    """One call of a function that multiplies.

    Attributes:
        name: What the function is called.
    """

    def __init__(
        self,
        pass_: Pass,
        func: Callable[..., Any],
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        frame: FrameType,
    ) -> None:
        self._pass = pass_
        self._func = func
        self._args = args
        self._kwargs = kwargs
        self._place: Literal["known"] | Place = "known"
        self.name = name
        module, path = pass_.modules[-1]
        self._caller = Caller(module, path, _site(frame))

    def answer(self, handler: Handler) -> Any:
        """The handler's result, or the function's own where the handler makes none.

        Raises:
            UnsupportedError: 8708 when the forward switched autocast on.
        """
        if torch.is_autocast_enabled("cpu"):
            raise UnsupportedError(8708, f"{self._caller.path}: autocast is active")
        try:
            result = handler(self, *self._args, **self._kwargs)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            return self.natively(_ODD_FORM)  # it never came into the handler: the arguments have other names
        return self._run() if result is None else result

    def natively(self, reason: str) -> Any:
        """Runs the function as it stands, and records why."""
        self.keep(reason, reached=reason is MATRIX_VECTOR)
        return self._run()

    def hand_on(self) -> Any:
        """Runs the function as it stands: around this pass, a private forward answers it, and may ask for a product."""
        before, PRIVATE.call = PRIVATE.call, self
        try:
            result = self._pass.run(lambda: self._func(*self._args, **self._kwargs), "known")
            if PRIVATE.call is self:
                self.keep(_BY_EXAMPLE)
            return result
        finally:
            PRIVATE.call = before

    def apart(
        self, operator: Operator, x: Tensor, w: Tensor, *, pictures: bool = True, together: int | None = None
    ) -> Apart | None:
        """How the private form that answers this call has its product made; None where torch makes it, recorded.

        Args:
            operator: Its geometry.
            x: The left operand.
            w: The right one: a parameter, a view of one, or computed from some.
            pictures: Whether each picture of a convolution is of one example.
            together: As for :class:`~cloister.offload._apart.Apart`.

        Raises:
            UnsupportedError: 8707 for a trained weight where weights are public.
        """
        route = self.route(operator, tuple(x.shape), w, whole=pictures)
        if route.reason is not None:
            return None
        multiplier: Any = self._pass.router.multiplier
        self._pass.router.records.add_offloaded(route.layer, x.shape, w.shape)
        return multiplier.apart(route.layer, x.shape, w, together=together)

    @property
    def one_product(self) -> bool:
        """Whether an input that was hidden serves one product only."""
        multiplier: Any = self._pass.router.multiplier
        return multiplier.products.one_product

    def within(self, function: Callable[..., Any], products: Sequence[str]) -> Any:
        """Runs another function on the call's arguments; what it calls is caught again."""
        before, self._pass.products = self._pass.products, list(products)
        try:
            with self._pass:
                return function(*self._args, **self._kwargs)
        finally:
            self._pass.products = before

    def keep(self, reason: str, *, reached: bool = True) -> None:
        """Records that the call stays in the enclave."""
        self._place = self._pass.router.keep(self._caller.path, self.name, self._caller.where, reason, reached=reached)

    def route(
        self, operator: Operator, x: Sequence[int], w: Tensor, what: str | None = None, *, whole: bool | None = None
    ) -> Route:
        """Where a product of this call is made; recorded when that is the enclave.

        Args:
            operator: Its geometry.
            x: Shape of the left operand.
            w: The right operand.
            what: What it is there, for layers without a module of their own.
            whole: Whether each slice of an operand that has a scale in a private forward is of one example; left out,
                it follows from shapes.
        """
        if whole is None:
            private = PRIVATE.forward if isinstance(operator, Conv2d) else None
            whole = private is None or (x[0] % private.examples == 0 and weight_of(w) is not None)
        if what is None:
            what = self._pass.products.pop(0) if self._pass.products and weight_of(w) is None else self.name
        router = self._pass.router
        route = router.route(operator, x, w, caller=self._caller, what=what)
        if route.reason is None and not whole:
            route = Route(route.layer, _PICTURES)
        if route.reason is not None:
            place = router.keep(route.layer.name, self.name, self._caller.where, route.reason)
            product = Product(operator, "forward", x=tuple(x), w=tuple(w.shape))
            router.records.measured(place, product.multiplications)
        return route

    def multiply(self, route: Route, x: Tensor, w: Tensor) -> Tensor:
        """Makes a product where its route says.

        Shapes: As the operator says.
        """
        if route.reason is None:
            return self._pass.run(lambda: self._pass.router.multiply(route, x, w), "known")
        return self._pass.run(lambda: plain(route.layer.operator, x, w), "known")

    def _run(self) -> Any:
        return self._pass.run(lambda: self._func(*self._args, **self._kwargs), self._place)


def _site(frame: FrameType | None) -> FrameType:
    """The innermost frame that is neither ours nor torch's plumbing."""
    assert frame is not None  # noqa: S101 - __torch_function__ always has a caller
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if name not in _SKIPPED_FILES and not name.startswith(_OWN_FOLDER):
            break
        frame = frame.f_back
    return frame

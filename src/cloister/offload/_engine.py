"""The engine: has a model's products made, each tensor hidden once.

* A weight is rounded and shared when it is first used after a change, and serves every product of every layer that has
  it, forward and backward, until it changes again.
* A layer's input is shared for its forward product and kept for the weight's gradient; several layers that read one
  tensor, as queries, keys and values do, share it once.
* The gradient of an output is shared once, for the input's and the weight's.
* Weight gradients are collected when autograd comes to the parameters, last.
* In a private forward (:mod:`cloister.offload._private`) no gradient of a weight is made here, and no example's scale
  depends on another (:mod:`cloister.offload._apart`).

What is sent, in which order and how large, follows from shapes, bits and the model's own structure: from nothing that
a tensor holds.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from cloister.errors import UnsupportedError
from cloister.offload._apart import Apart
from cloister.offload._autograd import Multiply, MultiplyApart, Tap
from cloister.offload._calibration import Calibration
from cloister.offload._private import PRIVATE
from cloister.offload._router import weight_of
from cloister.ring import Conv2d, MatMul, Product, survives

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from cloister.offload._apart import Integers
    from cloister.offload._layers import Layer
    from cloister.offload._operands import Numerics
    from cloister.offload._products import Hidden, Products, Promise, StreamOf
    from cloister.ring import Role

__all__ = ["Call", "Engine"]

_WEIGHTS_KEPT = 4096
_NO_BACKWARD = -1


@dataclass(slots=True)
class _Known:
    """A weight's operands, by the axis of their scales, for as long as it has not changed."""

    weight: weakref.ref[Tensor]
    state: tuple[object, ...]
    operands: dict[tuple[int | None, bool], Hidden] = field(default_factory=dict)


@dataclass(slots=True)
class _Input:
    """The tensor that was hidden last; kept alive, so that its address is nobody else's."""

    tensor: Tensor
    state: tuple[object, ...]
    operand: Hidden


class _Pass(threading.local):
    """What one thread's forward pass of the model has at hand."""

    def __init__(self) -> None:
        self.taps: dict[int, Tap] | None = None
        self.input: _Input | None = None
        self.integers: tuple[Tensor, object, tuple[Integers, list[Hidden]]] | None = None


class Engine:
    """A :class:`~cloister.offload.Multiplier`.

    Args:
        products: Where they are made.
        numerics: How numbers become integers.
        public_weights: Whether the mode shows frozen weights.
    """

    def __init__(self, products: Products[Any], *, numerics: Numerics, public_weights: bool = False) -> None:
        self.products = products
        self.numerics = numerics
        self.calibration = Calibration(numerics.bits) if numerics.scales == "static" else None
        self._public = public_weights
        self._weights: dict[tuple[object, ...], _Known] = {}
        self._parameters: dict[int, weakref.ref[Tensor]] = {}
        self._pass = _Pass()
        self._lock = threading.RLock()
        _open_engines.add(self)

    # ---- the seam to the model ---------------------------------------------------------------------------------

    def enter(self) -> None:
        """See :class:`~cloister.offload.Multiplier`.

        Raises:
            IntegrityError: 5701 when a check failed before.
            UnsupportedError: 8711 in a private forward, with scales that follow from the first batch.
        """
        training = torch.is_grad_enabled()
        if PRIVATE.forward is not None:
            if self.calibration is not None:
                raise UnsupportedError(8711)
            PRIVATE.forward.entered(self)
        again = torch._C._current_graph_task_id() != _NO_BACKWARD
        self.products.begin(training=training, again=again)
        if self.calibration is not None and not again:
            self.calibration.begin()
        self._pass.taps = {}
        if training and PRIVATE.forward is None:
            for key, known in list(self._parameters.items()):
                parameter = known()
                if parameter is None:
                    del self._parameters[key]
                elif parameter.requires_grad:
                    self._pass.taps[key] = Tap(parameter)

    def leave(self, *, training: bool) -> None:
        """See :class:`~cloister.offload.Multiplier`.

        Raises:
            IntegrityError: 5701 when a check failed and nobody will take an optimizer's step.
        """
        self._pass.taps = None
        self._pass.input = self._pass.integers = None
        if not training:
            self.products.settle()

    def multiply(self, layer: Layer, x: Tensor, w: Tensor) -> Tensor:
        """See :class:`~cloister.offload.Multiplier`."""
        if PRIVATE.forward is not None:
            apart = self.apart(layer, x.shape, w, data=layer.weight == "activation")
            wanted = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
            with torch._C.DisableTorchFunction():  # the watch would take memory that is new for a constant
                return MultiplyApart.apply(x, w, apart) if wanted else apart.forward(x)
        call = Call(self, layer, x, w, training=torch.is_grad_enabled())
        if not (torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)):
            return call.forward(x)
        found = self._tap(layer, w)
        if found is None:
            return Multiply.apply(x, w, None, call)
        call.tap = found
        return Multiply.apply(x, None, found.token, call)

    def apart(
        self, layer: Layer, x: Sequence[int], w: Tensor, *, data: bool = False, together: int | None = None
    ) -> Apart:
        """One product of a private forward that runs now; see :class:`~cloister.offload._apart.Apart`."""
        assert PRIVATE.forward is not None  # noqa: S101 - asked for in one only
        rounding = PRIVATE.forward.rounding if self._stochastic(training=True) else None
        return Apart(self, layer, x, w, rounding=rounding, data=data, together=together)

    def settle(self) -> None:
        """Returns when every check so far held.

        Raises:
            IntegrityError: 5701 otherwise, now and at every later call.
        """
        self.products.settle()

    def close(self) -> None:
        """Ends the workers' sessions."""
        self.products.close()

    # ---- tensors -----------------------------------------------------------------------------------------------

    def weight(self, layer: Layer, w: Tensor, product: Product, *, training: bool) -> Hidden:
        """A weight's operand for one product: the one that is shared already, or a new one."""
        parameter = weight_of(w)
        axis, stochastic = self._scale_axis(product), self._stochastic(training=training)
        if parameter is None:
            return self._hide(layer, "w", w, product, axis=axis, stochastic=stochastic)
        key = (id(parameter), w.storage_offset(), tuple(w.shape), w.stride())
        state = (parameter._version, w.data_ptr(), self.numerics)
        with self._lock:
            known = self._weights.get(key)
            if known is None or known.weight() is not parameter or known.state != state:
                if len(self._weights) >= _WEIGHTS_KEPT:
                    self._weights.clear()
                known = self._weights[key] = _Known(weakref.ref(parameter), state)
            which = (axis, stochastic)
            if which not in known.operands:
                public = self._public and layer.weight == "frozen"
                known.operands[which] = self._hide(
                    layer, "w", w, product, axis=axis, stochastic=stochastic, public=public
                )
            return known.operands[which]

    def input(self, layer: Layer, x: Tensor, product: Product, *, training: bool) -> Hidden:
        """The operand of a layer's input."""
        stochastic = self._stochastic(training=training)
        if x.is_inference() or self.products.one_product:
            return self._hide(layer, "x", x, product, stochastic=stochastic)
        state = (x.data_ptr(), tuple(x.shape), x.stride(), x._version, stochastic)
        last = self._pass.input
        if last is not None and last.state == state:
            return last.operand
        operand = self._hide(layer, "x", x, product, stochastic=stochastic)
        self._pass.input = _Input(x.detach(), state, operand)
        return operand

    def shared(
        self, x: Tensor, kind: object, make: Callable[[], tuple[Integers, list[Hidden]]]
    ) -> tuple[Integers, list[Hidden]]:
        """An input's integers and operands in a private forward: the last one's, where it is the same tensor.

        Args:
            x: The input.
            kind: What else decides how it is cut and scaled.
            make: Makes them.
        """
        if x.is_inference() or self.products.one_product:
            return make()
        state = (x.data_ptr(), tuple(x.shape), x.stride(), x._version, kind)
        last = self._pass.integers
        if last is None or last[1] != state:
            last = self._pass.integers = (x.detach(), state, make())
        return last[2]

    def gradient(self, layer: Layer, dy: Tensor, product: Product) -> Hidden:
        """The operand of an output's gradient."""
        return self._hide(layer, "y", dy, product, stochastic=self._stochastic(training=True))

    def forget_weights(self) -> None:
        """Shares every weight anew at its next use."""
        with self._lock:
            self._weights.clear()

    def ask(self, layer: Layer, product: Product, left: Hidden, right: Hidden) -> Promise:
        """Begins a product.

        Raises:
            UnsupportedError: 8701 when it cannot be cut so that the ring holds it.
        """
        return self.products.ask(layer.name, product, left, right)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _hide(
        self, layer: Layer, stream: StreamOf, values: Tensor, product: Product, *, stochastic: bool,
        axis: int | None = None, public: bool = False,
    ) -> Hidden:  # fmt: skip
        values = values.detach()
        with self._lock:
            exponent = None if self.calibration is None else self.calibration.exponent(layer.name, stream, values)
            return self.products.hide(
                layer.name, stream, values, product=product, axis=axis, stochastic=stochastic, public=public,
                exponent=exponent,
            )  # fmt: skip

    def _stochastic(self, *, training: bool) -> bool:
        return training and self.numerics.rounding == "stochastic"

    def _scale_axis(self, product: Product) -> int | None:
        """The axis along which a weight's scales may vary in a product."""
        if self.numerics.scales != "channel":
            return None
        for axis in _CHANNELS[type(product.operator), product.role]:
            if survives(product, "w", axis):
                return axis
        return None

    def _tap(self, layer: Layer, w: Tensor) -> Tap | None:
        """The parameter's tap, where ``w`` is all of a parameter that is trained."""
        parameter = weight_of(w)
        taps = self._pass.taps
        if parameter is None or taps is None or layer.weight != "parameter" or w.numel() != parameter.numel():
            return None
        if id(parameter) not in taps:
            taps[id(parameter)] = Tap(parameter)
            self._parameters[id(parameter)] = weakref.ref(parameter)
        return taps[id(parameter)]


_CHANNELS: dict[tuple[type, Role], tuple[int, ...]] = {
    (MatMul, "forward"): (-2,),
    (MatMul, "input_gradient"): (-1,),
    (Conv2d, "forward"): (-4,),
    (Conv2d, "input_gradient"): (-3, -4),
}


class Call:
    """One product of a layer in one forward pass, and what its backward needs.

    Attributes:
        tap: Where the promise of the weight's gradient goes; None hands it to autograd at once.
    """

    __slots__ = ("_engine", "_input", "_layer", "_training", "_version", "_w", "_weight", "tap", "x_shape")

    def __init__(self, engine: Engine, layer: Layer, x: Tensor, w: Tensor, *, training: bool) -> None:
        self._engine = engine
        self._training = training  # within a node's forward torch records no gradients
        self._layer = layer
        self._w = w.detach() if weight_of(w) is None else w  # a parameter is found again by what it is
        self._version = None if w.is_inference() else w._version
        self._weight: Hidden | None = None
        self._input: Hidden | None = None
        self.x_shape = tuple(x.shape)
        self.tap: Tap | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The layer's forward product."""
        engine, product = self._engine, self._product("forward")
        weight = engine.weight(self._layer, self._w, product, training=self._training)
        operand = engine.input(self._layer, x, product, training=self._training)
        self._input, self._weight = operand, weight
        return engine.ask(self._layer, product, operand, weight).result()

    def backward(self, dy: Tensor, *, for_x: bool, for_w: bool) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the input and of the weight; the second as a promise where there is a tap.

        Raises:
            RuntimeError: When the weight was changed since the forward product.
        """
        engine, layer = self._engine, self._layer
        if self._version is not None and self._w._version != self._version:
            raise RuntimeError(f"{layer.name}: the weight was changed in place between forward and backward")
        toward_x, toward_w = self._product("input_gradient"), self._product("weight_gradient")
        for_w = for_w or self.tap is not None
        operand = engine.gradient(layer, dy, toward_x if for_x else toward_w)
        assert self._input is not None and self._weight is not None  # noqa: S101, PT018 - forward came first
        dx = dw = None
        if for_x:
            axis = self._weight.axis
            fits = axis is None or survives(toward_x, "w", axis)
            weight = self._weight if fits else engine.weight(layer, self._w, toward_x, training=True)
            dx = engine.ask(layer, toward_x, operand, weight)
        if for_w:
            dw = engine.ask(layer, toward_w, self._input, operand)
        gradient = None if dx is None else dx.result()
        if dw is not None and self.tap is not None:
            self.tap.promises.append(_Promise(dw, self._w, self.tap.parameter))
            return gradient, None
        return gradient, None if dw is None else dw.result()

    def _product(self, role: Role) -> Product:
        return Product(self._layer.operator, role, x=self.x_shape, w=tuple(self._w.shape))


@dataclass(frozen=True, slots=True)
class _Promise:
    """A weight's gradient, laid out as its parameter is."""

    pending: Promise
    w: Tensor
    parameter: weakref.ref[Tensor]

    def __call__(self) -> Tensor:
        gradient = self.pending.result()
        parameter = self.parameter()
        if parameter is None or (parameter.shape == self.w.shape and parameter.stride() == self.w.stride()):
            return gradient
        laid_out = torch.empty_strided(parameter.shape, parameter.stride())
        offset = self.w.storage_offset() - parameter.storage_offset()
        laid_out.as_strided(self.w.shape, self.w.stride(), offset).copy_(gradient)
        return laid_out


_open_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_step(*_: object) -> None:
    """An optimizer may write its parameters without telling torch."""
    for engine in tuple(_open_engines):
        engine.forget_weights()


register_optimizer_step_post_hook(_after_step)

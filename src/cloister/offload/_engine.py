"""The engine: makes a model's products with the arithmetic of a mode, each tensor hidden once.

* A weight is rounded and shared when it is first used after a change, and serves every product of every layer that has
  it, forward and backward, until it changes again.
* A layer's input is shared for its forward product and kept for the weight's gradient; several layers that read one
  tensor, as queries, keys and values do, share it once.
* The gradient of an output is shared once, for the input's and the weight's.
* Weight gradients are collected when autograd comes to the parameters, last.

What is sent, in which order and how large, follows from shapes, bits and the model's own structure: from nothing that
a tensor holds.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from cloister.offload._autograd import Multiply, Tap
from cloister.offload._exchange import Quantising
from cloister.offload._pending import Pending
from cloister.offload._router import weight_of
from cloister.ring import Conv2d, MatMul, Product, RoundingStream, parts, survives

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.offload._exchange import Arithmetic
    from cloister.offload._layers import Layer
    from cloister.offload._meter import Meter
    from cloister.offload._operands import Numerics, Operand
    from cloister.offload._verdict import Verdict
    from cloister.ring import Role

__all__ = ["Call", "Engine"]

_WEIGHTS_KEPT = 4096
_NO_BACKWARD = -1


@dataclass(slots=True)
class _Known:
    """A weight's operands, by the axis of their scales, for as long as it has not changed."""

    weight: weakref.ref[Tensor]
    state: tuple[object, ...]
    operands: dict[tuple[int | None, bool], Operand] = field(default_factory=dict)


@dataclass(slots=True)
class _Input:
    """The tensor that was hidden last; kept alive, so that its address is nobody else's."""

    tensor: Tensor
    state: tuple[object, ...]
    operand: Operand


class _Pass(threading.local):
    """What one thread's forward pass of the model has at hand."""

    def __init__(self) -> None:
        self.taps: dict[int, Tap] | None = None
        self.input: _Input | None = None


class Engine:
    """A :class:`~cloister.offload.Multiplier` by one mode.

    Args:
        arithmetic: The mode at work.
        numerics: How numbers become integers.
        verdict: Where failed checks go.
        meter: Where times and bytes go.
        rounding: The stochastic rounding's bytes; seeded from torch's generator when left out, so that
            ``torch.manual_seed`` before the conversion makes a run repeatable.
        public_weights: Whether the mode shows frozen weights.
    """

    def __init__(
        self,
        arithmetic: Arithmetic,
        *,
        numerics: Numerics,
        verdict: Verdict,
        meter: Meter,
        rounding: RoundingStream | None = None,
        public_weights: bool = False,
    ) -> None:
        self.arithmetic = arithmetic
        self.numerics = numerics
        self.verdict = verdict
        self.meter = meter
        self.rounding = rounding or RoundingStream.seeded()
        self.step = 0
        self._public = public_weights
        self._weights: dict[tuple[object, ...], _Known] = {}
        self._parameters: dict[int, weakref.ref[Tensor]] = {}
        self._drawn: list[int] = []  # bytes of rounding in this pass, to be made ahead in the next
        self._pass = _Pass()
        self._lock = threading.RLock()
        _open_engines.add(self)

    # ---- the seam to the model ---------------------------------------------------------------------------------

    def enter(self) -> None:
        """See :class:`~cloister.offload.Multiplier`.

        Raises:
            IntegrityError: 5701 when a check failed before.
        """
        training = torch.is_grad_enabled()
        if torch._C._current_graph_task_id() == _NO_BACKWARD:  # else autograd recomputes a part: the pass goes on
            self.verdict.settle()
            self.step += 1
        self.arithmetic.begin(training=training)
        drawn, self._drawn = self._drawn, []
        if training:
            self.rounding.prefetch(*drawn)
        self._pass.taps = {}
        if training:
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
        self._pass.input = None
        if not training:
            self.verdict.settle()

    def multiply(self, layer: Layer, x: Tensor, w: Tensor) -> Tensor:
        """See :class:`~cloister.offload.Multiplier`."""
        call = Call(self, layer, x, w, training=torch.is_grad_enabled())
        if not (torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)):
            return call.forward(x)
        found = self._tap(layer, w)
        if found is None:
            return Multiply.apply(x, w, None, call)
        call.tap = found
        return Multiply.apply(x, None, found.token, call)

    def close(self) -> None:
        """Ends the workers' sessions."""
        self.arithmetic.close()

    # ---- tensors -----------------------------------------------------------------------------------------------

    def weight(self, layer: Layer, w: Tensor, product: Product, *, training: bool) -> Operand:
        """A weight's operand for one product: the one that is shared already, or a new one."""
        parameter = weight_of(w)
        how = self._how(self._scale_axis(product), training=training)
        if parameter is None:
            return self._operand(layer, "w", w, how, product, public=False)
        key = (id(parameter), w.storage_offset(), tuple(w.shape), w.stride())
        state = (parameter._version, w.data_ptr(), self.numerics)
        with self._lock:
            known = self._weights.get(key)
            if known is None or known.weight() is not parameter or known.state != state:
                if len(self._weights) >= _WEIGHTS_KEPT:
                    self._weights.clear()
                known = self._weights[key] = _Known(weakref.ref(parameter), state)
            which = (how.axis, how.rounding is not None)
            if which not in known.operands:
                public = self._public and layer.weight == "frozen"
                known.operands[which] = self._operand(layer, "w", w, how, product, public=public)
            return known.operands[which]

    def input(self, layer: Layer, x: Tensor, product: Product, *, training: bool) -> Operand:
        """The operand of a layer's input."""
        how = self._how(None, training=training)
        if x.is_inference() or self.arithmetic.one_product:
            return self._operand(layer, "x", x, how, product, public=False)
        state = (x.data_ptr(), tuple(x.shape), x.stride(), x._version, how.rounding is not None)
        last = self._pass.input
        if last is not None and last.state == state:
            return last.operand
        operand = self._operand(layer, "x", x, how, product, public=False)
        self._pass.input = _Input(x.detach(), state, operand)
        return operand

    def gradient(self, layer: Layer, dy: Tensor, product: Product) -> Operand:
        """The operand of an output's gradient."""
        return self._operand(layer, "y", dy, self._how(None, training=True), product, public=False)

    def forget_weights(self) -> None:
        """Shares every weight anew at its next use."""
        with self._lock:
            self._weights.clear()

    def ask(self, layer: Layer, product: Product, left: Operand, right: Operand) -> Pending:
        """Begins a product.

        Raises:
            UnsupportedError: 8701 when it cannot be cut so that the ring holds it.
        """
        bits = left.quantised.bits, right.quantised.bits
        cuts = parts(product, left_bits=bits[0], right_bits=bits[1], limit=self.arithmetic.limit, layer=layer.name)
        with self.meter.stage(layer.name, "ask"):
            self.meter.product(layer.name, product, max(bits))
            asked = [
                (part, self.arithmetic.ask(part, left, right, product=product, index=index, whole=len(cuts) == 1))
                for index, part in enumerate(cuts)
            ]
        return Pending(
            layer.name, product, left, right, asked, self.arithmetic.checked, self.step, self.meter, self.verdict
        )

    # ---- inside ------------------------------------------------------------------------------------------------

    def _operand(
        self, layer: Layer, stream: Literal["x", "w", "y"], values: Tensor, how: Quantising, product: Product, *,
        public: bool,
    ) -> Operand:  # fmt: skip
        with self._lock, self.meter.stage(layer.name, "hide") as use:
            operand = self.arithmetic.operand(stream, values.detach(), how, public=public, product=product)
            use.clipped += operand.quantised.clipped
            if how.rounding is not None:
                self._drawn.append(values.numel())
        return operand

    def _how(self, axis: int | None, *, training: bool) -> Quantising:
        stochastic = training and self.numerics.rounding == "stochastic"
        return Quantising(self.numerics.bits, axis, self.rounding if stochastic else None)

    def _scale_axis(self, product: Product) -> int | None:
        """The axis along which a weight's scales may vary in a product."""
        if self.numerics.scales == "tensor":
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
        self._weight: Operand | None = None
        self._input: Operand | None = None
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
            axis = self._weight.quantised.axis
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

    pending: Pending
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

"""The broker: a launcher's half of a stage's offloading, beside the sandbox and not in it.

The script has the model and its autograd; the broker has the workers' links, the masks' keys, the checks and the
verdict. The script says "this tensor is layer 7's input" and "multiply these two": what then leaves the enclave is
decided here, by the mode that the manifest names.

Rules:

* A script that was taken over has no socket, no mask's key and no mask. What it can still tell a worker is what every
  script can: shapes, numbers of products, times; and in the modes that show something, what they show, such as anything
  that it calls a public weight.
* Nothing the script says is believed. Sizes, places, shapes and numbers are checked before memory is touched, since
  compiled kernels read it next to keys. Of the shared memory a tensor is read once.
* One thread does what comes, in order. The first command that fails is the last that is done; the next answer says why.
* The verdict is the broker's. A script that swallows 5701, or a link's error, ends its stage with it all the same.

A little longer than our cap of 400 lines: what a script may ask for is looked at in one place.
"""

from __future__ import annotations

import os
import secrets
import threading
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cloister.errors import CloisterError, InputError, InternalError, PeerError
from cloister.offload._allowance import Allowance
from cloister.offload._arena import Arena, make_arena
from cloister.offload._blinding import Blinding
from cloister.offload._brokered import close_channel
from cloister.offload._costs import Costs
from cloister.offload._exchange import Exchange
from cloister.offload._meter import Meter
from cloister.offload._orders import (
    MAX_ORDER_BYTES,
    Ask,
    Begin,
    Close,
    Collect,
    Forget,
    Hide,
    Measure,
    Open,
    Order,
    Prepare,
    Reply,
    Rounding,
    Said,
    Settle,
    Tell,
    Used,
    Where,
    receive,
    send,
)
from cloister.offload._products import ProductsHere
from cloister.offload._schemes import SCHEMES
from cloister.offload._stage import VARIABLE, StageTerms
from cloister.offload._verdict import Verdict
from cloister.ring import survives
from cloister.wire import parse_message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cloister.offload._operands import Operand
    from cloister.offload._orders import Command
    from cloister.offload._pending import Pending
    from cloister.offload._schemes import Mode
    from cloister.offload._workers import Worker
    from cloister.ring import Product
    from cloister.wire import SealingKey

__all__ = ["Broker", "Ended"]

T = TypeVar("T")

_MODELS = 64
_NUMBERED = 1 << 16  # operands, and products, of one model at one time
_LAYERS = 1 << 12  # names that one model is counted under
_JOIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What a stage's offloading came to.

    Attributes:
        code: 5701 when any check failed, whatever else happened; else that of the first link or worker that failed;
            None when all went well. A model's own error (a value that is no number) is the script's, and not here.
        models: How many were converted.
        products: How many products the script was given.
        checks: How many answers were checked.
        error: The greatest probability with which one check lets a wrong answer pass; None without checks.
        sent_bytes: As tensors, to all workers; a plan's trial products are among them.
        received_bytes: The same, from them.
        late: Blinding products that were not ready when they were needed.
        evidence: With 5701, what failed, sealed to each party; of one size whatever it says.
    """

    code: int | None
    models: int
    products: int
    checks: int
    error: Fraction | None
    sent_bytes: int
    received_bytes: int
    late: int
    evidence: Mapping[str, bytes]


@dataclass(slots=True)
class _Model:
    """One conversion."""

    products: ProductsHere
    exchange: Exchange
    meter: Meter
    workers: Sequence[Worker]
    operands: dict[int, tuple[Operand, tuple[int, ...]]] = field(default_factory=dict)
    pending: dict[int, tuple[Pending, Product]] = field(default_factory=dict)
    checks: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class Broker:
    """Serves the script of one attempt; a context manager.

    Args:
        mode: The stage's, from its manifest.
        connect: Makes the mode's workers, not started; called once for each model that the script converts, since a
            session has masks of its own.
        workers: Their names, for the script's report.
        memory_bytes: Of the memory that is shared with the script, taken as it is used, and at most as much again for
            each kind of thing that is kept for it: see :class:`~cloister.offload._allowance.Allowance`.
        parties: Who may read what a failed check was.

    Security: outlives nothing. Keys of masks are drawn for each model and are gone with :meth:`end`.
    """

    def __init__(
        self,
        mode: str,
        connect: Callable[[], Sequence[Worker]],
        *,
        workers: Sequence[str] = (),
        memory_bytes: int,
        parties: Mapping[str, SealingKey],
    ) -> None:
        if mode != "enclave" and mode not in SCHEMES:
            raise InputError(2713, expected=f"mode enclave, {', '.join(SCHEMES)}", got=mode)
        self.environment: dict[str, str] = {}
        self.descriptors: tuple[int, ...] = ()
        self._mode, self._connect, self._names = mode, connect, tuple(workers)
        self._memory_bytes = memory_bytes
        self._session = secrets.token_hex(16)
        self._verdict = Verdict(parties=parties)
        self._models: dict[int, _Model] = {}
        self._closed: list[_Model] = []
        self._products = 0
        self._fault: CloisterError | None = None  # the script is told
        self._code: int | None = None  # the host is told
        self._own: list[int] = []
        self._ending = False
        self._thread: threading.Thread | None = None
        self._ended: Ended | None = None
        self._allowance = Allowance(memory_bytes)

    def __enter__(self) -> Broker:
        terms: dict[str, Any] = {"session": self._session, "mode": self._mode, "workers": self._names}
        if self._mode != "enclave":
            memory = make_arena(self._memory_bytes)
            self._arena = Arena(memory)
            self._orders, orders = os.pipe()
            answers, self._answers = os.pipe()
            self._until, self._stop = os.pipe()
            for end in (self._orders, self._answers):
                os.set_blocking(end, False)
            self.descriptors = (memory, orders, answers)
            self._own = [self._orders, self._until, self._stop]
            terms |= {"memory": memory, "orders": orders, "answers": answers}
            self._thread = threading.Thread(target=self._serve, name="offload broker", daemon=True)
            self._thread.start()
        self.environment = {VARIABLE: StageTerms.model_validate(terms).canonical().decode()}
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def wrong(self) -> bool:
        """Whether a check has failed; true before the script has the zeros that stand for the wrong product."""
        return self._verdict.failed

    def end(self) -> Ended:
        """Ends every session, once the script is dead; the same answer at every call."""
        if self._ended is None:
            if self._thread is not None:
                self._ending = self._allowance.ended = True
                close_channel(self._session)
                os.write(self._stop, b"!")
                for model in list(self._models.values()):
                    model.products.close()  # whoever waits for a worker is told
                self._thread.join(_JOIN_S)
                for model in list(self._models.values()):
                    model.products.close()  # one that was being opened too
                # A thread that still multiplies keeps its own: their numbers could be other files' when it looks.
                for handle in (*self.descriptors, *(() if self._thread.is_alive() else self._own)):
                    os.close(handle)
            self._ended = self._sum()
        return self._ended

    def _sum(self) -> Ended:
        failed = self._verdict.failed
        models = [*self._closed, *self._models.values()]
        errors = [model.meter.error for model in models if model.meter.error is not None]
        sides = [_bytes(model) for model in models]
        return Ended(
            code=5701 if failed else self._code,
            models=len(models),
            products=self._products,
            checks=sum(model.checks + _checks(model) for model in models),
            error=max(errors, default=None),
            sent_bytes=sum(sent for sent, _ in sides),
            received_bytes=sum(received for _, received in sides),
            late=sum(model.products.tally().late for model in models),
            evidence=self._verdict.sealed() if failed else {},
        )

    # ---- the thread --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while True:
                body = receive(self._orders, most_bytes=MAX_ORDER_BYTES, until=self._until)
                command = parse_message(Order, body, what="order", max_bytes=MAX_ORDER_BYTES, secret=True).command
                answered = isinstance(command, (Open, Collect, Settle, Prepare, Measure, Rounding, Tell))
                reply = self._done(command)
                if answered:
                    send(self._answers, reply.canonical(), until=self._until)
        except CloisterError:  # the script is dead, or speaks nonsense: it reads the end of its answers
            pass
        finally:
            os.close(self._answers)

    def _done(self, command: Command) -> Reply:
        """Does a command, unless one failed before."""
        if self._fault is None:
            try:
                return self._do(command) or Reply()
            except CloisterError as error:
                self._note(error)
                self._fault = error
            except Exception as error:
                self._fault = InternalError(9001, f"{type(error).__name__} in the offload broker")
                self._note(self._fault)
        said = {name: value for name, value in self._fault.as_json().items() if name in Said.model_fields}
        return Reply(error=Said.model_validate({name: _text(name, value) for name, value in said.items()}))

    def _note(self, error: CloisterError) -> None:
        """Keeps the code of what is the workers' or our own doing, for the host."""
        if error.code // 1000 in (5, 6, 9) and error.code != 5701 and self._code is None and not self._ending:
            self._code = error.code

    def _do(self, command: Command) -> Reply | None:
        if isinstance(command, Open):
            return self._open(command)
        model = self._models.get(command.model)
        if model is None:
            raise InputError(2729, "the model is not open")
        products = model.products
        match command:
            case Begin():
                products.begin(training=command.training, again=command.again)
            case Hide():
                self._hide(model, command)
            case Ask():
                self._ask(model, command)
            case Collect():
                self._collect(model, command)
            case Forget():
                for operand in command.operands:
                    _known(model.operands, operand)
                    del model.operands[operand]
                for number in command.products:
                    self._taken(model, number)
            case Settle():
                return Reply(failed=self._verdict.failed)
            case Prepare():
                return Reply(count=products.prepare(command.passes))
            case Measure():
                costs = Costs.measure(model.workers, SCHEMES[cast("Mode", self._mode)], meter=model.meter)
                return Reply(costs={name: value.hex() for name, value in costs.as_json().items()})
            case Rounding():
                if command.state is not None:
                    products.rounding = command.state.state()
                return Reply(rounding=Where.of(products.rounding))
            case Tell():
                return _told(model, clear=command.clear)
            case Close():
                products.close()
                model.operands.clear()
                for number in tuple(model.pending):
                    self._taken(model, number)
                self._closed.append(self._models.pop(command.model))
            case _:
                raise InputError(2729, "unknown command")
        return None

    def _open(self, command: Open) -> Reply:
        if command.model in self._models or len(self._models) + len(self._closed) >= _MODELS:
            raise InputError(2729, expected=f"at most {_MODELS} models, each under a number of its own")
        scheme = SCHEMES[cast("Mode", self._mode)]
        meter = Meter()
        workers = list(self._connect())
        blinding = Blinding(self._allowance.store()) if scheme.precomputed else None
        exchange = Exchange(scheme, workers, blinding=blinding, meter=meter, ahead=self._allowance.ahead)
        products = ProductsHere(
            exchange,
            bits=command.bits,
            meter=meter,
            verdict=self._verdict,
            rounding=command.rounding.state(),
            ahead=self._allowance.ahead,
        )
        self._models[command.model] = _Model(products, exchange, meter, workers)
        return Reply(one_product=products.one_product)

    def _hide(self, model: _Model, command: Hide) -> None:
        product = command.form.product()
        shape = {"x": product.x, "w": product.w, "y": product.y}[command.stream]
        if command.axis is not None and not -len(shape) <= command.axis < len(shape):
            raise InputError(2729, expected=f"an axis of {len(shape)}", got=command.axis)
        _require_layer(model, command.layer)
        if command.operand in model.operands or len(model.operands) >= _NUMBERED:
            raise InputError(2729, expected=f"at most {_NUMBERED} operands, each under a number of its own")
        self._allowance.require_operand(_count(shape))
        operand = model.products.hide(
            command.layer,
            command.stream,
            self._arena.tensor(command.at, shape),
            product=product,
            axis=command.axis,
            stochastic=command.stochastic,
            public=command.public,
            exponent=command.exponent,
        )
        model.operands[command.operand] = (operand, tuple(shape))
        self._allowance.hold(operand, _count(shape))

    def _collect(self, model: _Model, command: Collect) -> None:
        pending, product = self._taken(model, command.product)
        target = self._arena.tensor(command.at, product.result)
        try:
            values = pending.result()
        except InputError:  # in a worker's words: what the script asked for was looked at before
            self._note(PeerError(6707))
            raise
        target.copy_(values)
        self._products += 1

    def _taken(self, model: _Model, number: int) -> tuple[Pending, Product]:
        found = _known(model.pending, number)
        del model.pending[number]
        self._allowance.release(found[1])
        return found

    def _ask(self, model: _Model, command: Ask) -> None:
        product = command.form.product()
        left, left_shape = _known(model.operands, command.left)
        right, right_shape = _known(model.operands, command.right)
        if (left_shape, right_shape) != (tuple(product.left), tuple(product.right)):
            raise InputError(
                2729, expected=f"operands {product.left}, {product.right}", got=f"{left_shape}, {right_shape}"
            )
        _require_layer(model, command.layer)
        for operand, stream in zip((left, right), product.operands, strict=True):
            if not survives(product, stream, operand.axis):
                raise InputError(2729, expected="no scale along what is summed over", got=f"axis {operand.axis}")
        for term in SCHEMES[cast("Mode", self._mode)].terms:
            if (term.worker, term.left) not in left.handles or (term.worker, term.right) not in right.handles:
                raise InputError(2729, expected=f"a {term.left} and a {term.right} operand")
        if command.product in model.pending or len(model.pending) >= _NUMBERED:
            raise InputError(2729, expected=f"at most {_NUMBERED} products, each under a number of its own")
        self._allowance.require_product(product)
        model.pending[command.product] = (model.products.ask(command.layer, product, left, right), product)
        self._allowance.promise(product)


def _known(table: Mapping[int, T], number: int) -> T:
    if number not in table:
        raise InputError(2729, expected="a number that was given before", got=number)
    return table[number]


def _told(model: _Model, *, clear: bool) -> Reply:
    tally = model.products.tally()
    error = None if tally.error is None else f"{tally.error.numerator}/{tally.error.denominator}"
    reply = Reply(
        uses=tuple(Used.of(layer, use) for layer, use in tally.uses.items()), check_error=error, count=tally.late
    )
    if clear:
        model.checks += _checks(model)
        model.sent_bytes, model.received_bytes = _bytes(model)
        model.products.clear()
    return reply


def _bytes(model: _Model) -> tuple[int, int]:
    """Sent to all workers and received from them, whatever the script's report has forgotten."""
    sides = tuple(model.meter.by_worker.values())
    return model.sent_bytes + sum(sent for sent, _ in sides), model.received_bytes + sum(got for _, got in sides)


def _require_layer(model: _Model, name: str) -> None:
    if name not in model.meter.uses and len(model.meter.uses) >= _LAYERS:
        raise InputError(2729, expected=f"at most {_LAYERS} layers")


def _checks(model: _Model) -> int:
    return sum(use.checks for use in model.meter.uses.values())


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _text(name: str, value: object) -> object:
    return value if name == "code" or value is None else str(value)

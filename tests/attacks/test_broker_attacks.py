"""A script that was taken over, against its broker's memory, its counts and its end."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.attacks.test_broker import READER, Script, flipped
from tests.modes import Spy

from cloister.errors import error_for
from cloister.offload import Broker, Worker
from cloister.offload._blinding import Blinding
from cloister.offload._commands import Compute, form_of
from cloister.offload._orders import Ask, Begin, Close, Collect, Forget, Hide, Open, Prepare, Settle, Tell, Where
from cloister.offload._schemes import SCHEMES
from cloister.ring import Conv2d, MatMul, Product

MEMORY = 1 << 20
SMALL = Product(MatMul(), "forward", x=(4, 8), w=(5, 8))


class Silent(Spy):
    """Takes everything and never answers a product."""

    def submit(self, command: Any, tensor: Any = None) -> Any:
        return Future() if isinstance(command, Compute) else super().submit(command, tensor)


@contextmanager
def stage(mode: str, kind: Any = Spy, **options: Any) -> Iterator[tuple[Broker, Script]]:
    def connect() -> Sequence[Worker]:
        return [kind(f"worker-{index}", **options) for index in range(SCHEMES[mode].workers)]  # type: ignore[index]

    with Broker(mode, connect, memory_bytes=MEMORY, parties={"hospital": READER.public}) as found:
        script = Script(found)
        script.opened()
        yield found, script


def opened(script: Script, model: int) -> None:
    script.say(Open(model=model, bits=8, rounding=Where(key="00" * 32, counter=0)))
    assert "error" not in script.hear()


def hide(operand: int, product: Product = SMALL, stream: str = "x", **changed: Any) -> Hide:
    facts = {"model": 1, "layer": "l", "form": form_of(product), "at": 0, "stochastic": False, "public": False}
    return Hide.model_validate({"operand": operand, "stream": stream, **facts, **changed})


def ask(number: int, left: int, right: int, product: Product = SMALL, **changed: Any) -> Ask:
    facts = {"model": 1, "layer": "l", "form": form_of(product)}
    return Ask.model_validate({"product": number, "left": left, "right": right, **facts, **changed})


@pytest.mark.parametrize(
    "product",
    [
        pytest.param(Product(MatMul(), "forward", x=(1 << 15, 1), w=(1 << 15, 1)), id="an outer product"),
        pytest.param(
            Product(Conv2d(padding=(1 << 20, 1 << 20)), "forward", x=(1, 1, 1, 1), w=(1, 1, 1, 1)),
            id="a border that is a result",
        ),
        pytest.param(
            Product(Conv2d((1 << 20,) * 2, (1 << 20,) * 2), "forward", x=(1, 1, 1, 1), w=(1, 1, 1, 1)),
            id="a border around nearly nothing",
        ),
        pytest.param(
            Product(Conv2d(), "forward", x=(1, 1, 1, 1 << 17), w=(1, 1, 1, 1 << 17)), id="a check of every tap"
        ),
        pytest.param(
            Product(Conv2d((1 << 20, 1), (0, 1 << 15)), "weight_gradient", x=(1, 1, 1 << 14, 1), w=(1, 1, 1 << 14, 1)),
            id="lines as long as the result and as many as the input's",
        ),
    ],
)
def test_2729_a_small_order_for_a_large_product(product: Product) -> None:
    """A launcher that died of it would be tried again, and the findings of a lie would be gone."""
    first, second = product.operands
    with stage("verify", Silent) as (found, script):
        script.say(hide(1, product, first))
        script.say(hide(2, product, second))
        assert script.code() is None
        script.say(ask(1, 1, 2, product))
        assert script.code() == 2729
    assert found.end().code is None


def test_2729_results_that_are_never_fetched() -> None:
    wide = Product(MatMul(), "forward", x=(256, 1), w=(256, 1))  # a result of 256 KiB
    with stage("verify", Silent) as (_, script):
        script.say(hide(1, wide))
        script.say(hide(2, wide, "w"))
        for number in range(4):
            script.say(ask(number, 1, 2, wide))
        assert script.code() is None
        script.say(Forget(model=1, products=(0,)))
        script.say(ask(4, 1, 2, wide))
        assert script.code() is None
        script.say(ask(5, 1, 2, wide))
        assert script.code() == 2729


def test_2729_forgotten_tensors_that_a_product_still_needs() -> None:
    long = Product(MatMul(), "forward", x=(1, 1 << 17), w=(1, 1 << 17))  # 128 KiB as integers
    with stage("verify", Silent) as (_, script):
        for number in range(5):
            script.say(hide(2 * number, long))
            script.say(hide(2 * number + 1, long, "w"))
            script.say(ask(number, 2 * number, 2 * number + 1, long))
            script.say(Forget(model=1, operands=(2 * number, 2 * number + 1)))
        assert script.code() == 2729


def test_tensors_that_nobody_needs_are_not_counted() -> None:
    long = Product(MatMul(), "forward", x=(1, 1 << 17), w=(1, 1 << 17))
    with stage("verify") as (found, script):
        for number in range(10):
            script.say(hide(2 * number, long))
            script.say(hide(2 * number + 1, long, "w"))
            script.say(ask(number, 2 * number, 2 * number + 1, long))
            script.say(Collect(model=1, product=number, at=0))
            assert "error" not in script.hear()
            script.say(Forget(model=1, operands=(2 * number, 2 * number + 1)))
        assert script.code() is None
    assert found.end().products == 10


def test_2729_the_same_memory_for_each_of_many_models() -> None:
    long = Product(MatMul(), "forward", x=(1, 1 << 17), w=(1, 1 << 17))
    with stage("verify") as (_, script):
        for model in range(1, 4):
            if model > 1:
                opened(script, model)
            for operand in range(4):
                script.say(hide(operand, long, model=model))
        assert script.code() == 2729


def test_2729_more_passes_made_ahead_than_there_is_memory() -> None:
    product = Product(MatMul(), "forward", x=(128, 8), w=(128, 8))  # 64 KiB a product
    with stage("blind") as (found, script):
        script.say(hide(1, product))
        script.say(hide(2, product, "w", public=True))
        script.say(ask(1, 1, 2, product))
        script.say(Prepare(model=1, passes=1 << 20))
        assert script.hear()["error"]["code"] == 2729
    assert found.end().code is None


def test_what_is_made_ahead_ends_with_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that went on for hours would hold a launcher up that has outputs to seal."""
    begun, go = threading.Event(), threading.Event()
    multiply = Blinding._multiply

    def slow(self: Blinding, *arguments: Any) -> Any:
        begun.set()
        assert go.wait(20)
        return multiply(self, *arguments)

    with stage("blind") as (found, script):
        script.say(hide(1))
        script.say(hide(2, stream="w", public=True))
        assert script.code() is None
        monkeypatch.setattr(Blinding, "_multiply", slow)
        go.set()
        script.say(ask(1, 1, 2))
        assert script.code() is None
        begun.clear()
        go.clear()
        script.say(Prepare(model=1, passes=1 << 20))
        assert begun.wait(20)
        close = found._models[1].products.close
        monkeypatch.setattr(found._models[1].products, "close", lambda: (go.set(), close()))
        found.end()
        assert found._thread is not None
        assert not found._thread.is_alive()
        assert found._allowance._stored_bytes == 0


def test_keystream_that_is_made_ahead_is_bounded_over_all_models_and_gone_with_them() -> None:
    wide = Product(MatMul(), "forward", x=(128, 256), w=(4, 256))  # 128 KiB of masks, 32 KiB of rounding
    with stage("shared3") as (found, script):
        for model in range(1, 6):
            if model > 1:
                opened(script, model)
            for operand in range(3):
                script.say(hide(operand, wide, model=model, stochastic=True))
                script.say(Forget(model=model, operands=(operand,)))
            script.say(Begin(model=model, training=True, again=False))
        assert script.code() is None  # what does not fit is made when it is needed
        assert MEMORY // 2 < found._allowance.ahead.used_bytes <= MEMORY
        for model in range(2, 6):
            script.say(Close(model=model))
        assert script.code() is None
        assert found._allowance.ahead.used_bytes <= 3 * (128 + 32) << 10
    assert found._allowance.ahead.used_bytes == 0


def test_2729_names_of_layers_without_end() -> None:
    with stage("verify") as (_, script):
        for number in range(4097):
            script.say(hide(number, layer=f"layer {number}"))
            if number % 1024 == 1023:
                script.say(Forget(model=1, operands=tuple(range(number - 1023, number + 1))))
        assert script.code() == 2729


@pytest.mark.parametrize(
    ("mode", "commands"),
    [
        pytest.param(
            "verify", [hide(1, axis=-1), hide(2, stream="w"), ask(1, 1, 2)], id="scales along what is summed over"
        ),
        pytest.param("blind", [hide(1), hide(2, stream="w"), ask(1, 1, 2)], id="a private weight"),
        pytest.param(
            "blind", [hide(1, public=True), hide(2, stream="w", public=True), ask(1, 1, 2)], id="a public input"
        ),
    ],
)
def test_2729_operands_that_the_mode_does_not_multiply(mode: str, commands: list[Any]) -> None:
    """Else the host is told 9001 or 9702, a code of the script's choice that is not one of a script."""
    with stage(mode) as (found, script):
        for command in commands:
            script.say(command)
        script.say(Collect(model=1, product=1, at=0))
        assert script.hear()["error"]["code"] == 2729
    assert found.end().code is None


def test_a_mask_that_was_drawn_for_one_product_serves_another_without_a_false_verdict() -> None:
    """A script could make a worker look like a liar by asking for another product than it hid for."""
    image = {"x": (1, 1, 8, 8), "w": (1, 1, 3, 3)}
    one = Product(Conv2d(padding=(1, 1)), "forward", **image)
    other = Product(Conv2d(padding=(2, 2), dilation=(2, 2)), "forward", **image)
    with stage("blind") as (found, script):
        script.memory[: 4 * 64] = torch.randn(64).numpy().tobytes()
        script.say(hide(1, one))
        script.say(hide(2, one, "w", public=True))
        script.say(ask(1, 1, 2, one))
        script.say(Prepare(model=1, passes=1))
        assert script.hear()["count"] == 1
        script.say(hide(3, one))
        script.say(ask(2, 3, 2, other))
        script.say(Collect(model=1, product=2, at=4096))
        assert "error" not in script.hear()
    ended = found.end()
    assert (ended.code, ended.late) == (None, 2)


def test_a_report_that_was_cleared_does_not_clear_the_receipt() -> None:
    sums = []
    for clear in (False, True):
        with stage("verify") as (found, script):
            for command in (hide(1), hide(2, stream="w"), ask(1, 1, 2), Collect(model=1, product=1, at=0)):
                script.say(command)
            script.hear()
            for _ in range(2):
                script.say(Tell(model=1, clear=clear))
                script.hear()
            script.say(Close(model=1))
            ended = found.end()
        sums.append((ended.products, ended.checks, ended.sent_bytes, ended.received_bytes))
    assert sums[0] == sums[1] == (1, 1, 72, 80)


def test_a_thread_that_still_works_keeps_its_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers would be other files': an output that is being sealed, by the time the thread writes its answer."""
    go, begun = threading.Event(), threading.Event()

    def slow(self: Any, command: Any) -> None:
        begun.set()
        go.wait(20)

    monkeypatch.setattr("cloister.offload._broker._JOIN_S", 0.05)
    with stage("verify") as (found, script):
        monkeypatch.setattr(Broker, "_do", slow)
        script.say(Settle(model=1))
        assert begun.wait(20)
        found.end()
        for handle in found._own:
            os.fstat(handle)
        go.set()
        assert found._thread is not None
        found._thread.join(20)
        for handle in found._own:
            os.close(handle)


@pytest.mark.parametrize(("said", "told"), [(2710, 6707), (2702, 6707), (6701, 6701), (6709, 6709)])
def test_a_worker_that_refuses_is_the_hosts_to_know_though_the_script_says_nothing(said: int, told: int) -> None:
    """Told in the words of an order that does not fit, it would look like the script's own fault."""

    class Refuses(Spy):
        def submit(self, command: Any, tensor: Any = None) -> Any:
            if not isinstance(command, Compute):
                return super().submit(command, tensor)
            refused: Future[Any] = Future()
            refused.set_exception(error_for(said, got="said by the worker"))
            return refused

    with stage("verify", Refuses) as (found, script):
        for command in (hide(1), hide(2, stream="w"), ask(1, 1, 2), Collect(model=1, product=1, at=0)):
            script.say(command)
        assert script.hear()["error"]["code"] == said
    assert found.end().code == told


def test_a_link_that_was_being_opened_at_the_end_is_ended_too() -> None:
    found: Broker
    begun = threading.Event()
    closed: list[str] = []

    class Late(Spy):
        def start(self, keys: Any) -> None:
            begun.set()
            while not found._ending:
                begun.wait(0.01)
            super().start(keys)

        def close(self) -> None:
            closed.append(self.name)
            super().close()

    with Broker("verify", lambda: [Late("worker-0")], memory_bytes=MEMORY, parties={}) as found:
        Script(found).say(Open(model=1, bits=8, rounding=Where(key="00" * 32, counter=0)))
        assert begun.wait(20)
    assert "worker-0" in closed  # by the broker and, when that comes first, by whoever opened it: once is enough


def test_5701_outlives_a_script_that_asks_for_too_much() -> None:
    """The verdict comes before what the script did to end otherwise."""
    huge = Product(MatMul(), "forward", x=(1 << 15, 1), w=(1 << 15, 1))
    with stage("verify", lie=flipped) as (found, script):
        for command in (hide(1), hide(2, stream="w"), ask(1, 1, 2), Collect(model=1, product=1, at=0)):
            script.say(command)
        assert "error" not in script.hear()
        for command in (hide(3, huge), hide(4, huge, "w"), ask(2, 3, 4, huge)):
            script.say(command)
        assert script.code() == 2729
    ended = found.end()
    assert ended.code == 5701
    assert set(ended.evidence) == {"hospital"}


def test_a_broker_that_ended_is_gone_and_its_verdict_with_it() -> None:
    """A verdict holds back every optimizer of its process, which may be another script's by then."""
    with stage("verify", lie=flipped) as (found, script):
        for command in (hide(1), hide(2, stream="w"), ask(1, 1, 2), Collect(model=1, product=1, at=0)):
            script.say(command)
        assert "error" not in script.hear()
    assert found.end().code == 5701
    verdict = weakref.ref(found._verdict)
    gc.disable()
    try:
        del found
        assert verdict() is None
    finally:
        gc.enable()

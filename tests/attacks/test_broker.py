"""A stage's script that was taken over, against the launcher's broker: what it may not reach, break or hide."""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from tests.modes import Spy, batches, plain_net
from torch import nn
from torch.nn import functional as F

from cloister.errors import CloisterError, InternalError, PeerError
from cloister.offload import Broker, Worker, offload
from cloister.offload._brokered import channel_of
from cloister.offload._commands import form_of
from cloister.offload._orders import Ask, Begin, Collect, Forget, Hide, Open, Order, Settle, Where, receive, send
from cloister.offload._stage import VARIABLE, StageTerms
from cloister.offload._verdict import EVIDENCE_INFO
from cloister.ring import MaskKey, MatMul, Product
from cloister.wire import OpeningKey

PRODUCT = Product(MatMul(), "forward", x=(4, 8), w=(5, 8))
READER = OpeningKey.generate()


class Script:
    """A script that speaks to its broker by itself."""

    def __init__(self, broker: Broker) -> None:
        self.terms = StageTerms.model_validate_json(broker.environment[VARIABLE])
        assert self.terms.memory is not None
        self.memory = mmap.mmap(self.terms.memory, os.fstat(self.terms.memory).st_size)

    def say(self, command: Any) -> None:
        assert self.terms.orders is not None
        send(self.terms.orders, Order(command=command).canonical())

    def hear(self) -> dict[str, Any]:
        assert self.terms.answers is not None
        return json.loads(receive(self.terms.answers, most_bytes=1 << 22))

    def opened(self) -> None:
        self.say(Open(model=1, bits=8, rounding=Where(key="00" * 32, counter=0)))
        assert "error" not in self.hear()

    def code(self) -> int | None:
        """What the next answer says was wrong."""
        self.say(Settle(model=1))
        return self.hear().get("error", {}).get("code")


@contextmanager
def broker(
    mode: str = "shared3", *, lie: Any = None, workers: Callable[[], Sequence[Worker]] | None = None
) -> Iterator[Broker]:
    count = {"verify": 1, "shared3": 3}[mode]

    def connect() -> Sequence[Worker]:
        return [Spy(f"worker-{index}", lie=lie if index == 0 else None) for index in range(count)]

    parties = {"hospital": READER.public}
    with Broker(mode, workers or connect, memory_bytes=1 << 20, parties=parties) as found:
        yield found


def hide(operand: int, **changed: Any) -> Hide:
    facts = {"layer": "l", "stream": "x", "form": form_of(PRODUCT), "at": 0, "stochastic": False, "public": False}
    return Hide.model_validate({"model": 1, "operand": operand, **facts, **changed})


def ask(product: int, left: int, right: int) -> Ask:
    return Ask(model=1, product=product, layer="l", form=form_of(PRODUCT), left=left, right=right)


@pytest.mark.parametrize("at", [1 << 20, (1 << 20) - 64, 4, (1 << 52)])
def test_2727_a_place_outside_of_the_memory_or_askew(at: int) -> None:
    with broker() as found:
        script = Script(found)
        script.opened()
        script.say(hide(1, at=at))
        assert script.code() == 2727


def test_2727_an_answer_is_not_written_outside(tmp_path: Any) -> None:
    with broker() as found:
        script = Script(found)
        script.opened()
        for command in (hide(1), hide(2, stream="w"), ask(1, 1, 2)):
            script.say(command)
        script.say(Collect(model=1, product=1, at=(1 << 20) - 64))
        assert script.hear()["error"]["code"] == 2727


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param([hide(1), hide(2), ask(1, 1, 2)], id="operands of other shapes than the product's"),
        pytest.param([hide(1), hide(2, stream="w"), ask(1, 2, 1)], id="operands the other way round"),
        pytest.param([hide(1), hide(1)], id="a number twice"),
        pytest.param([hide(1, axis=2)], id="an axis that is not there"),
        pytest.param([hide(1, axis=-3)], id="an axis before the first"),
        pytest.param([hide(1), hide(2, stream="w"), ask(1, 1, 2), ask(1, 1, 2)], id="a product twice"),
        pytest.param([Begin(model=2, training=False, again=False)], id="a model that is not open"),
        pytest.param([Open(model=1, bits=8, rounding=Where(key="00" * 32, counter=0))], id="a model twice"),
    ],
)
def test_2729_orders_that_do_not_fit(commands: list[Any]) -> None:
    with broker() as found:
        script = Script(found)
        script.opened()
        for command in commands:
            script.say(command)
        if isinstance(commands[-1], Open):
            assert script.hear()["error"]["code"] == 2729
        assert script.code() == 2729
    assert found.end().code is None  # the script's own fault


@pytest.mark.parametrize("command", [ask(1, 1, 2), Collect(model=1, product=9, at=0), Forget(model=1, operands=(7,))])
def test_numbers_that_were_never_given(command: Any) -> None:
    with broker() as found:
        script = Script(found)
        script.opened()
        script.say(command)
        if isinstance(command, Collect):
            assert script.hear()["error"]["code"] == 2729
        assert script.code() == 2729


def test_2729_more_than_the_memory_is_not_hidden() -> None:
    """What the broker keeps of a script's tensors is bounded, whatever the script forgets to give up."""
    form = form_of(Product(MatMul(), "forward", x=(256, 256), w=(1, 256)))
    with broker() as found:
        script = Script(found)
        script.opened()
        for operand in range(17):  # 64 KiB each as integers, of a MiB
            script.say(hide(operand, form=form))
        assert script.code() == 2729


def test_the_memory_cannot_be_made_shorter() -> None:
    """A file that shrinks under a mapping kills whoever reads it: here the launcher, with its keys."""
    with broker() as found:
        memory = found.descriptors[0]
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(memory, size)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(struct.pack("<I", 1 << 31), id="too long"),
        pytest.param(struct.pack("<I", 4) + b"\xff\xfe\x00{", id="no JSON"),
        pytest.param(struct.pack("<I", 2) + b"{}", id="no order"),
    ],
)
def test_6712_nonsense_ends_the_conversation(frame: bytes) -> None:
    with broker() as found:
        script = Script(found)
        script.opened()
        assert script.terms.orders is not None
        os.write(script.terms.orders, frame)
        with pytest.raises(PeerError) as caught:
            script.hear()
    assert caught.value.code == 6712
    assert found.end().code is None


def test_a_script_that_does_not_read_its_answers_holds_nobody_up() -> None:
    with broker() as found:
        script = Script(found)
        script.opened()
        assert script.terms.orders is not None
        os.set_blocking(script.terms.orders, False)
        order = Order(command=Settle(model=1)).canonical()
        with suppress(BlockingIOError):
            while True:
                os.write(script.terms.orders, struct.pack("<I", len(order)) + order)
                time.sleep(0.0001)
    assert found.end().code is None


def test_neither_masks_nor_their_keys_are_where_the_script_is(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []
    reveal = MaskKey.reveal

    def noted(self: MaskKey) -> Any:
        secret = reveal(self)
        if self.role != "rounding":
            keys.append(secret.reveal())
        return secret

    monkeypatch.setattr(MaskKey, "reveal", noted)
    workers = [Spy(f"worker-{index}") for index in range(3)]
    with broker(workers=lambda: workers) as found:
        monkeypatch.setenv(VARIABLE, found.environment[VARIABLE])
        script = Script(found)
        said: list[bytes] = []
        monkeypatch.setattr(
            "cloister.offload._brokered.receive",
            lambda handle, **limits: said.append(receive(handle, **limits)) or said[-1],
        )
        model = offload(plain_net())
        F.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).backward()
        everything = bytes(script.memory) + b"".join(said)
    for worker in workers[:2]:
        for _, masked in worker.tensors:
            assert masked.numpy().tobytes()[:64] not in everything
    assert len(keys) > 0
    for key in keys:
        assert key not in everything
        assert key.hex().encode() not in everything


def test_what_is_changed_afterwards_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The integers that are checked are those that were sent: the script's memory is read once."""
    with broker("verify") as found:
        script = Script(found)
        script.opened()
        ones = torch.ones(4, 8)
        script.memory[: 4 * 32] = ones.numpy().tobytes()
        script.say(hide(1))
        script.memory[1024 : 1024 + 4 * 40] = torch.ones(5, 8).numpy().tobytes()
        script.say(hide(2, stream="w", at=1024))
        assert script.code() is None  # both are read
        script.memory[:2048] = b"\xff" * 2048
        script.say(ask(1, 1, 2))
        script.say(Collect(model=1, product=1, at=4096))
        assert "error" not in script.hear()
        made = torch.frombuffer(bytearray(script.memory[4096 : 4096 + 80]), dtype=torch.float32)
    assert torch.equal(made, torch.full((20,), 8.0))
    assert found.end().code is None


def flipped(command: Any, answer: torch.Tensor) -> torch.Tensor:
    changed = answer.clone()
    changed.view(-1)[0] ^= 4
    return changed


def test_5701_a_script_that_swallows_the_verdict_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with broker(lie=flipped) as found:
        monkeypatch.setenv(VARIABLE, found.environment[VARIABLE])
        model = offload(plain_net())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        F.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).backward()
        with pytest.raises(CloisterError) as caught:
            optimizer.step()
        assert (caught.value.code, caught.value.got) == (5701, None)
        with suppress(CloisterError):
            model(batches(1)[0][0])
    ended = found.end()
    assert ended.code == 5701
    assert set(ended.evidence) == {"hospital"}
    told = json.loads(READER.open(ended.evidence["hospital"], info=EVIDENCE_INFO))
    assert told["count"] > 0
    assert told["failures"][0]["workers"] == ["worker-0", "worker-1", "worker-2"]


def test_5701_a_script_that_never_asks_for_the_verdict_ends_with_it() -> None:
    with broker(lie=flipped) as found:
        script = Script(found)
        script.opened()
        assert not found.wrong
        for command in (hide(1), hide(2, stream="w"), ask(1, 1, 2), Collect(model=1, product=1, at=0)):
            script.say(command)
        assert "error" not in script.hear()  # zeros, without a word
        assert found.wrong  # the launcher knows before the script has them
    assert found.end().code == 5701


def test_evidence_has_one_size_and_the_outcome_no_word_of_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def wild(command: Any, answer: torch.Tensor) -> torch.Tensor:
        return answer + 0x40000001

    ends = []
    for lie in (flipped, wild):
        with broker(lie=lie) as found, monkeypatch.context() as patch:
            patch.setenv(VARIABLE, found.environment[VARIABLE])
            model = offload(plain_net())
            model(batches(1)[0][0]).sum().backward()
        ends.append(found.end())
    first, second = ends
    assert len(first.evidence["hospital"]) == len(second.evidence["hospital"])
    assert (first.code, first.products, first.sent_bytes) == (second.code, second.products, second.sent_bytes)


def test_a_broken_link_is_the_hosts_to_know_though_the_script_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(Spy):
        def submit(self, command: Any, tensor: Any = None) -> Any:
            raise PeerError(6706, "worker 'worker-0': gone")

    with broker("verify", workers=lambda: [Dead("worker-0")]) as found:
        monkeypatch.setenv(VARIABLE, found.environment[VARIABLE])
        model = offload(nn.Linear(4, 4))
        with pytest.raises(PeerError) as caught:
            model(torch.ones(2, 4))
        assert caught.value.code == 6706
    assert found.end().code == 6706


def test_9701_a_fork_of_the_script_has_no_way_to_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    with broker("verify") as found:
        channel = channel_of(StageTerms.model_validate_json(found.environment[VARIABLE]))
        child = os.fork()
        if child == 0:
            code = 0
            try:
                channel.tell(Settle(model=1))
            except InternalError as error:
                code = error.code - 9700
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

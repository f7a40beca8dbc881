"""A broker that multiplies nothing: a script asks it in words, over the descriptors that it inherits.

It stands for any broker that keeps the contract: what launchers do with it is what is tested.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, field

from cloister.enclave import OffloadEnd
from cloister.enclave._findings import RECORD_INFO
from cloister.receipt import OffloadFacts

__all__ = ["ASK", "RECORD_BYTES", "FakeBroker", "FakeOffloader"]

RECORD_BYTES = 4096
VARIABLE = "CLOISTER_OFFLOAD"

ASK = """
import json, os
place = json.loads(os.environ["CLOISTER_OFFLOAD"])

def ask(word):
    os.write(place["ask"], word.encode() + b"\\n")
    return os.read(place["answer"], 64).decode().strip()
"""
"""What a script does: ``ask("multiply")``, ``ask("lie NOTE")``, ``ask("break 6706")``."""


class FakeBroker:
    """Counts products; a lie is a failed check that answers like every other product."""

    def __init__(self, terms, workers, parties) -> None:
        self.terms, self.workers, self.parties = terms, workers, parties
        self.environment: dict[str, str] = {}
        self.descriptors: tuple[int, ...] = ()
        self.entered = self.left = False
        self.products, self.code, self.lies = 0, None, []
        self._thread: threading.Thread | None = None
        self._end: OffloadEnd | None = None

    def __enter__(self):
        self.entered = True
        asked, ask = os.pipe()
        answer, answered = os.pipe()
        self.descriptors = (ask, answer)
        said = {"mode": self.terms.mode, "workers": list(self.terms.workers), "ask": ask, "answer": answer}
        self.environment = {VARIABLE: json.dumps(said)}
        self._thread = threading.Thread(target=self._serve, args=(asked, answered), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.end()
        self.left = True

    @property
    def wrong(self) -> bool:
        return bool(self.lies)

    def end(self) -> OffloadEnd:
        if self._end is None:
            for handle in self.descriptors:
                os.close(handle)  # ours; the script's own copies died with it
            self._thread.join(10)
            facts = OffloadFacts(
                mode=self.terms.mode,
                workers=self.terms.workers,
                models=1 if self.products else 0,
                products=self.products,
                checks=self.products,
                error_bits=57 if self.products else None,
                sent_bytes=100 * self.products,
                received_bytes=10 * self.products,
            )
            record = json.dumps({"format": 1, "count": len(self.lies), "failures": [{"layer": x} for x in self.lies]})
            sealed = {
                name: key.seal(record.encode().ljust(RECORD_BYTES), info=RECORD_INFO)
                for name, key in self.parties.items()
            }
            self._end = OffloadEnd(self.code, facts, sealed if self.lies else {})
        return self._end

    def _serve(self, asked: int, answered: int) -> None:
        with os.fdopen(asked, "rb") as questions, os.fdopen(answered, "wb", buffering=0) as answers:
            for line in questions:
                word, _, rest = line.decode().strip().partition(" ")
                answers.write(self._answer(word, rest).encode() + b"\n")

    def _answer(self, word: str, rest: str) -> str:
        if word == "break":
            self.code = self.code if self.lies else int(rest)
            return f"error {rest}"
        self.products += 1
        if word == "lie":
            self.lies.append(rest)
            self.code = 5701
        return "product"


@dataclass
class FakeOffloader:
    """Makes :class:`FakeBroker` and remembers how it was asked."""

    made: list[FakeBroker] = field(default_factory=list)
    memory_bytes: int = 0

    def __call__(self, terms, /, *, workers, memory_bytes, parties):
        self.memory_bytes = memory_bytes
        self.made.append(FakeBroker(terms, dict(workers), dict(parties)))
        return self.made[-1]

    @property
    def broker(self) -> FakeBroker:
        [made] = self.made
        return made

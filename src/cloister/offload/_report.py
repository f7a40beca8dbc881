"""What was offloaded: a table for people, the same facts for machines and receipts."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cloister.offload._schemes import LEAKAGE, SCHEMES
from cloister.ring import Product

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cloister.offload._costs import Costs
    from cloister.offload._offload import Offloading
    from cloister.offload._records import Kept, Offloaded
    from cloister.offload._schemes import Mode

__all__ = ["LayerReport", "Report", "made_report", "plain_report"]


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One offloaded layer.

    Attributes:
        name: Its path in the model.
        operator: ``matmul`` or ``conv2d``.
        weight: What its second operand is.
        products: Products made: forward, and both gradients.
        multiplications: Of these.
        bits: Of its operands.
        checks: Checks made; 0 where nobody else multiplied.
        sent_bytes: Tensors sent to all workers.
        received_bytes: Tensors received from all workers.
        seconds: In the enclave, by stage; ``wait`` is for the workers.
        predicted_s: What the planner expected of the same products; None without a plan.
        clipped: Values that did not fit their bits.
    """

    name: str
    operator: str
    weight: str
    products: int
    multiplications: int
    bits: int
    checks: int
    sent_bytes: int
    received_bytes: int
    seconds: dict[str, float]
    predicted_s: float | None
    clipped: int


@dataclass(frozen=True, slots=True)
class Report:
    """What one conversion did so far.

    Attributes:
        mode: Its mode; ``plain`` for a model that was left as it is.
        execution: ``execute`` or ``simulate``.
        workers: Names of the workers, in the mode's order.
        layers: What was offloaded.
        kept: Linear calls that stayed in the enclave, each with its reason.
        error: Greatest probability with which one check lets a wrong answer pass; None without checks.
        one_learns: What one worker learns.
        two_learn: What two workers together learn.
        host_sees: What whoever runs the enclave's machine sees.
        late: Blinding products that were not ready when they were needed.
    """

    mode: str
    execution: str
    workers: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    kept: tuple[Kept, ...]
    error: float | None
    one_learns: str
    two_learn: str
    host_sees: str
    late: int

    @property
    def products(self) -> int:
        """Products made by workers, or in their place."""
        return sum(layer.products for layer in self.layers)

    @property
    def checks(self) -> int:
        """Checks made."""
        return sum(layer.checks for layer in self.layers)

    @property
    def clipped(self) -> int:
        """Values that did not fit their bits; with scales that follow from the values, the ends of a range only."""
        return sum(layer.clipped for layer in self.layers)

    @property
    def soundness_bits(self) -> int | None:
        """``-log2`` of the error of one check, rounded down."""
        return None if self.error is None else math.floor(-math.log2(self.error))

    @property
    def total_error(self) -> float | None:
        """An upper bound on the probability that any wrong answer passed: the checks' errors, summed."""
        return None if self.error is None else self.checks * self.error

    @property
    def coverage(self) -> float | None:
        """Offloaded forward multiplications over all that were counted, 0 to 1."""
        leaving = sum(layer.multiplications for layer in self.layers)
        staying = sum(each.calls * (each.multiplications or 0) for each in self.kept)
        return leaving / (leaving + staying) if leaving + staying else None

    def as_json(self) -> dict[str, Any]:
        """The same facts as strings, numbers and lists."""
        return {
            "mode": self.mode,
            "execution": self.execution,
            "workers": list(self.workers),
            "products": self.products,
            "checks": self.checks,
            "clipped": self.clipped,
            "soundness_bits": self.soundness_bits,
            "total_error": self.total_error,
            "coverage": self.coverage,
            "sent_bytes": sum(layer.sent_bytes for layer in self.layers),
            "received_bytes": sum(layer.received_bytes for layer in self.layers),
            "one_learns": self.one_learns,
            "two_learn": self.two_learn,
            "host_sees": self.host_sees,
            "late": self.late,
            "layers": [asdict(layer) for layer in self.layers],
            "kept": [each.as_json() for each in self.kept],
        }

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=110)
        console.print(self)
        assert isinstance(console.file, io.StringIO)  # noqa: S101 - as made above
        return console.file.getvalue()

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table

        where = ", ".join(self.workers) if self.workers else "this process (SIMULATED)"
        masked = {"verify": "nothing", "enclave": "–"}.get(self.mode, "fresh words of Z_2^32")
        table = Table(box=None, pad_edge=False)
        for name in ("layer", "where", "MACs", "bits", "masked by", "checked to", "up", "down", "planned", "measured"):
            table.add_column(name, justify="left" if name in ("layer", "where", "masked by", "checked to") else "right")
        checked = "–" if self.error is None else f"2^-{self.soundness_bits}"
        for layer in self.layers:
            planned = "–" if layer.predicted_s is None else f"{layer.predicted_s:.3f} s"
            table.add_row(
                layer.name,
                "workers" if self.workers else "in place",
                _count(layer.multiplications),
                str(layer.bits),
                masked,
                checked,
                _count(layer.sent_bytes) + "B",
                _count(layer.received_bytes) + "B",
                planned,
                f"{sum(layer.seconds.values()):.3f} s",
            )
        for each in self.kept:
            size = "–" if each.multiplications is None else _count(each.calls * each.multiplications)
            table.add_row(each.name, "enclave", size, "f32", "–", "–", "–", "–", "–", "–")
        lines = [f"mode {self.mode}, {where}; {self.products} products, {self.checks} checks"]
        if self.total_error is not None:
            lines.append(f"a wrong product passed with probability below 2^{math.ceil(math.log2(self.total_error))}")
        if self.coverage is not None:
            lines.append(f"{100 * self.coverage:.1f} % of the counted multiplications were offloaded")
        if self.clipped:
            lines.append(f"{self.clipped} values were clipped to their bits")
        lines.append(f"one worker learns: {self.one_learns}; two together: {self.two_learn}; host: {self.host_sees}")
        return Group(table, *lines)


def plain_report() -> Report:
    """The report of a model that stayed as it was, because nobody named a mode and no stage has terms."""
    nobody = "nothing: no worker takes part"
    return Report("plain", "execute", (), (), (), None, nobody, nobody, "what it sees of any process", 0)


def made_report(made: Offloading) -> Report:
    """The report of a conversion."""
    tally = made.engine.products.tally()
    rows = {each.layer.name: each for each in made.conversion.offloaded}
    layers: list[LayerReport] = []
    for name, use in tally.uses.items():
        row = rows.get(name)
        predicted = (
            None
            if made.costs is None or row is None or made.mode == "enclave"
            else _predicted(made.costs, row, made.mode)
        )
        layers.append(
            LayerReport(
                name,
                "" if row is None else type(row.layer.operator).__name__.lower(),
                "" if row is None else row.layer.weight,
                sum(use.products.values()),
                use.multiplications,
                use.bits,
                use.checks,
                use.sent_bytes,
                use.received_bytes,
                {stage: round(seconds, 6) for stage, seconds in use.seconds.items()},
                predicted,
                use.clipped,
            )
        )
    leakage = LEAKAGE[made.mode]
    return Report(
        made.mode,
        made.execution,
        made.workers,
        tuple(layers),
        made.conversion.kept,
        None if tally.error is None else float(tally.error),
        leakage.one_worker,
        leakage.two_workers,
        leakage.host,
        tally.late,
    )


def _predicted(costs: Costs, row: Offloaded, mode: Mode) -> float:
    product = Product(row.layer.operator, "forward", x=row.x, w=row.w)
    return row.calls * costs.estimate(product, SCHEMES[mode], training=row.layer.weight != "frozen").offloaded


def _count(number: float) -> str:
    """Three digits and a decimal prefix: ``1.23 M``."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000 or prefix == "T":
            return f"{number:.3g} {prefix}" if number < 1000 else f"{number:.0f} {prefix}"
        number /= 1000
    raise AssertionError

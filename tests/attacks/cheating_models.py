"""Models that treat examples together, keep them, or hide it: each must be refused with its code, at its line.

A line that cheats ends in ``# cheat``. Each cheat is a class; ``CHEATS`` holds them by name with their codes. Most of
them replace one step of a small classifier, so that what is wrong is the one line.
"""

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHEATS: "dict[str, Cheat]" = {}


@dataclass(frozen=True)
class Cheat:
    """A class of models, the code that must refuse it, and the line that must be named, if there is one."""

    model: type["Classifier"]
    code: int
    line: int | None

    def build(self) -> tuple[nn.Module, Callable[[nn.Module, Any], Tensor], Any]:
        torch.manual_seed(1)
        model = self.model()
        return model, model.losses, self.model.batch()


def cheat(code: int) -> Callable[[type["Classifier"]], type["Classifier"]]:
    def register(model: type["Classifier"]) -> type["Classifier"]:
        lines, first = inspect.getsourcelines(model)
        marked = [first + number for number, line in enumerate(lines) if line.rstrip().endswith("# cheat")]
        CHEATS[model.__name__] = Cheat(model, code, marked[0] if marked else None)
        return model

    return register


class Classifier(nn.Module):
    """Six numbers to four classes; honest as it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(self.step(x, y))

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x

    @staticmethod
    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return functional.cross_entropy(model(x, y), y, reduction="none")

    @staticmethod
    def batch() -> tuple[Tensor, Tensor]:
        return torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 1])


# ---- sums, norms and orders over the batch -----------------------------------------------------------------


@cheat(8830)
class BatchNormalisation(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x)  # cheat


@cheat(8830)
class BatchNormalisationWithoutState(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.batch_norm(x, None, None, training=True)  # cheat


@cheat(8830)
class MeanCentring(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x - x.mean(0)  # cheat


@cheat(8830)
class CentringWithoutGradient(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            centre = x.mean(0, keepdim=True)  # cheat
        return x - centre


@cheat(8830)
class WholeMaximum(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x / x.abs().max()  # cheat


@cheat(8830)
class NothingTimesEverybody(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + 0.0 * x.sum()  # cheat


@cheat(8830)
class VotedSign(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        vote = (x > 0).any(0)  # cheat
        return torch.where(vote, x, -x)


@cheat(8830)
class SoftmaxOverBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x.softmax(0)  # cheat


@cheat(8830)
class SortedBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x.sort(0).values  # cheat


@cheat(8830)
class RunningSum(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x.cumsum(0)  # cheat


@cheat(8830)
class LayerNormOverBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.layer_norm(x.t(), (x.shape[0],)).t()  # cheat


@cheat(8830)
class GroupNormWithBatchAsChannels(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.group_norm(x[None], 1)[0]  # cheat


@cheat(8830)
class InstanceNormOverBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.instance_norm(x.t()[None])[0].t()  # cheat


@cheat(8830)
class WeightedByOthersLosses(Classifier):
    @staticmethod
    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        each = Classifier.losses(model, batch)
        return each * each.detach().softmax(0)  # cheat


@cheat(8830)
class AveragedLoss(Classifier):
    @staticmethod
    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return functional.cross_entropy(model(x, y), y).expand(x.shape[0])  # cheat


@cheat(8830)
class SummedSquares(Classifier):
    @staticmethod
    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        scores = model(x, y)
        return scores[:, 0] + functional.mse_loss(scores, torch.zeros_like(scores))  # cheat


@cheat(8830)
class BatchAsClasses(Classifier):
    @staticmethod
    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        scores = model(x, y)
        loss = functional.cross_entropy(scores.t(), scores.t(), reduction="none")  # cheat
        return loss.sum().expand(x.shape[0])


# ---- examples that meet others ---------------------------------------------------------------------------------


@cheat(8830)
class Gram(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ x.t()).softmax(1) @ x  # cheat


@cheat(8830)
class Covariance(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ (x.t() @ x)  # cheat


@cheat(8830)
class BatchedCovariance(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ torch.bmm(x[None].transpose(1, 2), x[None])[0]  # cheat


@cheat(8830)
class EinsumOverBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.einsum("bi,bj->ij", x, x).sum(0)  # cheat


@cheat(8830)
class EinsumOfPairs(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("bi,ci,cj->bj", x, x, x)  # cheat


@cheat(8830)
class AttentionOverBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x[None], x[None], x[None])[0]  # cheat


@cheat(8832)
class Distances(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x * torch.cdist(x, x).amin(1, keepdim=True)  # cheat


@cheat(8830)
class WeightMadeOfBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ functional.linear(x.t(), x.t())  # cheat


@cheat(8830)
class TableMadeOfBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.embedding(y, x)  # cheat


@cheat(8830)
class CountedBackward(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 6))

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + functional.embedding(y, self.table, scale_grad_by_freq=True)  # cheat


@cheat(8830)
class ConvolutionAlongBatch(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.ones(6, 1, 3))

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.conv1d(x.t()[None], self.filter, padding=1, groups=6)[0].t()  # cheat


@cheat(8832)
class PoolingAlongBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.max_pool1d(x.t()[None], 3, 1, 1)[0].t()  # cheat


@cheat(8832)
class RecurrenceAlongBatch(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(6, 6)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return self.memory(x[:, None])[0][:, 0]  # cheat


@cheat(8830)
class SamplingAlongBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        image = x[None, None]
        grid = x.new_zeros(1, x.shape[0], 6, 2)
        return functional.grid_sample(image, grid, align_corners=False)[0, 0]  # cheat


# ---- examples that read or write others -------------------------------------------------------------------------


@cheat(8830)
class FirstRow(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + x[0]  # cheat


@cheat(8830)
class FirstRowOfTwo(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.cat([x, x])[: x.shape[0]][:1]  # cheat


@cheat(8830)
class RolledBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + x.roll(1, 0)  # cheat


@cheat(8830)
class FlippedBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + x.flip(0)  # cheat


@cheat(8830)
class GatheredRows(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x.gather(0, y[:, None].expand(-1, 6))  # cheat


@cheat(8830)
class IndexedRows(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + x[y]  # cheat


@cheat(8830)
class SelectedRows(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + x.index_select(0, y)  # cheat


@cheat(8830)
class EveryRowAtEveryPlace(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + x[:, y].sum(1, keepdim=True)  # cheat


@cheat(8830)
class NumberedRowAtOthersPlaces(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0])
        return x + x[rows[:, None], y[None, :]].amax(1, keepdim=True)  # cheat


@cheat(8830)
class ScatteredRows(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter_add(0, y[:, None].expand(-1, 6), x)  # cheat


@cheat(8830)
class BinsOfClasses(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        bins = torch.zeros(4, 6).index_put((y,), x, accumulate=True)  # cheat
        return bins[y]


@cheat(8830)
class DealtOut(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x.masked_scatter(x > 0, x * 2)  # cheat


@cheat(8832)
class Transposed(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x.t().contiguous().view(x.shape[0], 6)  # cheat


@cheat(8830)
class WrongHalves(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, -x]).view(x.shape[0], 2, 6).sum(1)  # cheat


@cheat(8830)
class MisalignedCopies(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        both = x.repeat(2, 1) * x.repeat_interleave(2, 0)  # cheat
        return both[: x.shape[0]]


@cheat(8830)
class JoinedAtOtherPlaces(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        both = torch.cat([x.repeat(2, 1), x.repeat_interleave(2, 0)], 1)  # cheat
        return both[: x.shape[0], :6]


@cheat(8830)
class MatrixOfMisaligned(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        rows, columns = x.repeat(2, 1)[:, None], x.repeat_interleave(2, 0)[:, :, None]
        return x * (rows @ columns)[: x.shape[0], 0]  # cheat


@cheat(8830)
class StackedMisaligned(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([x.repeat(2, 1), x.repeat_interleave(2, 0)], 1).sum(1)[: x.shape[0]]  # cheat


@cheat(8830)
class WrittenMisaligned(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        both = x.repeat(2, 1)
        both[:, 0] = x.repeat_interleave(2, 0)[:, 0]  # cheat
        return both[: x.shape[0]]


@cheat(8836)
class CountedClasses(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x * functional.one_hot(y).sum(1, keepdim=True)  # cheat


# ---- how many rows there are, and where one stands ----------------------------------------------------------------


@cheat(8832)
class DividedByBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x / x.shape[0]  # cheat


@cheat(8832)
class RootOfBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x * x.shape[0] ** -0.5  # cheat


@cheat(8832)
class FilledWithBatch(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.full((6,), x.shape[0], dtype=torch.float32)  # cheat


@cheat(8832)
class NumberedRows(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.arange(x.shape[0])[:, None]  # cheat


@cheat(8832)
class NumberedRowsAsFloats(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.arange(x.shape[0], dtype=torch.float32)[:, None]  # cheat


@cheat(8832)
class TableByRow(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(64, 6))

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.table[torch.arange(x.shape[0])]  # cheat


@cheat(8832)
class TableByRowAndClass(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(64, 4))

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.table[torch.arange(x.shape[0]), y][:, None]  # cheat


@cheat(8832)
class TableCutByBatch(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(64, 6))

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.table[: x.shape[0]]


@cheat(8832)
class Triangle(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x.triu()  # cheat


@cheat(8832)
class Identity(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.eye(x.shape[0], 6)  # cheat


@cheat(8832)
class BranchOnSize(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 8 else x  # cheat


@cheat(8832)
class Neighbours(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x[1:], x[:1]])  # cheat


@cheat(8840)
class ShiftedByPadding(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.pad(x, (0, 0, 1, 0))[:-1]  # cheat


@cheat(8830)
class PaddedAndCut(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.pad(x, (0, 0, 1, -1))  # cheat


# ---- state ------------------------------------------------------------------------------------------------------


@cheat(8833)
class MovingAverage(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        before = self.seen.clone()
        self.seen.lerp_(x.detach().mean(0), 0.1)
        return x + before


@cheat(8833)
class MemoryInAttribute(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(6)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen.add_(x.detach().mean(0))
        return x + self.seen


@cheat(8833)
class MemoryInList(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen.append(x.detach().mean())
        return x


@cheat(8833)
class NewAttribute(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return x


@cheat(8833)
class WritesItsWeights(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            self.layer.weight.add_(x.mean())
        return x


@cheat(8833)
class TrackedInstanceNorm(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(2, track_running_stats=True)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x.view(-1, 2, 3)).flatten(1)


SEEN = [torch.zeros(6)]


@cheat(8838)
class MemoryInGlobal(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        before, SEEN[0] = SEEN[0], x.detach().mean(0)
        return x + before


# ---- losses and parameters -------------------------------------------------------------------------------------


@cheat(8834)
class LossAToken(Classifier):
    @staticmethod
    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(*batch)


@cheat(8834)
class TwoLossesARow(Classifier):
    @staticmethod
    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return Classifier.losses(model, batch).repeat_interleave(2, 0)


@cheat(8835)
class Uncovered(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(6, 6)


@cheat(8835)
class OnlyItsSign(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x * self.scale.sign()


OUTSIDE = torch.ones(6, requires_grad=True)


@cheat(8835)
class TrainedOutside(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x * OUTSIDE


# ---- backward passes of their own, and code that notices the check ---------------------------------------------------


class MixingBackward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(context: Any, slope: Tensor) -> Tensor:
        return slope.mean(0, keepdim=True).expand_as(slope)


@cheat(8837)
class BackwardOfItsOwn(Classifier):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return MixingBackward.apply(self.layer(x))


@cheat(8837)
class HookOnTensor(Classifier):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.layer(x)
        scores.register_hook(lambda slope: slope.mean(0, keepdim=True).expand_as(slope))
        return scores


@cheat(8837)
class HookOnModule(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.layer.register_full_backward_hook(lambda module, into, out: None)


@cheat(8837)
class HookOnParameter(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.layer.weight.register_hook(lambda slope: slope * 2)


@cheat(8837)
class ReentrantCheckpoint(Classifier):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return checkpoint(torch.tanh, self.layer(x), use_reentrant=True)


@cheat(8838)
class SavedAndSwapped(Classifier):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        def mixed(saved: Tensor) -> Tensor:
            return saved.mean(0, keepdim=True).expand_as(saved)

        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, mixed):
            return self.layer(x)


@cheat(8838)
class HonestWhileWatched(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x if torch.compiler.is_compiling() else x - x.mean(0)


@cheat(8838)
class DrawnByPython(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x * random.random()


@cheat(8836)
class BranchOnData(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        if x.sum() > 0:  # cheat
            return x * 2
        return x


@cheat(8836)
class ReadsANumber(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x[:, : int(y.max().item())].sum(1, keepdim=True).expand(-1, 6)  # cheat


@cheat(8836)
class SelectsByMask(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + x[y > 1].mean(0)  # cheat


@torch.library.custom_op("cloister_cheat::mix", mutates_args=())
def mix(x: Tensor) -> Tensor:
    """A custom operator that subtracts the batch's mean."""
    return x - x.mean(0)


@mix.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@cheat(8831)
class CustomOperator(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.ops.cloister_cheat.mix(x.detach())  # cheat


@cheat(8831)
class Strided(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + x.as_strided((6,), (1,))  # cheat


@cheat(8831)
class BytesOfNumbers(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + x.detach().view(torch.int32)  # cheat


@cheat(8830)
class MemoryNobodyWrote(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.empty_like(x)  # cheat


# ---- shared random numbers -----------------------------------------------------------------------------------------


@cheat(8841)
class OneMaskForAll(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x * functional.dropout(torch.ones(6), 0.5)  # cheat


@cheat(8841)
class OneDrawForAll(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.randn(6)  # cheat


@cheat(8841)
class SharedOrder(Classifier):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return x[:, torch.randperm(6)]  # cheat


FILE = Path(__file__).name

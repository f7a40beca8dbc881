"""A whole private training for those who want no loop: model, loss and data in, a model and what it cost out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cloister.errors import InputError
from cloister.offload import is_offloaded, load_checkpoint, plain, save_checkpoint, share
from cloister.privacy._certificate import Certificate, bind, check_model
from cloister.privacy._private import make_private

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader

    from cloister.ledger import Spent
    from cloister.wire import Secret

__all__ = ["Trainer"]


class Trainer:
    """Trains a model privately, for so many epochs at so much ε.

    Before the first step the model and its loss are checked together (:func:`cloister.privacy.check_model`): what mixes
    examples is refused, with the line that does it. Then the certified graph itself is trained, on the model's own
    parameters: what was checked is what runs, and no line of the model's ``forward`` or of the loss.

    Args:
        model: Trained parameters are those that require a gradient. It is changed in place. One that
            :func:`cloister.offload.offload` converted is trained by the same workers.
        loss: ``loss(model, batch) -> (B,)``: a loss for each row of what the loader gives.
        optimizer: Of all trained parameters.
        loader: The data; its batch size is the expected one.
        epochs: How many.
        delta: Of the guarantee.
        clip: See :func:`make_private`, as all others: ``epsilon`` or ``noise_multiplier``, ``groups``, ``key``, …
        scheduler: Steps once an epoch, if given.
        dangerous_unchecked: Trains the model's code although nobody has shown that examples are apart; the first
            forward's trial is then all that stands against a model that mixes them.

    Attributes:
        model: The model.
        certificate: What was checked, and is trained; None when it was left out.
        privacy: What was spent so far.

    Raises:
        UnsupportedError: 8830 to 8841 for a model that is refused; others as for :func:`make_private`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        optimizer: Optimizer,
        loader: DataLoader[Any],
        *,
        epochs: int,
        delta: str | float,
        clip: Any = 1.0,
        scheduler: Callable[[Optimizer], Any] | None = None,
        dangerous_unchecked: bool = False,
        **settings: Any,
    ) -> None:
        if epochs < 1:
            raise InputError(2850, "no epochs", expected="1 or more", got=epochs)
        model.train()
        self.certificate: Certificate | None = None
        trained = model
        if not dangerous_unchecked:
            example = loader.collate_fn([loader.dataset[row % len(loader.dataset)] for row in range(_EXAMPLES)])  # type: ignore
            with plain(model):
                self.certificate = check_model(model, loss, example)
                trained = bind(self.certificate, model, loss)
            if is_offloaded(model):
                share(model, trained)
            loss = _called
        self.model = model
        self._trained, self.optimizer, self.loader = make_private(
            trained, optimizer, loader, clip=clip, delta=delta, epochs=epochs, **settings
        )
        self.privacy = self.optimizer.privacy
        self._loss, self._epochs, self._sum = loss, epochs, settings.get("loss_reduction") == "sum"
        self._scheduler = None if scheduler is None else scheduler(self.optimizer)

    def fit(self, *, checkpoint: Path | None = None, key: Secret | None = None) -> Spent:
        """Trains to the end, from where it is; progress and the ε that is spent are shown on standard error.

        Args:
            checkpoint: Saved there after every epoch, and gone on from when it is there already.
            key: The checkpoint's, 32 bytes; see :func:`cloister.offload.save_checkpoint`.

        A checkpoint of fewer epochs, or of other terms, is gone on from under these: the noise of the steps that are
        left is what its own steps leave of ``epsilon``.

        Returns:
            What was spent, by the checkpoint's steps too.

        Raises:
            InputError: 2850 when the loss gives no loss a row.
            BudgetError: 7801 when a checkpoint's steps leave too little of ``epsilon``; others of
                :meth:`cloister.privacy.Privacy.resume`.
        """
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint, key)
        steps = self._steps
        with _progress() as progress:
            task = progress.add_task("training", total=steps, completed=self.privacy.steps, epsilon="0")
            while self.privacy.steps < steps:
                self._epoch(lambda: progress.advance(task))
                spent = self.privacy.spent()
                progress.update(task, epsilon="unknown" if spent is None else spent.epsilon or "unknown")
                if checkpoint is not None:
                    self._save(checkpoint, key)
        spent = self.privacy.spent()
        assert spent is not None  # noqa: S101 - there was a step
        return spent

    @property
    def _steps(self) -> int:
        return self._epochs * self.loader.epoch_steps

    def _epoch(self, advance: Callable[[], None]) -> None:
        self.model.train()
        self._trained.train()
        for batch in self.loader:
            losses = self._loss(self._trained, batch)
            if losses.shape != (self.loader.micro_batch,):
                expected = f"{self.loader.micro_batch} losses"
                raise InputError(2850, "no loss a row", expected=expected, got=tuple(losses.shape))
            (losses.sum() if self._sum else losses.mean()).backward()
            before = self.privacy.steps
            self.optimizer.step()
            if self.privacy.steps > before:
                advance()
            if self.privacy.steps >= self._steps:  # an epoch of another loader's length may have been begun
                break
        if self._scheduler is not None:
            self._scheduler.step()

    def _save(self, path: Path, key: Secret | None) -> None:
        save_checkpoint(
            path,
            self.model,
            key=key,
            sequence=self.privacy.steps,
            optimizer=self.optimizer,
            scheduler=self._scheduler,
            extra={"privacy": self.privacy.state},
        )

    def _resume(self, path: Path, key: Secret | None) -> None:
        found = load_checkpoint(path, self.model, key=key, optimizer=self.optimizer, scheduler=self._scheduler)
        state: Mapping[str, Any] = found.extra["privacy"]
        self.privacy.resume(state)


_EXAMPLES = 4


def _called(program: nn.Module, batch: Any) -> Tensor:
    """The losses of a certified graph, which has its loss in it."""
    return program(batch)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, ε = {task.fields[epsilon]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )

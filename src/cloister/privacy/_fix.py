"""Changing a model so that it can be trained privately, and saying what was changed.

>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48), nn.ReLU(inplace=True))
>>> for change in fix(model):
...     print(change)
1: BatchNorm2d(48) → GroupNorm(24, 48)
2: ReLU(inplace=True) → ReLU()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Change", "fix"]

_MOST_GROUPS = 32


@dataclass(frozen=True, slots=True)
class Change:
    """What was changed.

    Attributes:
        path: The module's path.
        before: What it was.
        after: What it is now.
    """

    path: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}: {self.before} → {self.after}"


def fix(model: nn.Module) -> Sequence[Change]:
    """Puts what can be trained privately in the place of what cannot, in the model itself.

    * A batch norm becomes a group norm of as many groups as divide its channels, 32 at most, two channels a group at
      least; it takes over scale and shift. Statistics of the batch, which mix examples, are given up: a model that was
      trained with them has to be trained on.
    * An instance norm keeps no statistics of earlier batches.
    * ``inplace=True`` is switched off: what backward needs is not written over.

    Returns:
        What was changed, in the order of ``named_modules``; nothing when nothing had to be.
    """
    changes: list[Change] = []
    for path, module in list(model.named_modules()):
        new = _group_norm(module) if isinstance(module, _BatchNorm) else None
        if new is not None and path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new)
            changes.append(Change(path, f"{type(module).__name__}({module.num_features})", _said(new)))
        elif isinstance(module, _InstanceNorm) and module.track_running_stats:
            before = f"{type(module).__name__}(track_running_stats=True)"
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
            changes.append(Change(path, before, f"{type(module).__name__}()"))
        elif getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010 - no attribute that nn.Module declares
            name = type(module).__name__
            changes.append(Change(path, f"{name}(inplace=True)", f"{name}()"))
    return tuple(changes)


def _group_norm(module: _BatchNorm) -> nn.GroupNorm:
    channels = module.num_features
    groups = max(
        count
        for count in range(1, _MOST_GROUPS + 1)
        if channels % count == 0 and (channels >= 2 * count or channels == 1)
    )
    new = nn.GroupNorm(groups, channels, eps=module.eps, affine=module.affine)
    if module.affine:
        with torch.no_grad():
            new.weight.copy_(module.weight)
            new.bias.copy_(module.bias)
        new.to(module.weight.device, module.weight.dtype)
    return new.train(module.training)


def _said(module: nn.GroupNorm) -> str:
    return f"GroupNorm({module.num_groups}, {module.num_channels})"

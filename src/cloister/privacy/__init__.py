"""Privacy: training whose result says next to nothing of any one record.

Each example's gradient is bounded, the bounded ones are rounded to integers and summed, and noise from a secure
generator is added before anybody sees the sum (DP-SGD, Abadi et al. 2016). Everything that decides what that is worth
belongs to the engine: which examples are drawn, how they are bounded, what noise hides them, what is charged.

Rules:

* Nothing is guessed. A loader that cannot be analysed, a layer without a private form, a model that mixes examples:
  each is refused by name, with what to do instead.
* Sampling, noise and account belong together: the probability that is accounted is the one that is drawn with, the sum
  is divided by the *expected* batch, and the number that was drawn shows in no shape (:class:`PrivateLoader`).
* What one example can change in the sum is an integer vector of proven norm; the noise is a discrete Gaussian from a
  stream cipher, and its distance from the ideal is charged to δ (:mod:`cloister.privacy._grid`,
  :mod:`cloister.privacy._discrete`). Floating-point noise exists as ``dangerous_float_noise``, and then ε is unknown.
* A model can be proven to keep examples apart (:func:`check_model`), and the proof rechecked without running it.

>>> import torch
>>> from torch import nn
>>> from torch.nn.functional import cross_entropy
>>> from torch.utils.data import DataLoader, TensorDataset
>>> data = TensorDataset(torch.randn(200, 4), torch.randint(0, 2, (200,)))
>>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
>>> optimizer, loader = torch.optim.SGD(model.parameters(), lr=0.5), DataLoader(data, batch_size=20)
>>> model, optimizer, loader = make_private(
...     model, optimizer, loader, clip=1.0, noise_multiplier="1.5", delta="1e-5", micro_batch=32
... )
>>> for inputs, labels in loader:
...     cross_entropy(model(inputs), labels).backward()
...     optimizer.step()
>>> optimizer.privacy.steps
10
"""

from cloister.privacy._canary_audit import CanaryAudit, CanaryReport, canary_audit
from cloister.privacy._certificate import Certificate, bind, check_model, recheck
from cloister.privacy._certified import CertifiedLoss
from cloister.privacy._clipping import Automatic, Clipping, Flat, Normalise, PerBlock, PerLayer, Quantile
from cloister.privacy._fix import Change, fix
from cloister.privacy._groups import Groups
from cloister.privacy._loader import Place, PrivateLoader
from cloister.privacy._membership import Membership, logit_confidence, membership_of, membership_test
from cloister.privacy._optimizer import PrivateOptimizer
from cloister.privacy._private import make_private
from cloister.privacy._program import load_program, read_program, save_program, weights_of
from cloister.privacy._recipe import Recipe
from cloister.privacy._records import Records, read_records, write_records
from cloister.privacy._run_key import RunKey
from cloister.privacy._spending import Privacy
from cloister.privacy._trainer import Trainer

__all__ = [
    "Automatic",
    "CanaryAudit",
    "CanaryReport",
    "Certificate",
    "CertifiedLoss",
    "Change",
    "Clipping",
    "Flat",
    "Groups",
    "Membership",
    "Normalise",
    "PerBlock",
    "PerLayer",
    "Place",
    "Privacy",
    "PrivateLoader",
    "PrivateOptimizer",
    "Quantile",
    "Recipe",
    "Records",
    "RunKey",
    "Trainer",
    "bind",
    "canary_audit",
    "check_model",
    "fix",
    "load_program",
    "logit_confidence",
    "make_private",
    "membership_of",
    "membership_test",
    "read_program",
    "read_records",
    "recheck",
    "save_program",
    "weights_of",
    "write_records",
]

"""Offload: linear layers on accelerators that nobody trusts.

Nearly all of a network's arithmetic is in its linear layers. :func:`offload` hands a model's to workers: processes
beside a CPU or a GPU that keep numbered tensors and multiply them, exactly, over Z_2^32 (:mod:`cloister.ring`). The
model, its training loop and its ``state_dict`` stay what they were.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 2))
>>> model = offload(model, mode="shared3", workers="inline")
>>> model(torch.randn(64, 20)).square().sum().backward()
>>> [(layer.name, layer.products, layer.checks) for layer in report(model).layers]
[('0', 2, 2), ('2', 3, 3)]

Rules:

* The enclave's half is a mode: a table of which worker holds which piece of a tensor (:data:`SCHEMES`). Its integers do
  not depend on it, so a simulated run has an executed one's bits.
* A worker is trusted for nothing. What it answers is a claim, and every product is checked before it is used. A claim
  that fails is told at one point, in one way (5701); what failed is for the parties.
* What two workers together would learn, no one of them does (:data:`LEAKAGE`). So each has a link of its own
  (:class:`SocketWorker`), under keys that no other has, and a session opens only for the key that the manifest names.
* A session never resumes. Whose link broke is begun anew, with new keys and new masks; nothing is sent twice. A
  checkpoint (:func:`save_checkpoint`) holds no mask's key.
* What a stranger may take of a worker is bounded before he is given it (:class:`Limits`): sessions, memory, time.
* A refusal is a code and nothing else. It changes nothing at the worker, and no tensor's value is in any error or log.
* A conversion exchanges classes, not modules; what it cannot reach is reported, and nothing is left out silently.

A worker's operator runs :class:`WorkerServer`, by ``cloister worker serve``, under a key (:class:`WorkerKey`) that
``cloister worker init`` made. In a notebook an :class:`InlineWorker` does the same without a process or a socket, and
protects nothing.
"""

from cloister.offload._apart import Apart
from cloister.offload._broker import Broker, Ended
from cloister.offload._check import Candidate, Check, Resident, check
from cloister.offload._checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cloister.offload._commands import Command, Compute, Cut, Drop, Expand, Form, Put, Stream, Term, form_of
from cloister.offload._convert import Conversion, convert, restore
from cloister.offload._device import device_named
from cloister.offload._functional import stays
from cloister.offload._layers import Layer, Multiplier, WeightIs
from cloister.offload._offload import (
    Offloading,
    is_offloaded,
    offload,
    offloading,
    onload,
    plain,
    precompute,
    report,
    share,
)
from cloister.offload._passes import in_pass
from cloister.offload._private import PrivateForward, privately, take_call
from cloister.offload._problems import Problem
from cloister.offload._records import Kept, Offloaded, UnreachedWarning
from cloister.offload._report import LayerReport, Report
from cloister.offload._router import Planner
from cloister.offload._schemes import LEAKAGE, SCHEMES
from cloister.offload._server import Limits, WorkerKey, WorkerServer
from cloister.offload._socket import SocketWorker
from cloister.offload._workers import InlineWorker, Worker

__all__ = [
    "LEAKAGE",
    "SCHEMES",
    "Apart",
    "Broker",
    "Candidate",
    "Check",
    "Checkpoint",
    "Command",
    "Compute",
    "Conversion",
    "Cut",
    "Drop",
    "Ended",
    "Expand",
    "Form",
    "InlineWorker",
    "Kept",
    "Layer",
    "LayerReport",
    "Limits",
    "Multiplier",
    "Offloaded",
    "Offloading",
    "Planner",
    "PrivateForward",
    "Problem",
    "Put",
    "Report",
    "Resident",
    "SocketWorker",
    "Stream",
    "Term",
    "UnreachedWarning",
    "WeightIs",
    "Worker",
    "WorkerKey",
    "WorkerServer",
    "check",
    "convert",
    "device_named",
    "form_of",
    "in_pass",
    "is_offloaded",
    "load_checkpoint",
    "offload",
    "offloading",
    "onload",
    "plain",
    "precompute",
    "privately",
    "report",
    "restore",
    "save_checkpoint",
    "share",
    "stays",
    "take_call",
]

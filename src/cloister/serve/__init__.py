"""Serve: confidential inference.

A service is a launcher that holds the sealed model. Rules:

* The client goes first: its own 32-byte nonce, the service's evidence over it, an appraisal under the manifest's
  terms. Nothing about the input exists outside the client before that.
* A request is HPKE to the key in the evidence, with the digest of the verified claims as context; the reply key
  inside is used once, so an answer can be read by its asker alone. What was wrong with a request is told only there.
* Every answer carries a receipt under the attested key: manifest, run, model, request, outputs.
* Keys roll hourly with ten minutes of overlap; a request is answered once.
* The model comes from a party's stage. It runs in a sandbox of its own, without keys, network or files; the launcher
  keeps those, limits memory and the time of a request, and checks the sizes of all that comes back.

The client's half (everything here) works on any platform; the service's own process is Linux only and lies in
:mod:`cloister.serve.hosting`.

What the host sees: that somebody asks, when, and how many bytes; not the input, not the answer.

>>> import numpy as np
>>> from cloister.serve import from_tensor, to_tensor
>>> tensor = to_tensor("x", np.array([[1.5, 2.0]], dtype=np.float32))
>>> (tensor.datatype, tensor.shape, from_tensor(tensor).tolist())
('FP32', (1, 2), [[1.5, 2.0]])
"""

from cloister.serve._client import InferenceClient, Prediction, Signer
from cloister.serve._core import Identity, ServiceCore
from cloister.serve._http import Connection, create_app
from cloister.serve._messages import (
    RECEIPT_LABEL,
    EvidenceAnswer,
    EvidenceRequest,
    InferenceReceipt,
    ModelCard,
    SealedAnswer,
    SealedRequest,
    Tensor,
    TensorSpec,
)
from cloister.serve._table import Rows, read_rows
from cloister.serve._tensors import from_tensor, to_tensor

__all__ = [
    "RECEIPT_LABEL",
    "Connection",
    "EvidenceAnswer",
    "EvidenceRequest",
    "Identity",
    "InferenceClient",
    "InferenceReceipt",
    "ModelCard",
    "Prediction",
    "Rows",
    "SealedAnswer",
    "SealedRequest",
    "ServiceCore",
    "Signer",
    "Tensor",
    "TensorSpec",
    "create_app",
    "from_tensor",
    "read_rows",
    "to_tensor",
]

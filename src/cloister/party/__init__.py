"""Party: who someone is, by two keys, and whom they believe others to be.

Rules:

* An identity is a name, a signing key and an HPKE key. The private file is encrypted under a passphrase and is
  refused when anyone but its owner can read it.
* The public file is signed by its own key, and says nothing about who made it: that is what the words are for. A
  partner reads the eight words of the fingerprint over the phone; only then is the identity *pinned*.
* A pinned name never changes its keys, and a pinned key never changes its name.
* A worker's identity (:class:`WorkerIdentity`) is one HPKE key in a file that is not encrypted: nobody trusts the
  machine that it lies on, and a manifest names its public half.

>>> from cloister.party import Identity, PublicIdentity, fingerprint
>>> hospital = Identity.generate("hospital-a")
>>> sent = hospital.public.canonical()
>>> received = PublicIdentity.parse(sent)
>>> len(fingerprint(received).split())
8
"""

from cloister.party._identity import Identity, create
from cloister.party._pins import Pins, home_folder
from cloister.party._public import PARTY_LABEL, PublicIdentity, fingerprint, fingerprint_of, require_fingerprint
from cloister.party._worker import WorkerIdentity

__all__ = [
    "PARTY_LABEL",
    "Identity",
    "Pins",
    "PublicIdentity",
    "WorkerIdentity",
    "create",
    "fingerprint",
    "fingerprint_of",
    "home_folder",
    "require_fingerprint",
]

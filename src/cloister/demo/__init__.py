"""Demo: the whole confidential pipeline on one machine, every role in a process of its own.

Two hospitals, a lab that owns the code, a key manager, a host with storage, stages and a service in SIMULATED
enclaves, three workers that nobody trusts, a doctor. The measurements are real biopsies; that two hospitals share them
is made up. ``tell(…, private=True)`` tells it with a training that is differentially private by a manifest's term.
Other walkthroughs on one machine build on :class:`Role`: a folder of its own, and every act a ``cloister`` command in a
process of its own.

>>> from cloister.demo import TAMPERINGS
>>> sorted(TAMPERINGS)
['budget', 'image', 'key', 'ledger', 'log', 'manifest', 'quote', 'worker']
"""

from cloister.demo._machine import machine_folder, prepare_machine
from cloister.demo._roles import Role, Script, Server, free_port
from cloister.demo._story import tell
from cloister.demo._tamper import TAMPERINGS, Caught, tamper

__all__ = [
    "TAMPERINGS",
    "Caught",
    "Role",
    "Script",
    "Server",
    "free_port",
    "machine_folder",
    "prepare_machine",
    "tamper",
    "tell",
]

"""Run: executes a manifest. The runner is the host's, and trusted for nothing.

Rules:

* It moves ciphertext, grants and receipts; it holds no key and sees no plaintext.
* Every step is on disk before the next begins, so a run goes on after any interruption: ``resume`` delivers a
  registration that was cut off, and attempts again what had not ended.
* A stage is attempted again only when a peer did not answer or the script failed. A refusal, bad evidence or changed
  bytes stop the run: trying again would only give a cheating host another throw. So does a limit that was hit.
* An attempt goes on from its stage's last checkpoint, where the manifest lets the stage save any. A host that lost the
  file, or put an older one in its place, gets no further attempt of that stage (5507).
* One process executes a run at a time. Whatever ends it, no attempt stays alive.
* What scripts print is kept sealed; whoever the manifest names reads it with :func:`read_log`. So is what was wrong
  when a worker lied, for :func:`read_findings`; the runner never attempts that stage again by itself.
* Nothing in a host's configuration can change what the manifest says.

>>> from cloister.run import Host
>>> Host(storage="/var/lib/outputs", images={"data": "s3://bucket/data.cloister"}).image_url("data")
's3://bucket/data.cloister'
"""

from cloister.run._bundling import make_bundle
from cloister.run._findings import Findings, KeptFindings, parse_findings, read_findings
from cloister.run._host import Host, load_host
from cloister.run._logs import KeptLog, parse_log, read_log
from cloister.run._runner import Event, Runner, start_run, worth_retrying
from cloister.run._state import Produced, RunFolder, RunState

__all__ = [
    "Event",
    "Findings",
    "Host",
    "KeptFindings",
    "KeptLog",
    "Produced",
    "RunFolder",
    "RunState",
    "Runner",
    "load_host",
    "make_bundle",
    "parse_findings",
    "parse_log",
    "read_findings",
    "read_log",
    "start_run",
    "worth_retrying",
]

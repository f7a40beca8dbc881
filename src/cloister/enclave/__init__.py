"""Enclave: where code runs. The launcher, its sandbox, its measurement, and the executors that start it.

A launcher takes one *job* from the host, who is not trusted, and gives back one *outcome*. Everything that matters is
in the signed manifest; a job only says where things lie.

Rules:

* This room decides no trust: evidence goes to key managers, who release keys or do not.
* Plaintext lies in private memory only, and is removed whatever happens.
* The script runs unmodified, in bubblewrap: all namespaces, no capability, no network, a system call filter, a cleared
  environment, inputs read-only, memory, time and processes limited. Without bubblewrap nothing runs.
* What is mounted for a script is what is measured. Bytecode that nothing measured is never read. A script's is kept
  under a key that the TEE gives to this code only. A launcher's own process reads none where there is a TEE; in
  simulation it believes its own user's earlier processes.
* A launcher, like a service and a key manager, has the variables that ``closed_environment`` names and no other,
  whoever starts it.
* A stage's layers leave through a broker in the launcher's process (:class:`Offloader`): its script has no network, no
  address and no key of a worker. When a product was wrong, that is all that anybody outside learns.
* A stage that saves its state goes on from the last one: the host keeps ciphertext, the key managers know which is the
  last, and no data is opened for an attempt that was given another.
* Once data is open, the host learns of a failure its code and nothing else. What a script prints is dropped, or sealed
  to the parties that the manifest names, always at the same length.
* The executor ``inline`` has no sandbox. It has another measurement, needs simulated evidence, and its receipts say
  ``UNSANDBOXED``.

What this does not give: without hardware, root on the host sees everything, memory may be swapped, and the
measurement is the host's word. Whether a script ends well, how long it ran, and the padded size of its outputs are
always visible.

>>> from cloister import enclave
>>> enclave.executor_named("process").name
'process'
>>> sorted(enclave.EXECUTORS)
['inline', 'process']
"""

from cloister.enclave._boundary import boundary_command, close_process, private_folder
from cloister.enclave._bytecode import imported_packages
from cloister.enclave._confinement import Confinement, Sandboxed, StageScript
from cloister.enclave._entry import become, closed_environment, ensure_closed, start_command
from cloister.enclave._executor import (
    EXECUTORS,
    Executor,
    InlineExecutor,
    ProcessExecutor,
    StageTask,
    executor_named,
)
from cloister.enclave._findings import FINDINGS_LABEL, SealedFindings, open_findings
from cloister.enclave._installed import measure_installed
from cloister.enclave._job import MAX_JOB_BYTES, Job, StageFailure, StageOutcome, StageResult
from cloister.enclave._launcher import launch_sandboxed
from cloister.enclave._logs import LOG_LABEL, MAX_LOG_BYTES, SealedLog, open_log, seal_log
from cloister.enclave._measurement import ROLES, Measured, diff_listings, measure, parse_listing
from cloister.enclave._offloading import Broker, OffloadEnd, Offloader
from cloister.enclave._preparing import (
    Preparation,
    PreparationOutcome,
    Prepared,
    parse_task,
    prepare,
    prepare_here,
)
from cloister.enclave._release import AttemptKeys, ObtainKeys, obtain_keys
from cloister.enclave._sandbox import require_bubblewrap
from cloister.enclave._workspace import Workspace, check_unpacked

__all__ = [
    "EXECUTORS",
    "FINDINGS_LABEL",
    "LOG_LABEL",
    "MAX_JOB_BYTES",
    "MAX_LOG_BYTES",
    "ROLES",
    "AttemptKeys",
    "Broker",
    "Confinement",
    "Executor",
    "InlineExecutor",
    "Job",
    "Measured",
    "ObtainKeys",
    "OffloadEnd",
    "Offloader",
    "Preparation",
    "PreparationOutcome",
    "Prepared",
    "ProcessExecutor",
    "Sandboxed",
    "SealedFindings",
    "SealedLog",
    "StageFailure",
    "StageOutcome",
    "StageResult",
    "StageScript",
    "StageTask",
    "Workspace",
    "become",
    "boundary_command",
    "check_unpacked",
    "close_process",
    "closed_environment",
    "diff_listings",
    "ensure_closed",
    "executor_named",
    "imported_packages",
    "launch_sandboxed",
    "measure",
    "measure_installed",
    "obtain_keys",
    "open_findings",
    "open_log",
    "parse_listing",
    "parse_task",
    "prepare",
    "prepare_here",
    "private_folder",
    "require_bubblewrap",
    "seal_log",
    "start_command",
]

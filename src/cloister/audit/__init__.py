"""Audit: checks a finished run, offline, from its bundle.

Rules:

* Pure: bundle, time, pinned identities and kept heads in, report out. No file, no network, no clock.
* The runner, who made the bundle, is trusted for nothing. Everything counts only by a signature of somebody else:
  the owners (manifest), the key managers (grants, releases, log), the attested launchers (registrations, receipts).
* Every statement is ``asserted``, ``refuted`` or ``unknown`` with its reason. Unknown is never acceptance.
* What no bundle can show (side channels, right labels, what a model reveals) is listed as unknown, not left out.
"""

from cloister.audit._check import AuditReport, Check, Ran, Released, Status
from cloister.audit._html import render_html
from cloister.audit._verify import verify

__all__ = ["AuditReport", "Check", "Ran", "Released", "Status", "render_html", "verify"]

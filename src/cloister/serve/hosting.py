"""The host's half of serving: start a service's process, and what runs inside it. Linux only."""

from cloister.serve._process import OpenService, ServiceJob, ServiceStarted, open_service
from cloister.serve._starting import run_service

__all__ = ["OpenService", "ServiceJob", "ServiceStarted", "open_service", "run_service"]

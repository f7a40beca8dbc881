"""One simulated site for the room's tests, at a fixed moment, and a kernel that shows configfs-tsm."""

import contextlib
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister import attest
from cloister.attest import _tsm

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def at() -> datetime:
    return AT


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> attest.SimulatedSite:
    return attest.SimulatedSite.create(tmp_path_factory.mktemp("site"), created=datetime(2026, 11, 1, tzinfo=UTC))


@pytest.fixture(scope="session")
def roots(site: attest.SimulatedSite) -> attest.TrustRoots:
    return attest.VENDOR_ROOTS.with_development(site.root_spki)


@pytest.fixture(scope="session")
def judge(site: attest.SimulatedSite, roots: attest.TrustRoots) -> Callable[..., attest.Verdict]:
    """Makes simulated evidence with the knobs given and appraises it."""

    def appraise(
        *,
        report_data: bytes = bytes(64),
        collateral: attest.Collateral | None = None,
        policy: attest.Policy = attest.DANGEROUS_DEVELOPMENT_POLICY,
        when: datetime = AT,
        knobs: attest.CollateralKnobs | None = None,
        tee: attest.EvidenceType = "tdx",
        roots: attest.TrustRoots = roots,
        **attester: object,
    ) -> attest.Verdict:
        measurement = bytes(48 if tee == "tdx" else 32)
        made = site.attester(measurement, tee=tee, collateral=knobs, clock=lambda: AT, **attester)
        return attest.appraise(made.attest(report_data), collateral, policy, when, roots=roots)

    return appraise


class FakeKernel:
    """Fills each new entry as configfs does: attributes appear with the folder, reading outblob makes the quote."""

    def __init__(self, site: attest.SimulatedSite) -> None:
        self.attester = site.attester(b"k" * 48, attach_collateral=False)
        self.provider, self.other_writers, self.tail = "tdx_guest\n", 0, b""
        self.generation: str | None = None

    def mkdir(self, entry: Path) -> None:
        os.mkdir(entry)
        (entry / "provider").write_text(self.provider)
        (entry / "generation").write_text(self.generation or "0\n")
        os.mkfifo(entry / "inblob")
        os.mkfifo(entry / "outblob")
        threading.Thread(target=self._serve, args=(entry,), daemon=True).start()

    def _serve(self, entry: Path) -> None:
        with contextlib.suppress(OSError):  # the reader may have had enough and gone
            report_data = (entry / "inblob").read_bytes()
            (entry / "generation").write_text(f"{1 + self.other_writers}\n")
            (entry / "outblob").write_bytes(self.attester.attest(report_data).quote + self.tail)

    def rmdir(self, entry: Path) -> None:
        for child in entry.iterdir():
            child.unlink()
        os.rmdir(entry)


@pytest.fixture
def kernel(site: attest.SimulatedSite, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    made = FakeKernel(site)
    monkeypatch.setattr(_tsm, "_make", made.mkdir)
    monkeypatch.setattr(_tsm, "_remove", made.rmdir)
    return made

"""Evidence of a real TDX guest, through Linux's configfs-tsm.

Source: Linux, Documentation/ABI/testing/configfs-tsm-report.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from cloister.attest._attester import Attester
from cloister.attest._evidence import MAX_QUOTE_BYTES, Evidence
from cloister.attest._quote import TdReport, parse_quote
from cloister.errors import AttestationError, InputError
from cloister.wire import Secret

__all__ = ["ConfigfsTsmAttester", "find_attester"]

DEFAULT_ROOT: Final = "/sys/kernel/config/tsm/report"
_PROVIDERS: Final = {"tdx_guest": "tdx"}
REPORT_DATA_BYTES = 64


class ConfigfsTsmAttester:
    """An :class:`~cloister.attest.Attester` of the TDX guest it runs in.

    Args:
        root: Where configfs shows the reports.
    """

    def __init__(self, root: Path | str = DEFAULT_ROOT) -> None:
        self._root = Path(root)
        self._measurement: str | None = None

    @property
    def measurement(self) -> str:
        """MRTD, hexadecimal, as this guest's own quote says."""
        if self._measurement is None:
            quote = parse_quote(self.attest(bytes(REPORT_DATA_BYTES)).quote)
            if not isinstance(quote.body, TdReport):
                raise AttestationError(4160, "the platform gave a quote of another TEE", expected="tdx", got=quote.tee)
            self._measurement = quote.body.mr_td.hex()
        return self._measurement

    @property
    def simulated(self) -> bool:
        """Always False; whether hardware stands behind it, a verifier decides."""
        return False

    def attest(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes, without collateral.

        Raises:
            InputError: 2108 when ``report_data`` is not 64 bytes.
            AttestationError: 4160 when the kernel refuses, is no TDX guest, or another writer came between.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise InputError(2108, "report data", expected="64 bytes", got=f"{len(report_data)} bytes")
        entry = self._root / f"cloister-{secrets.token_hex(8)}"
        try:
            _make(entry)
            try:
                return self._read(entry, report_data)
            finally:
                _remove(entry)
        except OSError as error:
            raise AttestationError(4160, f"configfs-tsm: {error.strerror}", got=str(entry)) from error

    def sealing_key(self, label: str) -> Secret | None:
        """None: TDX gives a guest no sealing key."""
        return None

    def _read(self, entry: Path, report_data: bytes) -> Evidence:
        provider = (entry / "provider").read_text(encoding="ascii").strip()
        if provider not in _PROVIDERS:
            raise AttestationError(4160, "not a TDX guest", expected=", ".join(_PROVIDERS), got=provider[:40])
        before = self._generation(entry)
        with open(entry / "inblob", "wb", buffering=0) as file:  # one write: the kernel takes the blob as it comes
            file.write(report_data)
        with open(entry / "outblob", "rb") as file:
            quote = file.read(MAX_QUOTE_BYTES + 1)
        if self._generation(entry) != before + 1:
            # somebody else wrote in between, so the quote may be over their bytes
            raise AttestationError(4160, "configfs-tsm: another writer came between", got=str(entry))
        if len(quote) > MAX_QUOTE_BYTES:
            raise AttestationError(4103, expected=f"at most {MAX_QUOTE_BYTES} bytes")
        return Evidence(type="tdx", quote=quote)

    @staticmethod
    def _generation(entry: Path) -> int:
        text = (entry / "generation").read_text(encoding="ascii").strip()
        if not text.isdecimal():
            raise AttestationError(4160, "configfs-tsm: no generation", got=text[:40])
        return int(text)

    def __repr__(self) -> str:
        return f"<ConfigfsTsmAttester {self._root}>"


def _make(entry: Path) -> None:
    """Makes a report entry: in configfs its attributes appear with the folder."""
    os.mkdir(entry)


def _remove(entry: Path) -> None:
    """Removes it: in configfs its attributes go with the folder."""
    os.rmdir(entry)


def find_attester(root: Path | str = DEFAULT_ROOT) -> Attester:
    """The attester of the TEE that this process runs in.

    Raises:
        AttestationError: 4161 when there is none that we know.
    """
    if Path(root).is_dir():
        return ConfigfsTsmAttester(root)
    raise AttestationError(4161, got=f"no {root}")

"""A simulated site: a machine that speaks the vendor's formats under a root that it made itself.

It protects nothing. It exists so that everything above attestation runs, and is attacked in tests, on machines
without a TEE, through the same verifier that checks real hardware.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from cloister.attest._evidence import Collateral, Evidence, EvidenceType
from cloister.attest._simulated_pki import FMSPC_BYTES, PPID_BYTES, Certificates, Keys, issue_certificates
from cloister.attest._simulated_quote import (
    CollateralKnobs,
    TdKnobs,
    build_collateral,
    build_sgx_quote,
    build_tdx_quote,
)
from cloister.attest._times import as_utc, parse_time, stamp
from cloister.errors import CloisterError, InputError
from cloister.wire import B64, Digest, Message, Secret, Timestamp, canonical, parse_message, read_bounded, write_private

__all__ = ["SimulatedAttester", "SimulatedSite"]

REPORT_DATA_BYTES, MRTD_BYTES, MRENCLAVE_BYTES = 64, 48, 32
_CONFIG_BYTES = {"tdx": 48, "sgx": 64}
_FILE = "simulated-site.json"
_MAX_FILE_BYTES = 64 * 1024
_FRESH_FOR = timedelta(hours=1)
_KEY_NAMES = ("root", "authority", "pck", "signing", "attestation")
_CERTIFICATE_NAMES = ("root", "authority", "pck", "signing")


class _SiteFile(Message):
    version: Literal[1] = 1
    created: Timestamp
    ppid: B64
    fmspc: B64
    root_spki: Digest
    secret: B64
    keys: dict[str, B64]
    certificates: dict[str, B64]


class SimulatedSite:
    """One simulated machine room; make it with :meth:`create`, come back with :meth:`open`."""

    def __init__(
        self, keys: Keys, certificates: Certificates, secret: Secret, *, ppid: bytes, fmspc: bytes, created: datetime
    ) -> None:
        self._keys, self._certificates, self._secret = keys, certificates, secret
        self._ppid, self._fmspc, self._created = ppid, fmspc, created

    @classmethod
    def create(cls, folder: Path | str, *, created: datetime | None = None) -> SimulatedSite:
        """A new site with a root of its own, kept in one file of ``folder``, mode 0600, written all or not at all.

        Args:
            folder: Made when it does not exist.
            created: From when its certificates are valid; an hour ago when None.

        Raises:
            InputError: 2007 when the folder holds a site already.
        """
        path = Path(folder) / _FILE
        since = as_utc(created) if created is not None else datetime.now(UTC) - timedelta(hours=1)
        since = since.replace(microsecond=0)
        keys, ppid, fmspc = Keys.generate(), secrets.token_bytes(PPID_BYTES), secrets.token_bytes(FMSPC_BYTES)
        certificates = issue_certificates(keys, ppid=ppid, fmspc=fmspc, created=since)
        site = cls(keys, certificates, Secret.random(32), ppid=ppid, fmspc=fmspc, created=since)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_once(path, canonical(site._file().as_json()))
        return site

    @classmethod
    def open(cls, folder: Path | str) -> SimulatedSite:
        """The site of ``folder``.

        Raises:
            InputError: 2001 no site there; 2014 its file is readable by others; 2109 its file is damaged.
        """
        path = Path(folder) / _FILE
        data = read_bounded(path, max_bytes=_MAX_FILE_BYTES, what="simulated site")
        if path.stat().st_mode & 0o077:
            raise InputError(2014, f"'{path}' is readable by others", expected="mode 0600")
        try:
            file = parse_message(_SiteFile, data, what="simulated site", secret=True)
            keys = Keys(*(_load_key(file.keys[name]) for name in _KEY_NAMES))
            certificates = Certificates(
                *(x509.load_der_x509_certificate(file.certificates[n]) for n in _CERTIFICATE_NAMES)
            )
            created, secret = parse_time(file.created), Secret(file.secret)
            site = cls(keys, certificates, secret, ppid=file.ppid, fmspc=file.fmspc, created=created)
            site._check(file)
        except (CloisterError, KeyError, ValueError, TypeError):
            raise InputError(2109, f"'{path}' is not a usable site") from None
        return site

    @property
    def root_spki(self) -> str:
        """SHA-256 of the root's public key: what a verifier names to accept this site."""
        spki = self._certificates.root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).hexdigest()

    @property
    def root_certificate(self) -> bytes:
        """The root in DER, for other verifiers."""
        return self._certificates.root.public_bytes(Encoding.DER)

    @property
    def fmspc(self) -> str:
        """The platform's kind, hexadecimal."""
        return self._fmspc.hex()

    @property
    def platform(self) -> str:
        """The platform's id (PPID), hexadecimal."""
        return self._ppid.hex()

    def collateral(
        self, at: datetime, *, tee: EvidenceType = "tdx", knobs: CollateralKnobs | None = None
    ) -> Collateral:
        """Collateral that is good from shortly before ``at`` for thirty days.

        Args:
            at: When it is issued.
            tee: What it is for.
            knobs: What it says about the platform; UpToDate when None.
        """
        return build_collateral(
            self._keys,
            self._certificates,
            tee=tee,
            fmspc=self._fmspc,
            at=as_utc(at),
            not_before=self._created,
            knobs=knobs or CollateralKnobs(),
        )

    def attester(
        self,
        measurement: bytes,
        *,
        tee: EvidenceType = "tdx",
        config_id: bytes = b"",
        signer: bytes = bytes(32),
        debug: bool = False,
        td: TdKnobs | None = None,
        collateral: CollateralKnobs | None = None,
        attach_collateral: bool = True,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> SimulatedAttester:
        """A simulated TEE of this site, running the code with this measurement.

        Args:
            measurement: MRTD, 48 bytes; for ``sgx`` MRENCLAVE, 32 bytes.
            tee: Which format it speaks.
            config_id: MRCONFIGID or CONFIGID, padded with zeros.
            signer: MRSIGNER, ``sgx`` only.
            debug: The host may look inside.
            td: What else a TD says about itself.
            collateral: What the attached collateral says about the platform.
            attach_collateral: Evidence brings its collateral along.
            clock: When collateral is issued.

        Raises:
            InputError: 2108 when a size is wrong.
        """
        _check_size("measurement", measurement, MRTD_BYTES if tee == "tdx" else MRENCLAVE_BYTES)
        _check_size("signer", signer, 32)
        if len(config_id) > _CONFIG_BYTES[tee]:
            raise InputError(
                2108, "configuration id", expected=f"at most {_CONFIG_BYTES[tee]} bytes", got=len(config_id)
            )
        knobs = td or TdKnobs()
        if debug:
            knobs = replace(knobs, debug=True)
        return SimulatedAttester(
            self,
            measurement,
            tee=tee,
            config_id=config_id.ljust(_CONFIG_BYTES[tee], b"\0"),
            signer=signer,
            knobs=knobs,
            collateral_knobs=collateral,
            attach_collateral=attach_collateral,
            clock=clock,
        )

    def derive(self, label: bytes) -> Secret:
        """32 bytes that depend on the site's secret and on ``label``."""
        return Secret(HKDF(SHA256(), 32, salt=None, info=label).derive(self._secret.reveal()))

    def signing_material(self) -> tuple[Keys, Certificates]:
        """The site's keys and certificates, for its attesters."""
        return self._keys, self._certificates

    def _check(self, file: _SiteFile) -> None:
        """Each key must be the one that its certificate names, else quotes would fail far from the cause."""
        for name in _CERTIFICATE_NAMES:
            if getattr(self._keys, name).public_key() != getattr(self._certificates, name).public_key():
                raise ValueError(f"key of {name}")
        if self.root_spki != file.root_spki or len(file.secret) != 32:
            raise ValueError("root or secret")

    def _file(self) -> _SiteFile:
        return _SiteFile(
            created=stamp(self._created),
            ppid=self._ppid,
            fmspc=self._fmspc,
            root_spki=self.root_spki,
            secret=self._secret.reveal(),
            keys={name: _dump_key(getattr(self._keys, name)) for name in _KEY_NAMES},
            certificates={n: getattr(self._certificates, n).public_bytes(Encoding.DER) for n in _CERTIFICATE_NAMES},
        )

    def __repr__(self) -> str:
        return f"<SimulatedSite {self.root_spki[:16]}…>"


class SimulatedAttester:
    """An :class:`~cloister.attest.Attester` of a simulated site."""

    def __init__(
        self,
        site: SimulatedSite,
        measurement: bytes,
        *,
        tee: EvidenceType,
        config_id: bytes,
        signer: bytes,
        knobs: TdKnobs,
        collateral_knobs: CollateralKnobs | None,
        attach_collateral: bool,
        clock: Callable[[], datetime],
    ) -> None:
        self._site, self._measurement = site, measurement
        self._tee: EvidenceType = tee
        self._config_id, self._signer, self._knobs = config_id, signer, knobs
        self._collateral_knobs, self._attach, self._clock = collateral_knobs, attach_collateral, clock
        self._collateral: tuple[datetime, Collateral] | None = None

    @property
    def measurement(self) -> str:
        """MRTD or MRENCLAVE, hexadecimal."""
        return self._measurement.hex()

    @property
    def simulated(self) -> bool:
        """Always True."""
        return True

    def attest(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes.

        Raises:
            InputError: 2108 when ``report_data`` is not 64 bytes.
        """
        _check_size("report data", report_data, REPORT_DATA_BYTES)
        keys, certificates = self._site.signing_material()
        common = {"measurement": self._measurement, "config_id": self._config_id, "report_data": report_data}
        if self._tee == "tdx":
            quote = build_tdx_quote(keys, certificates, knobs=self._knobs, **common)
        else:
            quote = build_sgx_quote(keys, certificates, signer=self._signer, debug=self._knobs.debug, **common)
        return Evidence(type=self._tee, quote=quote, collateral=self._current() if self._attach else None)

    def sealing_key(self, label: str) -> Secret:
        """32 bytes for this measurement, configuration, debug state and label on this site."""
        state = b"debug" if self._knobs.debug else b"production"
        parts = (
            b"cloister/simulated-sealing/v1",
            self._tee.encode(),
            state,
            self._measurement,
            self._config_id,
            label.encode(),
        )
        return self._site.derive(b"".join(len(part).to_bytes(4, "big") + part for part in parts))

    def _current(self) -> Collateral:
        now = as_utc(self._clock())
        if self._collateral is None or not timedelta() <= now - self._collateral[0] < _FRESH_FOR:
            self._collateral = now, self._site.collateral(now, tee=self._tee, knobs=self._collateral_knobs)
        return self._collateral[1]

    def __repr__(self) -> str:
        return f"<SimulatedAttester {self._tee} {self.measurement[:16]}…>"


def _write_once(path: Path, data: bytes) -> None:
    """All of ``data`` or nothing, and never over a file that is there: of two that race, one wins."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_private(draft, data)
        os.link(draft, path)
    except FileExistsError:
        raise InputError(2007, f"there is a simulated site already: '{path}'") from None
    finally:
        draft.unlink(missing_ok=True)


def _check_size(what: str, value: bytes, size_bytes: int) -> None:
    if len(value) != size_bytes:
        raise InputError(2108, what, expected=f"{size_bytes} bytes", got=f"{len(value)} bytes")


def _dump_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _load_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_der_private_key(data, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an EC key")
    return key

"""`cloister linear`, as typed: from a draft to a model that every party has signed. The session is a stand-in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.linear_people import NAMES, PEOPLE, agreed, free_ports, signed_by_all, together, written

from cloister.cli import _linear_run, main
from cloister.errors import CloisterError, IntegrityError, PeerError
from cloister.linear import _fit, load_model
from cloister.linear._agreement import Agreement
from cloister.linear._consent import load_agreement, load_signed
from cloister.linear._emulator import CoinTable, Emulator
from cloister.linear._link import TlsChannel
from cloister.linear._model import MODEL_LABEL, Released, read_model, signed_payload, statistics_in
from cloister.linear._plan import roundings
from cloister.linear._preflight import preflight
from cloister.linear._program import fit
from cloister.linear._session_hello import greet
from cloister.linear._statistics import entries_of
from cloister.linear._terms import StatisticsTerms
from cloister.linear._transcript import labelled
from cloister.party import Identity, Pins, fingerprint
from cloister.wire import canonical

ROWS = (120, 140, 160)
Cli = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def key_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everybody's key files, with the cheapest derivation that a reader accepts."""
    from cloister.party import _keyfile

    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_keyfile, "_COST", _keyfile._LEAST)
        for name in NAMES:
            PEOPLE[name].save(folder, "correct horse")
    return folder


@pytest.fixture
def home(key_files: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    for path in key_files.iterdir():
        os.link(path, folder / path.name)
    for name in NAMES:
        Pins(folder).pin(PEOPLE[name].public, words=fingerprint(PEOPLE[name].public))
    return folder


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path) -> Cli:
    monkeypatch.setenv("CLOISTER_HOME", str(home))
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "correct horse")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: str = os.devnull) -> tuple[int, Any, str]:
        with open(stdin) as file:
            monkeypatch.setattr("sys.stdin", file)
            capsys.readouterr()  # what the other parties said before
            with pytest.raises(SystemExit) as ended:
                main(["linear", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), (json.loads(out) if "--json" in arguments else out), err

    return run


@pytest.fixture
def signed(cli: Cli, tmp_path: Path) -> Agreement:
    """An agreement on small rows, signed by all: ``aml.signed.json``; the rows are in ``NAME.csv``."""
    generator = np.random.default_rng(5)
    document = written(model={"type": "ridge", "alpha": "8", "steps": 200, "floor": "0.005"}, curvature="12")
    document |= {"mean_square": "4", "tolerance": "0.01"}
    for party, rows in zip(document["parties"], ROWS, strict=True):
        party["rows"] = rows
        table = generator.normal(size=(rows, 2)) * [4, 15] + [2, -0.5]
        kinds = generator.choice(["card", "cash", "wire"], rows)
        risk = 1 + 0.3 * table[:, 0] - 0.05 * table[:, 1] + (kinds == "wire") + generator.normal(size=rows)
        lines = [f"{a:.6f},{k},{b:.6f},{y:.6f}" for (a, b), k, y in zip(table, kinds, risk, strict=True)]
        (tmp_path / f"{party['name']}.csv").write_text("amount,kind,age,risk\n" + "\n".join(lines) + "\n")
    (tmp_path / "aml.yaml").write_bytes(canonical(document))
    source = "aml.yaml"
    for name in NAMES:
        assert cli("sign", source, "--as", name, "--yes", "--json")[0] == 0
        source = "aml.signed.json"
    return load_signed((tmp_path / source).read_bytes()).agreement


def stand_in(channel: TlsChannel, agreement: Agreement, summary: Any, *, identity: Identity, part: Any) -> Released:
    """A session without secrets: everybody sends everybody its statistics, and the same program runs on their sum."""
    session = greet(channel, agreement, identity)
    channel.begin("online")
    own = summary.statistics.astype("<i8").tobytes()
    sums = [np.frombuffer(body, "<i8") for body in channel.swap("sums", [own] * channel.parties, len(own))]
    plan, width = agreement.plan(), len(agreement.columns) + 2
    total = sum(sums).reshape(width, width)
    if isinstance(agreement.model, StatisticsTerms):
        values = tuple(int(total[entry]) for entry in entries_of(agreement.model.open, width))
    else:
        coins = CoinTable([0] * size for _, size in roundings(plan))
        values = fit(Emulator(plan, coins), plan, total)
    channel.begin("release")
    transcript = labelled("stand-in", session)
    signature = identity.signing_key.sign(MODEL_LABEL, signed_payload(agreement.id, session, transcript, values))
    all_ = channel.swap("signature", [signature] * channel.parties, 64)
    names = [party.name for party in agreement.parties]
    return Released(session, transcript, values, dict(zip(names, all_, strict=True)))


def run_all(agreement: Agreement, session: Callable[..., Released], *more: str, out: str = "model") -> list[int]:
    """The exit status of every party's ``run``, all in this process."""

    def one(name: str, address: str) -> int:
        arguments = ["run", "aml.signed.json", "--as", name, "--data", f"{name}.csv", "-o", f"{name}.{out}.json"]
        with pytest.raises(SystemExit) as ended:
            main(["linear", *arguments, "--listen", address, *more])
        return int(ended.value.code or 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_fit, "run_session", session)
        return together(*(lambda p=party: one(p.name, p.address) for party in agreement.parties))


def error_of(found: tuple[int, Any, str]) -> int:
    return int(found[1]["error"]["code"])


# ---- new and sign --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ridge", "lasso", "elastic-net", "logistic", "statistics"])
def test_a_draft_can_be_signed_once_it_is_filled_in(cli: Cli, tmp_path: Path, kind: str) -> None:
    ports = free_ports(3)
    parties = [
        f"--party={name}@10.0.0.{place}:{port}" for place, (name, port) in enumerate(zip(NAMES, ports, strict=True))
    ]
    (tmp_path / "rows.csv").write_text("amount,age,risk\n1,2,3\n")
    status, facts, _ = cli(
        "new",
        "aml",
        *parties,
        "--model",
        kind,
        "--columns",
        "rows.csv",
        "--response",
        "risk",
        "-o",
        "aml.yaml",
        "--json",
    )
    assert (status, facts) == (0, {"file": "aml.yaml"})
    assert error_of(cli("sign", "aml.yaml", "--as", "bank-a", "--yes", "--json")) == 2005
    text = (tmp_path / "aml.yaml").read_text()
    text = text.replace("FILL-IN-NUMBER", "100").replace("FILL-IN-NO", "no").replace("FILL-IN-YES", "yes")
    (tmp_path / "aml.yaml").write_text(text.replace("FILL-IN: one", "one"))
    status, facts, err = cli("sign", "aml.yaml", "--as", "bank-b", "--yes", "--json")
    assert (status, facts["missing"]) == (0, ["bank-a", "bank-c"])
    assert "UNPROTECTED" in err
    agreement = load_agreement(tmp_path / "aml.yaml")
    assert agreement.columns == ("amount", "age")
    assert [party.key for party in agreement.parties] == [str(PEOPLE[name].signing_key.public) for name in NAMES]


def test_a_draft_of_what_there_is_not_is_refused(cli: Cli) -> None:
    party = ("--party", "bank-a@10.0.0.1:7443", "--party", "bank-b@10.0.0.2:7443")
    assert error_of(cli("new", "aml", *party, "--model", "forest", "--json")) == 2005
    assert error_of(cli("new", "aml", *party[:2], "--json")) == 2005
    assert error_of(cli("new", "aml", *party, "--adversary", "covert", "--json")) == 2019
    assert error_of(cli("new", "aml", "--party", "bank-a", "--json")) == 2019
    assert error_of(cli("new", "aml", "--party", "nobody@10.0.0.1:1", "--json")) == 2013


def test_signing_is_consent(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "aml.yaml").write_bytes(canonical(written()))
    assert error_of(cli("sign", "aml.yaml", "--as", "bank-a", "--json")) == 3307
    assert not (tmp_path / "aml.signed.json").exists()
    assert cli("sign", "aml.yaml", "--as", "bank-a", "--yes", "-o", "a.json")[0] == 0
    assert cli("sign", "aml.yaml", "--as", "bank-c", "--yes", "-o", "c.json")[0] == 0
    assert error_of(cli("sign", "aml.yaml", "--as", "bank-c", "--yes", "-o", "c.json", "--json")) == 2007
    status, out, _ = cli("sign", "a.json", "c.json", "-o", "both.json")
    assert status == 0
    assert "bank-a, bank-c; still needed: bank-b" in out
    assert cli("sign", "both.json", "--as", "bank-b", "--yes", "--json")[1]["missing"] == []


def test_a_key_that_is_not_pinned_is_not_signed_for(cli: Cli, home: Path, tmp_path: Path) -> None:
    (tmp_path / "aml.yaml").write_bytes(canonical(written()))
    (home / "pins" / "bank-c.pub").unlink()
    assert error_of(cli("sign", "aml.yaml", "--as", "bank-a", "--yes", "--json")) == 3303


# ---- explore and estimate ------------------------------------------------------------------------------------


def test_exploring_says_what_the_rows_need(cli: Cli, signed: Agreement, tmp_path: Path) -> None:
    data = [f"--data={name}.csv" for name in NAMES]
    penalties = [f"--alpha={alpha}" for alpha in (1, 5000, 1_000_000)]
    status, facts, _ = cli("explore", "aml.yaml", *data, *penalties, "--json")
    assert status == 0
    assert (facts["agreement"], facts["measure"]) == (signed.id, "R²")
    assert facts["rows"] == facts["agreed_rows"] == list(ROWS)
    assert facts["agreed"]["curvatures"] == dict.fromkeys(NAMES, "12")
    assert all(1 <= float(need) <= 12 for need in facts["needed"]["curvatures"].values())
    assert set(facts["needed"]["mean_squares"]) == {*signed.columns, "risk"}
    assert facts["beyond"] == []
    gentle, harsh, absurd = facts["trials"]
    assert gentle["problem"] is None
    assert gentle["score"] > 0.3 > harsh["score"] > 0
    assert absurd["score"] is None
    assert absurd["problem"]["code"] == 2901
    assert absurd["problem"]["hint"]
    status, out, _ = cli("explore", "aml.yaml", data[0])
    assert status == 0
    assert "rows       120 (agreed 420)" in out
    assert error_of(cli("explore", "aml.yaml", *data[:2], "--json")) == 2907
    assert error_of(cli("explore", "aml.yaml", *data, "--alpha", "much", "--json")) == 2019


def test_exploring_what_a_session_would_refuse_ends_with_2(cli: Cli, signed: Agreement, tmp_path: Path) -> None:
    data = [f"--data={name}.csv" for name in NAMES]
    document = json.loads((tmp_path / "aml.yaml").read_text())
    document["features"][0]["scale"] = "0.5"
    (tmp_path / "narrow.yaml").write_bytes(canonical(document))
    status, out, _ = cli("explore", "narrow.yaml", *data)
    assert status == 2
    assert "column 'amount' needs" in out
    assert "with the needed bounds, not the agreed" in out
    status, facts, _ = cli("explore", "narrow.yaml", *data, "--json")
    assert (status, {one["code"] for one in facts["beyond"]}) == (2, {2902, 2903})
    assert {one["bounds"] for one in facts["trials"]} == {"needed"}
    status, facts, _ = cli("explore", "aml.yaml", *data, "--alpha", "100000", "--json")
    assert (status, facts["beyond"]) == (2, [])
    assert cli("explore", "aml.yaml", data[1], *data[1:])[0] == 2  # 140 rows for 120


def test_exploring_statistics_says_the_bounds(cli: Cli, signed: Agreement, tmp_path: Path) -> None:
    document = json.loads((tmp_path / "aml.yaml").read_text())
    document["model"] = {"type": "statistics", "open": ["means"]}
    (tmp_path / "sums.yaml").write_bytes(canonical(document))
    status, out, _ = cli("explore", "sums.yaml", "--data=bank-a.csv")
    assert status == 0
    assert "squares    at most" in out
    assert "penalty" not in out


def test_exploring_with_noise_says_that_no_budget_counts_it(cli: Cli, signed: Agreement, tmp_path: Path) -> None:
    document = json.loads((tmp_path / "aml.yaml").read_text())
    document["privacy"] = {"epsilon": "3", "delta": "1e-6", "noise_multiplier": "4", "clip": "4"}
    (tmp_path / "private.yaml").write_bytes(canonical(document))
    status, out, _ = cli("explore", "private.yaml", "--data=bank-a.csv")
    assert status == 2
    assert "needs a greater curvature" in out
    assert "no budget counts them" in out


def test_an_estimate_is_by_phase_and_needs_no_rows(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "aml.yaml").write_bytes(canonical(written()))
    status, facts, _ = cli("estimate", "aml.yaml", "--no-measure", "--json")
    assert status == 0
    assert list(facts["phases"]) == ["answers", "checks", "groups", "inputs", "online", "release", "session"]
    assert facts["up_bytes"] == sum(one["up_bytes"] for one in facts["phases"].values())
    assert facts["semi_honest_seconds"] < facts["seconds"]
    slow = cli("estimate", "aml.yaml", "--no-measure", "--bandwidth", "10", "--round-trip", "100", "--json")[1]
    sent_s = facts["up_bytes"] * 8 / 10e6
    assert slow["seconds"] > facts["seconds"] + 0.9 * sent_s
    assert slow["up_bytes"] == facts["up_bytes"]
    document = json.loads((tmp_path / "aml.yaml").read_text())
    document["parties"] = [party | {"rows": 1000 * party["rows"]} for party in document["parties"]]
    (tmp_path / "large.yaml").write_bytes(canonical(document))
    large = cli("estimate", "large.yaml", "--no-measure", "--json")[1]
    assert large["up_bytes"] == pytest.approx(facts["up_bytes"], rel=0.01)
    assert "semi-honest would be" in cli("estimate", "aml.yaml", "--no-measure")[1]
    (tmp_path / "sums.yaml").write_bytes(canonical(written(model={"type": "statistics", "open": ["means"]})))
    sums = cli("estimate", "sums.yaml", "--no-measure", "--json")[1]
    assert 0 < sums["up_bytes"] < facts["up_bytes"] / 2


def test_a_machine_is_measured() -> None:
    from cloister.linear._estimate import Primitives, measured

    found = measured()
    assert 0 < found.ntt < 100
    assert found.head / found.ntt == pytest.approx(Primitives().head / Primitives().ntt)


# ---- check ---------------------------------------------------------------------------------------------------


def checked(cli: Cli, agreement: Agreement, *arguments: str, others: Any = None, wait: float = 10) -> Any:
    """bank-a's ``check`` while the other two run theirs."""
    held = others or agreement

    def theirs(place: int) -> Any:
        party = held.parties[place]
        return preflight(held, place, PEOPLE[party.name].signing_key, wait_s=wait, listen=party.address)

    line = ("check", "aml.signed.json", "--as", "bank-a", "--wait", "10", "--listen", agreement.parties[0].address)
    return together(lambda: cli(*line, *arguments), lambda: theirs(1), lambda: theirs(2))


def test_a_check_that_all_run_finds_them_ready(cli: Cli, signed: Agreement) -> None:
    (status, facts, err), second, third = checked(cli, signed, "--data", "bank-a.csv", "--json")
    assert (status, facts["ready"], facts["problems"]) == (0, True, [])
    assert facts["data"] == "within the bounds"
    assert [peer["name"] for peer in facts["peers"]] == ["bank-b", "bank-c"]
    assert all(peer["ready"] and abs(peer["clock_s"]) < 5 for peer in facts["peers"])
    assert "UNPROTECTED" in err
    assert all(peer.problem is None for peer in (*second, *third))


def test_a_check_names_what_is_wrong(cli: Cli, signed: Agreement, tmp_path: Path) -> None:
    other = Agreement.model_validate_json(signed.canonical().replace(b'"name":"aml"', b'"name":"amk"'))
    (status, facts, _), *_ = checked(cli, signed, "--data", "bank-b.csv", "--json", others=other)
    assert (status, facts["ready"], facts["data"]) == (2, False, "not within the bounds")
    assert [one["code"] for one in facts["problems"]] == [2907, 6907, 6907]
    assert [peer["problem"]["code"] for peer in facts["peers"]] == [6907, 6907]


def test_a_check_alone_names_who_is_missing(cli: Cli, signed: Agreement) -> None:
    listen = ("--listen", signed.parties[1].address)
    status, facts, _ = cli("check", "aml.signed.json", "--as", "bank-b", "--wait", "1", *listen, "--json")
    assert (status, [one["code"] for one in facts["problems"]]) == (6, [6901, 6901])
    assert signed.parties[0].address in facts["problems"][0]["what"]
    status, out, err = cli("check", "aml.signed.json", "--as", "bank-b", "--wait", "1", *listen)
    assert status == 6
    assert "bank-a  no: 'bank-a' did not answer" in out
    assert "error[CLOISTER-6901]" in err


def test_a_check_sends_nothing_of_the_rows(signed: Agreement, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    real = TlsChannel.swap

    def watched(self: TlsChannel, kind: str, bodies: Any, size_bytes: int) -> list[bytes]:
        sent.extend(bodies)
        return real(self, kind, bodies, size_bytes)

    monkeypatch.setattr(TlsChannel, "swap", watched)

    def one(place: int) -> Any:
        party = signed.parties[place]
        return preflight(signed, place, PEOPLE[party.name].signing_key, wait_s=10, listen=party.address)

    together(*(lambda place=place: one(place) for place in range(3)))
    assert {len(body) for body in sent} == {4 + 32 + 32 + 8 + 24}
    from cloister.linear._session_hello import plan_digest

    known = bytes.fromhex(signed.id) + plan_digest(*signed.plans())
    assert all(body[4:68] == known for body in sent)


# ---- run and compare -----------------------------------------------------------------------------------------


def test_all_run_the_same_line_and_hold_the_same_signed_model(cli: Cli, signed: Agreement, tmp_path: Path) -> None:
    assert run_all(signed, stand_in) == [0, 0, 0]
    files = [(tmp_path / f"{name}.model.json").read_bytes() for name in NAMES]
    assert files[0] == files[1] == files[2]
    kept = read_model(files[0], signed)
    assert sorted(kept.signatures) == list(NAMES)
    assert kept.columns == ("amount", "kind=card", "kind=cash", "kind=wire", "age")
    assert float(kept.coefficients[0]) == pytest.approx(0.3, abs=0.05)
    assert float(kept.coefficients[4]) == pytest.approx(-0.05, abs=0.02)
    loaded = load_model(tmp_path / "bank-a.model.json", tmp_path / "aml.signed.json")
    assert loaded.transcript == kept.transcript
    assert loaded.predict(np.zeros((2, 5))).tolist() == [float(kept.intercept or 0)] * 2
    other = signed_by_all(agreed(purpose="another"))
    with pytest.raises(CloisterError) as refused:
        load_model(tmp_path / "bank-a.model.json", other)
    assert refused.value.code == 2331
    assert "UNPROTECTED" in kept.card
    assert kept.transcript in kept.card
    data = [f"--data={name}.csv" for name in NAMES]
    status, facts, _ = cli("compare", "aml.signed.json", "bank-a.model.json", *data, "--json")
    assert (status, facts["rows"], facts["measure"]) == (0, sum(ROWS), "R²")
    own, local = facts["models"]
    assert own["distance"] == 0
    assert local["distance"] < 0.02
    assert own["score"] == pytest.approx(local["score"], abs=1e-3)
    status, out, _ = cli("compare", "aml.signed.json", "bank-a.model.json", "--data", "bank-b.csv")
    assert status == 0
    assert "local, same arithmetic" in out


def test_a_statistics_session_says_the_statistics(
    cli: Cli, signed: Agreement, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((tmp_path / "aml.yaml").read_text())
    document["model"] = {"type": "statistics", "open": ["means", "variances", "correlation"]}
    (tmp_path / "sums.yaml").write_bytes(canonical(document))
    source = "sums.yaml"
    for name in NAMES:
        assert cli("sign", source, "--as", name, "--yes")[0] == 0
        source = "sums.signed.json"
    (tmp_path / source).rename(tmp_path / "aml.signed.json")
    held = load_signed((tmp_path / "aml.signed.json").read_bytes()).agreement
    said: list[tuple[Any, str | None]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_linear_run, "show", lambda facts, text, *, json: said.append((facts, text)))
        assert run_all(held, stand_in, "--json") == [0, 0, 0]
    facts, text = said[0]
    assert text is not None
    assert text.startswith("statistics  ")
    assert "coefficient" not in text
    assert "coefficients" not in facts
    kept = read_model((tmp_path / "bank-a.model.json").read_bytes(), held)
    found = statistics_in(held, kept)
    tables = [(tmp_path / f"{name}.csv").read_text().splitlines()[1:] for name in NAMES]
    amounts = [float(line.split(",")[0]) for table in tables for line in table]
    assert found.variances is not None
    assert found.variances[0] == pytest.approx(np.var(amounts), rel=1e-5)
    assert facts["statistics"]["variances"] == [repr(float(value)) for value in found.variances]
    assert set(facts["statistics"]) == {"means", "variances", "correlation"}
    for name in NAMES:
        (tmp_path / f"{name}.model.json").unlink()
    capsys.readouterr()
    assert run_all(held, stand_in, "--consent") == [0, 0, 0]
    out = capsys.readouterr().out
    assert found.means is not None
    assert out.count(f"{sum(ROWS)} rows ") == 3
    assert "kind=wire" in out
    assert f"{found.means[0]:.6g}" in out


def test_a_terminal_sees_rows_and_phases(
    signed: Agreement, cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    assert run_all(signed, stand_in) == [0, 0, 0]
    shown = capsys.readouterr().err
    assert "rows" in shown
    assert "online" in shown
    assert "release" in shown


def test_a_model_is_kept_at_home_when_it_cannot_be_written_where_it_was_asked_for(
    signed: Agreement, cli: Cli, home: Path, tmp_path: Path
) -> None:
    run = ("run", "aml.signed.json", "--as", "bank-a", "--data", "bank-a.csv", "--json")
    assert error_of(cli(*run, "-o", "missing/m.json")) == 2001
    assert not (home / "linear").exists()  # nothing was begun

    def taken(*arguments: Any, **named: Any) -> Released:
        for name in NAMES:
            (tmp_path / f"{name}.model.json").mkdir(exist_ok=True)
        return stand_in(*arguments, **named)

    assert run_all(signed, taken) == [2, 2, 2]
    kept = sorted((home / "linear").glob("*.model.json"))
    assert len(kept) == 3
    assert {read_model(path.read_bytes(), signed).agreement for path in kept} == {signed.id}


def test_a_second_model_needs_consent(signed: Agreement, cli: Cli) -> None:
    assert run_all(signed, stand_in) == [0, 0, 0]
    assert run_all(signed, stand_in, out="again") == [3, 3, 3]
    assert run_all(signed, stand_in, "--consent", out="again") == [0, 0, 0]


def test_a_model_is_never_overwritten(signed: Agreement, cli: Cli, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.model.json").write_text("kept")
    assert run_all(signed, stand_in) == [2, 2, 2]
    assert (tmp_path / "bank-a.model.json").read_text() == "kept"


def test_a_failure_in_the_open_is_recorded_and_leaves_no_model(signed: Agreement, cli: Cli, tmp_path: Path) -> None:
    def failing(channel: TlsChannel, agreement: Agreement, summary: Any, **named: Any) -> Released:
        greet(channel, agreement, named["identity"])
        channel.begin("online")
        channel.swap("open", [b"x"] * 3, 1)
        if channel.party == 0:
            raise IntegrityError(5908)
        channel.swap("open", [b"x"] * 3, 1)
        raise AssertionError

    assert sorted(run_all(signed, failing)) == [5, 6, 6]
    assert not list(tmp_path.glob("*.model.json"))
    assert run_all(signed, stand_in) == [3, 3, 3]
    facts = cli("check", "aml.signed.json", "--as", "bank-c", "--wait", "1", "--json")[1]
    assert facts["consent_needed"]
    assert facts["journal"] == {"begun": 1, "released": 0, "failed": 1}


def test_a_failure_before_inputs_are_used_lets_the_next_session_run(signed: Agreement, cli: Cli) -> None:
    def failing(channel: TlsChannel, agreement: Agreement, summary: Any, **named: Any) -> Released:
        greet(channel, agreement, named["identity"])
        channel.begin("groups")
        raise IntegrityError(5901)

    codes = run_all(signed, failing)
    assert 5 in codes
    assert set(codes) <= {5, 6}  # who heard of it from another party
    assert run_all(signed, stand_in) == [0, 0, 0]


def test_a_proof_that_left_its_box_begins_again_by_itself_but_not_for_ever(signed: Agreement, cli: Cli) -> None:
    tries: list[int] = []

    def again(times: int) -> Callable[..., Released]:
        def run(channel: TlsChannel, agreement: Agreement, summary: Any, **named: Any) -> Released:
            tries.append(channel.party)
            if tries.count(channel.party) <= times:
                channel.begin("groups")
                channel.swap("again", [b"x"] * 3, 1)
                raise PeerError(6906)
            return stand_in(channel, agreement, summary, **named)

        return run

    assert run_all(signed, again(2)) == [0, 0, 0]
    assert len(tries) == 9
    tries.clear()
    assert run_all(signed, again(9), "--consent", out="more") == [3, 3, 3]
    assert len(tries) == 9


def test_a_model_that_somebody_did_not_sign_is_none(signed: Agreement, cli: Cli, tmp_path: Path) -> None:
    def unsigned(channel: TlsChannel, agreement: Agreement, summary: Any, **named: Any) -> Released:
        found = stand_in(channel, agreement, summary, **named)
        return Released(found.session, found.transcript, found.values, found.signatures | {"bank-c": bytes(64)})

    assert run_all(signed, unsigned) == [5, 5, 5]
    assert not list(tmp_path.glob("*.model.json"))


def test_a_model_that_was_edited_is_refused(signed: Agreement, cli: Cli, tmp_path: Path) -> None:
    assert run_all(signed, stand_in) == [0, 0, 0]
    kept = json.loads((tmp_path / "bank-a.model.json").read_text())
    for change in (
        {"coefficients": ["9.0", *kept["coefficients"][1:]]},
        {"values": ["1", *kept["values"][1:]]},
        {"intercept": "0.0"},
        {"columns": ["age", *kept["columns"][1:]]},
        {"transcript": "0" * 64},
        {"signatures": {name: kept["signatures"][name] for name in NAMES[:2]}},
    ):
        (tmp_path / "edited.json").write_text(json.dumps(kept | change))
        found = cli("compare", "aml.signed.json", "edited.json", "--data", "bank-a.csv", "--json")
        assert error_of(found) == 5912, change


def test_rows_that_break_a_bound_end_at_home(signed: Agreement, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bank-a.csv"
    head, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head, "9999.0" + first[first.index(",") :], *rest]) + "\n")
    line = ("run", "aml.signed.json", "--as", "bank-a", "--data", "bank-a.csv", "-o", "m.json", "--json")
    assert error_of(cli(*line)) == 2902
    path.write_text("\n".join([head, *rest]) + "\n")
    assert error_of(cli(*line)) == 2907
    journal = list((tmp_path / "home" / "linear").glob("*.json")) if (tmp_path / "home" / "linear").exists() else []
    assert journal == []


def test_who_is_no_party_or_has_not_all_signatures_does_not_run(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "aml.yaml").write_bytes(canonical(written(NAMES[:2])))
    assert cli("sign", "aml.yaml", "--as", "bank-a", "--yes")[0] == 0
    run = ("run", "aml.signed.json", "--data", "x.csv", "-o", "m.json", "--json")
    assert error_of(cli(*run, "--as", "bank-a")) == 3301
    assert error_of(cli(*run, "--as", "bank-c")) == 3305
    expired = written(NAMES[:2], valid={"not_before": "2020-01-01T00:00:00Z", "not_after": "2021-01-01T00:00:00Z"})
    (tmp_path / "old.yaml").write_bytes(canonical(expired))
    for name in NAMES[:2]:
        cli("sign", "old.yaml" if name == "bank-a" else "old.signed.json", "--as", name, "--yes")
    old = ("run", "old.signed.json", "--data", "x.csv", "-o", "m.json", "--json", "--as", "bank-a")
    assert error_of(cli(*old)) == 3403


# ---- privacy -------------------------------------------------------------------------------------------------


@pytest.fixture
def private(cli: Cli, signed: Agreement, tmp_path: Path) -> Path:
    document = json.loads((tmp_path / "aml.yaml").read_text())
    terms = {"epsilon": "3", "delta": "1e-6", "noise_multiplier": "4", "clip": "4"}
    document |= {"privacy": terms, "name": "private", "curvature": "40", "mean_square": "40"}
    (tmp_path / "private.yaml").write_bytes(canonical(document))
    source = "private.yaml"
    for name in NAMES:
        assert cli("sign", source, "--as", name, "--yes")[0] == 0
        source = "private.signed.json"
    return tmp_path / "bank-a.book.json"


def test_a_private_session_is_charged_before_the_rows_are_opened(cli: Cli, private: Path) -> None:
    run = ("run", "private.signed.json", "--as", "bank-a", "--data", "missing.csv", "-o", "m.json", "--json")
    assert error_of(cli(*run)) == 2019
    assert error_of(cli(*run, "--book", private)) == 2001
    status, _, err = cli(*run, "--book", private, "--open-book", "1.5,1e-5")
    assert "is spent" in err
    assert status == 2  # the rows are missing: what was charged stays charged
    once = private.read_bytes()
    assert json.loads(once)["postings"]
    assert error_of(cli(*run, "--book", private, "--open-book", "1.5,1e-5")) == 2007
    assert error_of(cli(*run, "--book", private)) == 7801
    assert private.read_bytes() == once
    before = json.loads(once) | {"postings": []}
    private.write_bytes(canonical(before))
    assert error_of(cli(*run, "--book", private)) == 5801

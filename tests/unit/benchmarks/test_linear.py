"""The benchmarks of linear fits: rows as described, counted costs, a relay that delays and limits, scripts that run."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Lasso, Ridge

ROOT = Path(__file__).resolve().parents[3]
SIBLINGS = ("_linear_costs", "_linear_rows", "_linear_sessions", "_relay", "_shaped", "_machine", "_linear_bars")
TINY = ("--degree", 2048, "--rows", 600)


@pytest.fixture
def sibling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of the benchmarks, which finds its neighbours as it does when a script is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for name in (*SIBLINGS, "linear_fit", "linear_network"):
        sys.modules.pop(name, None)


def ran(script: str, found: Path, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments), "--json", str(found)]
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=1000)
    return json.loads(found.read_text())


# ---- rows and the plaintext fit ----------------------------------------------------------------------------


def test_rows_are_correlated_and_explained_to_a_quarter(sibling: Any) -> None:
    world = sibling("_linear_rows").World(20)
    features, response = (np.concatenate(column) for column in zip(*world.blocks(0, 50_000), strict=True))
    _, centres, scales, weights, _ = world.parameters()
    table, response = (features - centres[:-1]) / scales[:-1], (response - centres[-1]) / scales[-1]
    assert np.allclose(table.std(axis=0), 1, atol=0.03)
    assert abs(1 - np.var(response - table @ weights) / np.var(response) - 0.25) < 0.02
    values = np.linalg.eigvalsh(np.corrcoef(table.T))
    assert values[-1] / values[0] > 30
    assert values[-1] < world.curvature()
    again, _ = next(world.blocks(1, 100))
    assert not np.allclose(again, features[:100])


@pytest.mark.parametrize("kind", ["lasso", "ridge"])
def test_the_fit_of_moments_is_scikit_learns_of_the_rows(sibling: Any, kind: str) -> None:
    module = sibling("_linear_rows")
    world = module.World(10)
    plain = module.Plain(world)
    blocks = list(world.blocks(0, 9000))
    for block in blocks:
        plain.add(*block)
    features, response = (np.concatenate(column) for column in zip(*blocks, strict=True))
    _, centres, scales, _, _ = world.parameters()
    penalty = module.LAMBDA
    other: Any = Lasso(penalty, tol=1e-12) if kind == "lasso" else Ridge(penalty * len(response))
    other.fit((features - centres[:-1]) / scales[:-1], (response - centres[-1]) / scales[-1])
    model, _ = plain.fit(kind)
    assert np.allclose(model, [other.intercept_, *other.coef_], atol=1e-8)
    assert len(features) == plain.count == 9000


def test_a_file_holds_every_row_that_was_drawn(sibling: Any, tmp_path: Path) -> None:
    module = sibling("_linear_rows")
    world, path = module.World(3), tmp_path / "rows.parquet"
    plain, count = module.Plain(world), 17 * 4096 + 5  # a row group is 16 blocks
    sibling("linear_fit").write(path, world, 0, count, plain)
    file = pytest.importorskip("pyarrow.parquet").read_table(path)
    features, response = (np.concatenate(column) for column in zip(*world.blocks(0, count), strict=True))
    assert file.num_rows == plain.count == count
    assert np.allclose(file["t2"], features[:, 2], rtol=1e-6)
    assert np.allclose(file["year"], response, rtol=1e-6)


# ---- counted costs -----------------------------------------------------------------------------------------


def test_costs_are_those_that_were_measured_where_they_were(sibling: Any) -> None:
    costs: ModuleType = sibling("_linear_costs")
    step = costs.sgd(costs.BATCH, 90, 2)
    assert (step.triples, step.cpu_s, step.bytes) == (23_040, 22.3, 2.8e9)
    assert round(costs.sgd(400_000, 90, 4).wall_s / 86400, 1) == 2.3
    assert (costs.admm(90, 2).triples, costs.admm(90, 2).cpu_s) == (455_000, 372.0)
    assert costs.admm(180, 2).triples > 3 * costs.admm(90, 2).triples
    with pytest.raises(KeyError):
        costs.sgd(1000, 90, 3)  # not measured, not made up


# ---- a way that is long or narrow ----------------------------------------------------------------------------


def sent(relay: ModuleType, size_bytes: int, *, half_s: float, rate: float) -> float:
    """Seconds until an echo of so many bytes is back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def main() -> float:
        behind = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = behind.sockets[0].getsockname()[1]
        before = await relay.relay(0, "127.0.0.1", port, half_s=half_s, rate=rate)
        async with behind, before:
            reader, writer = await asyncio.open_connection("127.0.0.1", before.sockets[0].getsockname()[1])
            body = bytes(range(256)) * (size_bytes // 256)
            start = time.monotonic()
            writer.write(body)
            writer.write_eof()
            assert await reader.read(-1) == body
            taken = time.monotonic() - start
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.05)  # the relay's own ends
        return taken

    return asyncio.run(asyncio.wait_for(main(), 30))


def test_a_relay_holds_bytes_for_a_round_trip_and_not_once_for_each_piece(sibling: Any) -> None:
    relay = sibling("_relay")
    assert 0.2 <= sent(relay, 256, half_s=0.1, rate=0) < 1
    assert 0.2 <= sent(relay, 1 << 23, half_s=0.1, rate=0) < 5  # 128 pieces of 64 kB would be 25 s


def test_a_relay_lets_no_more_through_than_its_rate(sibling: Any) -> None:
    assert sent(sibling("_relay"), 1 << 20, half_s=0, rate=4e6) > 0.2


def test_nothing_is_left_of_limited_networks(sibling: Any) -> None:
    module = sibling("_shaped")
    if not module.can_shape():
        pytest.skip("no networks can be made here")
    with module.shaped(2, mbit=100) as networks:
        made = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        assert all(network.before[-1] in made for network in networks)
    for what in (["ip", "netns"], ["ip", "-o", "link"]):
        left = subprocess.run(what, capture_output=True, text=True, check=True).stdout
        assert networks[0].before[-1].split("-")[0] not in left


# ---- the scripts -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_benchmark_of_fits_runs(tmp_path: Path) -> None:
    picture = tmp_path / "found.svg"
    found = ran("linear_fit.py", tmp_path / "found", "--quick", *TINY, "--features", 4, 6, "--plot", picture)
    shapes = {(row["case"], row["parties"], row["features"]) for row in found["sessions"]}
    kinds = ("lasso, malicious", "lasso, semi-honest", "ridge, malicious", "ridge, semi-honest")
    assert shapes >= {(kind, 2, 4) for kind in kinds} | {(kinds[0], 3, 4), (kinds[0], 2, 6)}
    for row in (*found["sessions"], found["parquet"]):
        assert row["error"] < 1e-3
        assert row["nonzero"][0] == row["nonzero"][1]
        assert row["up_bytes"] == sum(phase.get("up_bytes", 0) for phase in row["phases"].values())
        inside = sum(phase["wall_s"] for phase in row["phases"].values())
        assert 0.5 * row["wall_s"] < inside < row["wall_s"] + 0.1
    honest, checked = (next(row for row in found["sessions"] if row["case"] == kind) for kind in kinds[1::-1])
    assert checked["up_bytes"] > 2 * honest["up_bytes"]
    assert found["parquet"]["phases"]["read"]["wall_s"] > 0
    assert max(row["error"] for row in found["reading"][0]["scikit_learn"].values()) < 1e-3
    assert {row["name"] for row in found["others"]} == {"SGD in MASCOT", "ADMM in LowGear"}
    assert "<svg" in picture.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_benchmark_of_networks_runs(tmp_path: Path) -> None:
    picture = tmp_path / "found.svg"
    found = ran("linear_network.py", tmp_path / "found", "--quick", *TINY, "--features", 4, "--plot", picture)
    rows = {(row["case"], row["network"]): row for row in found["sessions"]}
    for case in ("lasso, malicious", "ridge, malicious"):
        near, far = rows[case, "loopback"], rows[case, "25 ms"]
        assert near["ratio"] == 1
        steps = far["phases"]["online"]["steps"]
        assert far["phases"]["online"]["link_s"] > 0.9 * 0.0125 * steps
        assert rows[case, "100 Mbit/s"]["by"] in ("tc", "relay")
    assert "<svg" in picture.read_text(encoding="utf-8")

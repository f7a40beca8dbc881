"""The store in a database: SQLite by default, PostgreSQL by URL. Imported only by ``store_at``: it needs an extra."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sql
from sqlalchemy import event, exc

from cloister.errors import InputError, IntegrityError, PeerError
from cloister.keys._store import SCHEMA_VERSION, Commit, StoreMoved

__all__ = ["SqlStore"]

_CHUNK = 500  # ids in one question; SQLite takes 32,766 parameters at most, PostgreSQL 65,535


class SqlStore:
    """A :class:`~cloister.keys.KeyStore` at a SQLAlchemy URL.

    Durability: SQLite runs in WAL mode with ``synchronous=FULL``, PostgreSQL with ``synchronous_commit=on``, whatever
    the server's own default is: an answer leaves only after the disk has the entry.

    Args:
        url: ``sqlite:///FILE``, ``postgresql+psycopg://…``.

    Raises:
        InputError: 2405 when the URL or its driver is not usable.
    """

    def __init__(self, url: str) -> None:
        tables = sql.MetaData()
        self._tables = tables
        self._meta = sql.Table(
            "cloister_meta",
            tables,
            sql.Column("name", sql.String(64), primary_key=True),
            sql.Column("value", sql.LargeBinary),
        )
        self._entries = sql.Table(
            "cloister_entries",
            tables,
            sql.Column("place", sql.BigInteger, primary_key=True, autoincrement=False),
            sql.Column("leaf", sql.LargeBinary, nullable=False),
        )
        self._boxes = sql.Table(
            "cloister_secrets",
            tables,
            sql.Column("id", sql.String(256), primary_key=True),
            sql.Column("box", sql.LargeBinary, nullable=False),
        )
        # One row. Every commit moves it from the size it knew, and so waits for, or loses to, any other.
        self._tip = sql.Table(
            "cloister_tip",
            tables,
            sql.Column("one", sql.Integer, primary_key=True, autoincrement=False),
            sql.Column("size", sql.BigInteger, nullable=False),
            sql.Column("head", sql.LargeBinary, nullable=False),
        )
        try:
            self._engine = sql.create_engine(url, pool_pre_ping=url.startswith("postgresql"))
        except (exc.ArgumentError, ImportError, ValueError) as error:  # whose words may hold a part of the password
            raise InputError(2405, f"the store's URL is not usable: {type(error).__name__}") from None
        self._sqlite = self._engine.dialect.name == "sqlite"
        if self._engine.dialect.name not in ("sqlite", "postgresql"):
            raise InputError(2405, expected="sqlite or postgresql", got=self._engine.dialect.name)
        event.listen(self._engine, "connect", _on_connect_sqlite if self._sqlite else _on_connect_postgresql)
        if self._sqlite:
            event.listen(self._engine, "begin", _begin_sqlite)

    def create(self, meta: Mapping[str, bytes], first: Commit) -> None:
        if self.meta():
            raise InputError(2403, "the store holds a key manager already")
        rows = [{"name": name, "value": value} for name, value in {**meta, "schema": SCHEMA_VERSION.encode()}.items()]
        with self._transaction() as connection:
            self._tables.create_all(connection)
            try:
                connection.execute(self._tip.insert(), {"one": 1, "size": 0, "head": b""})
            except exc.IntegrityError:
                raise InputError(2403, "the store holds a key manager already") from None
            connection.execute(self._meta.insert(), rows)
            self._add(connection, 0, first)

    def meta(self) -> dict[str, bytes]:
        with self._reading() as connection:
            if not sql.inspect(connection).has_table(self._meta.name):
                return {}
            return {row.name: _bytes(row.value) for row in connection.execute(self._meta.select())}

    def size(self) -> int:
        return self.head()[0]

    def head(self) -> tuple[int, bytes]:
        with self._reading() as connection:
            row = connection.execute(sql.select(self._tip.c.size, self._tip.c.head)).one()
        return _size(row.size), _bytes(row.head)

    def read(self, start: int, stop: int) -> list[bytes]:
        place = self._entries.c.place
        query = sql.select(self._entries.c.leaf).where(place >= start, place < stop).order_by(place)
        with self._reading() as connection:
            return [_bytes(leaf) for leaf in connection.execute(query).scalars()]

    def boxes(self, ids: Iterable[str] | None = None) -> dict[str, bytes]:
        query = sql.select(self._boxes.c.id, self._boxes.c.box)
        with self._reading() as connection:
            if ids is None:
                return {row.id: _bytes(row.box) for row in connection.execute(query)}
            wanted, found = list(ids), dict[str, bytes]()
            for start in range(0, len(wanted), _CHUNK):
                chunk = query.where(self._boxes.c.id.in_(wanted[start : start + _CHUNK]))
                found |= {row.id: _bytes(row.box) for row in connection.execute(chunk)}
            return found

    def append(self, size: int, commit: Commit) -> None:
        with self._transaction() as connection:
            self._add(connection, size, commit)

    def close(self) -> None:
        self._engine.dispose()

    def _add(self, connection: sql.Connection, size: int, commit: Commit) -> None:
        moved = connection.execute(
            self._tip.update().where(self._tip.c.size == size),
            {"size": size + len(commit.leaves), "head": commit.head},
        )
        if moved.rowcount != 1:
            raise StoreMoved
        if commit.leaves:
            rows = [{"place": size + number, "leaf": leaf} for number, leaf in enumerate(commit.leaves)]
            connection.execute(self._entries.insert(), rows)
        if commit.put:
            connection.execute(self._boxes.insert(), [{"id": name, "box": box} for name, box in commit.put.items()])
        for name in commit.erase:
            connection.execute(self._boxes.delete().where(self._boxes.c.id == name))

    @contextmanager
    def _transaction(self) -> Generator[sql.Connection]:
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(cloister_write=True)
                with connection.begin():
                    yield connection
        except exc.SQLAlchemyError as error:
            raise PeerError(6406, f"the store does not answer: {type(error).__name__}") from None

    @contextmanager
    def _reading(self) -> Generator[sql.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except exc.SQLAlchemyError as error:
            raise PeerError(6406, f"the store does not answer: {type(error).__name__}") from None


def _bytes(value: object) -> bytes:
    """SQLite keeps whatever type it was given, and the host may give it any."""
    if not isinstance(value, bytes):
        raise IntegrityError(5403, "the store holds something else than bytes")
    return value


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise IntegrityError(5403, "the store's size is none")
    return value


def _on_connect_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transaction of its own: _begin_sqlite does
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    # a writer is one from the start: no upgrade that could fail half-way
    writes = connection.get_execution_options().get("cloister_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _on_connect_postgresql(connection: Any, _record: object) -> None:
    before, connection.autocommit = connection.autocommit, True
    connection.execute("SET synchronous_commit TO on")
    connection.autocommit = before

"""takes a path, gives a checked SQLite file or says why not: creation, upgrade, and errors in plain words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from isoloss.errors import StoreError
from isoloss.study import schema

MAGIC = b"SQLite format 3\0"
HEADER = 100  # bytes

# Every commit reaches the disk before it is acknowledged (FULL): a prediction is worth something because it
# was kept before the run, so it must outlive a power cut, and a store commits seldom enough to afford it.
# With NORMAL a WAL file survives kill -9 all the same, but may lose the last commits when the power goes.
PRAGMAS: tuple[str, ...] = ("foreign_keys = ON", "synchronous = FULL")


def connect(path: Path, *, read_only: bool, wait: float) -> sqlite3.Connection:
    """A connection with the pragmas set and without Python's own transactions."""
    mode, pragmas = "rw", list(PRAGMAS)
    if read_only and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        pragmas.append("query_only = ON")  # a connection of mode=ro would leave PATH-wal and PATH-shm behind
    elif read_only:
        # A file in WAL mode in a folder that cannot be written to opens only as one that nobody changes.
        mode = "ro" if _holds_entries(_beside(path, "-wal")) else "ro&immutable=1"
    uri = f"{path.as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=wait, isolation_level=None, check_same_thread=False)
    try:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(path: Path, *, read_only: bool, wait: float) -> None:
    """Create the file if it is to be written and not there, upgrade an older one, refuse all that is no store.

    Raises:
        StoreError: missing, empty, truncated, damaged, of another program, newer, or not to be written to.
    """
    if not path.exists() and not read_only:
        _create(path)
    _check_header(path, read_only)
    with refusals(path, wait), contextlib.closing(connect(path, read_only=read_only, wait=wait)) as opened:
        owner, version = (
            opened.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version")
        )
        known = len(schema.MIGRATIONS)
        if owner != schema.APPLICATION_ID:
            raise StoreError(
                f"{path} is an SQLite file of another program: needed a store of isoloss. Do: give another path"
            )
        if version > known:
            raise StoreError(
                f"{path} was written by a newer isoloss: needed version {known} of the tables or older, got "
                f"{version}. Do: upgrade isoloss"
            )
        if version < known and read_only:
            raise StoreError(
                f"{path} is of version {version}, needed {known} to read it. Do: isoloss.Store({str(path)!r}), "
                "which upgrades it in place"
            )
        if read_only:
            return
        if version < known:
            migrate(opened)
        for name in schema.TABLES.values():
            # not the curves: they may be large, and a damaged page of theirs harms no prediction
            found = opened.execute(f"PRAGMA quick_check({name.name})").fetchone()[0]
            if found != "ok":
                raise StoreError(_damaged(path, found))


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to the newest version in one transaction: all of it, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        # read again under the lock: another process may have upgraded meanwhile
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for statements in schema.MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {max(version, len(schema.MIGRATIONS))}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _create(path: Path) -> None:
    """Make an empty store beside ``path`` and give it the name: no process ever sees half of one."""
    if _holds_entries(_beside(path, "-wal")):
        raise StoreError(
            f"{path} is missing, but {path.name}-wal is there and holds its last entries. Do: put {path.name} "
            "back beside it, or move it away to start a new store"
        )
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            beside = Path(folder) / path.name
            beside.touch()  # with the rights that any new file gets; SQLite alone would give fewer
            with contextlib.closing(sqlite3.connect(beside, isolation_level=None)) as made:
                # readers go on while one process writes; kept where the file system has no WAL
                made.execute("PRAGMA journal_mode = WAL")
                made.execute("PRAGMA synchronous = FULL")
                migrate(made)
            with contextlib.suppress(FileExistsError):  # another process was first: its store is as good
                os.link(beside, path)
        _sync_folder(path.parent)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(
            f"cannot make the store {path}: {reason}. Do: give a folder that exists and can be written to"
        ) from error


def _sync_folder(folder: Path) -> None:
    """The new name reaches the disk too, where the system can be asked for that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_header(path: Path, read_only: bool) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(HEADER)
    except FileNotFoundError:
        raise StoreError(
            f"no store at {path}. Do: write a prediction with `isoloss predict --ledger {path}`"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read the store {path}: {error.strerror or error}") from error
    if not head:
        raise StoreError(
            f"{path} is empty: needed a store, which never is. Do: restore it from a copy, or delete it to begin anew"
        )
    if not head.startswith(MAGIC[: len(head)]):
        raise StoreError(f"{path} is no store: needed an SQLite file of isoloss. Do: give another path")
    if len(head) < HEADER:
        raise StoreError(_damaged(path, f"cut off after {len(head)} bytes"))
    if not read_only and not os.access(path, os.W_OK):
        raise StoreError(
            f"{path} cannot be written to. Do: change its permissions, or open it with read_only=True"
        )


@contextlib.contextmanager
def refusals(path: Path, wait: float) -> Iterator[None]:
    """Turn SQLite's errors into one sentence each; what had been committed is as it was."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise StoreError(_sentence(path, wait, error.orig or error)) from error
    except sqlite3.Error as error:
        raise StoreError(_sentence(path, wait, error)) from error


def _sentence(path: Path, wait: float, error: BaseException) -> str:
    # 0xFF: the first byte is the error, the rest refines it
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    kept = "Nothing of this entry was written; what was there before is kept"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path} is locked: another process has held it for {wait:g} s. Do: try again when it is done"
    if code == sqlite3.SQLITE_NOTADB:
        return f"{path} is no store: needed an SQLite file of isoloss. Do: give another path"
    if code == sqlite3.SQLITE_FULL:
        return f"no room for {path}: the disk or the quota is full. {kept}. Do: make room and try again"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return (
            f"{path} or its folder cannot be written to, and SQLite writes {path.name}-wal beside it. Do: change "
            "the permissions, or copy the store elsewhere"
        )
    if code == sqlite3.SQLITE_IOERR:
        return f"the disk failed under {path} ({error}). {kept}. Do: look at the disk, then try again"
    if code == sqlite3.SQLITE_CONSTRAINT and "append-only" in str(error):
        return (
            f"{path}: needed a new entry, got a change of an old one ({error}). Do: add another entry; nothing in a "
            "store is changed or removed"
        )
    if code == sqlite3.SQLITE_CONSTRAINT:
        return f"{path}: an entry does not fit the others ({error}). {kept}"
    return _damaged(path, str(error))


def _damaged(path: Path, what: str) -> str:
    return (
        f"{path} is damaged: {what}. Do: copy the file and {path.name}-wal away first, then restore a backup, or "
        f"save what can be read with `sqlite3 {path.name} .recover`"
    )


def damaged(path: Path, what: str) -> StoreError:
    """The error for a store whose entries are not what was written."""
    return StoreError(_damaged(path, what))


def _holds_entries(wal: Path) -> bool:
    return wal.exists() and wal.stat().st_size > 0


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)

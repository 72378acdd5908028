"""The archive of all runs and completed rounds: an SQLite database in the data directory, or in memory.

Training does not depend on the archive. If the coordinator is killed, the archive lacks at most the last second.
"""

import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fedround.coordinator.run import Run
from fedround.errors import ConfigurationError, DataDamaged

NAME = "history.sqlite"
FORMAT = 1
BATCH = 1 << 20
"""Number of characters of documents from which on a batch of rounds ends."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, first INTEGER NOT NULL, started REAL NOT NULL, ended REAL, reason TEXT,
    document TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS rounds (round INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs (id), document TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS rounds_of_runs ON rounds (run);
"""

Document = Mapping[str, Any]
"""JSON-able data about a run or a round."""


class Archive:
    """The runs and rounds of a data directory. Thread-safe.

    Args:
        path: The data directory; None: the archive is in memory.

    Raises:
        ConfigurationError: The file cannot be opened.
        DataDamaged: The file is not an archive, or has the format of a later version.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Lock()
        try:
            if path is not None:  # SQLite would create a file that other users can read. It copies the mode for its log.
                os.close(os.open(path / NAME, os.O_RDWR | os.O_CREAT, 0o600))
            self._database = sqlite3.connect(path / NAME if path else ":memory:", check_same_thread=False, isolation_level=None)
            found: int = self._database.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                raise DataDamaged(NAME, f"it has format {found}, but this version reads format {FORMAT}")
            # This process has the directory for itself, so an exclusive lock is possible. It avoids shared memory for the log,
            # which network file systems lack.
            self._database.executescript("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
            self._database.executescript(f"{_SCHEMA} PRAGMA user_version = {FORMAT};")
        except (OSError, sqlite3.OperationalError) as error:
            raise ConfigurationError(f"COORDINATOR_DATA_DIR: {NAME} cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise DataDamaged(NAME, f"it is not an SQLite database: {error}") from error

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write all changes within the block in one transaction, or none of them. Raises `OSError`."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._database.execute("ROLLBACK")
                    raise
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise OSError(f"{NAME}: {error}") from error

    # Call these within `writing`.

    def save_run(self, run: Run, document: Document) -> None:
        """Add a run, or update its document. End all other runs."""
        known = self._database.execute("SELECT document FROM runs WHERE id = ?", (run.id,)).fetchone()
        merged = json.dumps({"strategy": "", **(json.loads(known[0]) if known else {}), **document})
        self._database.execute(
            "INSERT INTO runs VALUES (?, ?, ?, ?, NULL, NULL, ?) ON CONFLICT (id) DO UPDATE SET document = excluded.document",
            (run.id, run.name, run.first, run.started, merged),
        )
        self._database.execute(
            "UPDATE runs SET ended = ?, reason = ? WHERE ended IS NULL AND id != ?",
            (run.started, f"run {run.name} began", run.id),
        )

    def end(self, run: Run, at: float, reason: str) -> None:
        """End a run at `at`, in Unix time."""
        self._database.execute(
            "UPDATE runs SET ended = ?, reason = ?, first = ? WHERE id = ? AND ended IS NULL", (at, reason, run.first, run.id)
        )

    def add(self, run: Run, round: int, document: Document) -> None:
        """Add a completed round. Its run is open again if it had ended."""
        self._database.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?)", (round, run.id, json.dumps(document)))
        self._database.execute("UPDATE runs SET ended = NULL, reason = NULL, first = ? WHERE id = ?", (run.first, run.id))

    def amend(self, round: int, document: Document) -> None:
        """Add fields to the document of a round, if the archive has it."""
        row = self._database.execute("SELECT document FROM rounds WHERE round = ?", (round,)).fetchone()
        if row is not None:
            merged = json.dumps({**json.loads(row[0]), **document})
            self._database.execute("UPDATE rounds SET document = ? WHERE round = ?", (merged, round))

    def roll_back(self, newest: int) -> None:
        """Delete all rounds after `newest`."""
        self._database.execute("DELETE FROM rounds WHERE round > ?", (newest,))

    # Reading

    def check(self, run: Run) -> None:
        """Check that no other run has the name of `run`, also not as its id. Raises `ConfigurationError`."""
        if self._rows("SELECT 1 FROM runs WHERE ?1 IN (name, id) AND id != ?2", (run.name, run.id)):
            raise ConfigurationError(f"COORDINATOR_RUN_NAME: run {run.name} has ended: choose a name that no run has had")

    def runs(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return all runs, oldest first; with a `name`, only the run with that name or id."""
        rows = self._rows(
            "SELECT id, name, first, started, ended, reason, document, (SELECT count(*) FROM rounds WHERE run = id) FROM runs "
            "WHERE ?1 IS NULL OR ?1 IN (id, name) ORDER BY started, rowid",
            (name,),
        )
        names = ("id", "name", "first", "started", "ended", "reason")
        return [
            {**dict(zip(names, row, strict=False)), "rounds": rounds, **json.loads(document)} for *row, document, rounds in rows
        ]

    def rounds(self, run: Mapping[str, Any], after: int, most: int = 0) -> list[tuple[int, str]]:
        """Return a batch of the rounds of a run, in order, from the first one after round `after` on.

        Each round is its number and its document as JSON. Only a batch is in memory: a run may have gigabytes of rounds.

        Args:
            run: The run, as `runs` returns it.
            after: The round before the batch.
            most: 0: all rounds. Otherwise at most this many in all batches, without participants, to draw curves. They are evenly
                spaced and include the last round. If the run evaluates only every Nth model, they are rounds with one.
        """
        every = run.get("plan", {}).get("evaluate_every") or 1
        step = 1 if most == 0 or run["rounds"] <= most else math.ceil(run["rounds"] / (most * every)) * every
        query = (
            "SELECT round, document FROM rounds WHERE run = ?1 AND round > ?2 AND ((round + 1 - ?3) % ?4 = 0 "
            "OR round = (SELECT max(round) FROM rounds WHERE run = ?1)) ORDER BY round"
        )
        found, size = [], 0
        with self._lock, closing(self._database.cursor()) as cursor:
            for round, document in cursor.execute(query, (run["id"], after, run["first"], step)):
                found.append((round, document))
                size += len(document)
                if size > BATCH:
                    break
        return [(round, _numbered(round, _for_curves(document) if most else document)) for round, document in found]

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        with self._lock:
            return self._database.execute(query, tuple(values)).fetchall()


def _numbered(round: int, document: str) -> str:
    return f'{{"round": {round}, {document.removeprefix("{")}'


def _for_curves(document: str) -> str:
    """Return the document of a round without its participants."""
    fields = json.loads(document)
    del fields["participants"]
    fields.get("evaluation", {}).pop("participants", None)
    return json.dumps(fields)

"""What is known of image files from earlier runs, so that only new ones are read and decoded.

Facts stand under the hash of a file's bytes; where its bytes lie among the kept shards, under its path and stamp.

A cache beside the versioned outputs: removing it costs time and changes no output.
"""

import json
import sqlite3
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines import facts, images
from pipelines.files import sha256_bytes, sha256_file
from pipelines.kept import Place

KNOWN = Path(".quantmill/images.sqlite")
PLACES = "(path TEXT PRIMARY KEY, stamp TEXT, hash BLOB, shard TEXT, offset INTEGER, size INTEGER)"


class Known:
    """Facts by content hash. Other code or libraries that decode or measure have another table, empty at first."""

    def __init__(self, file: Path) -> None:
        told = [sha256_file(Path(str(module.__file__))) for module in (images, facts)]
        told += [f"{name} {version(name)}" for name in ("imagecodecs", "numpy", "pillow", "tifffile")]
        self.table = f"facts_{sha256_bytes(' '.join(told).encode())[:32]}"
        self.file = file
        self.connection: sqlite3.Connection | None = None
        with suppress(OSError, sqlite3.Error):
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.connection = self._open()
            except sqlite3.DatabaseError as error:
                if "not a database" not in str(error) and "malformed" not in str(error):
                    raise
                file.unlink()  # broken: begin anew
                self.connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=30)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")  # a cache: lost after a power failure, never wrong
        connection.execute(f"CREATE TABLE IF NOT EXISTS {self.table} (hash BLOB PRIMARY KEY, facts TEXT)")
        connection.execute(f"CREATE TABLE IF NOT EXISTS places {PLACES}")
        connection.commit()
        return connection

    def get(self, content: str) -> dict[str, Any] | None:
        """Return the facts of an image by its content hash, or None."""
        if self.connection is None:
            return None
        with suppress(sqlite3.Error):
            query = f"SELECT facts FROM {self.table} WHERE hash = ?"  # noqa: S608 - the name is ours
            row = self.connection.execute(query, (bytes.fromhex(content),)).fetchone()
            return json.loads(row[0]) if row else None
        return None

    def add(self, fresh: list[tuple[str, dict[str, Any]]]) -> None:
        """Keep facts for the next run."""
        if self.connection is None or not fresh:
            return
        rows = [(bytes.fromhex(content), json.dumps(facts)) for content, facts in fresh]
        with suppress(sqlite3.Error):
            self.connection.executemany(f"INSERT OR REPLACE INTO {self.table} VALUES (?, ?)", rows)  # noqa: S608
            self.connection.commit()

    def place(self, path: str, stamp: str) -> Place | None:
        """Return where the last run put the bytes of a file; None where its stamp is another."""
        if self.connection is None:
            return None
        with suppress(sqlite3.Error):
            query = "SELECT hash, shard, offset, size FROM places WHERE path = ? AND stamp = ?"
            row = self.connection.execute(query, (path, stamp)).fetchone()
            return Place(row[0].hex(), *row[1:]) if row else None
        return None

    def begin_places(self) -> None:
        """Begin the places of a run; those of the last one stand until `end_places`."""
        if self.connection is not None:
            with suppress(sqlite3.Error):
                self.connection.execute("DROP TABLE IF EXISTS next")
                self.connection.execute(f"CREATE TABLE next {PLACES}")

    def add_places(self, found: list[tuple[str, str, Place]]) -> None:
        """Keep where this run put files: path, stamp and place of each."""
        if self.connection is None or not found:
            return
        rows = [(path, stamp, bytes.fromhex(p.content), p.shard, p.offset, p.size) for path, stamp, p in found]
        with suppress(sqlite3.Error):
            self.connection.executemany("INSERT OR REPLACE INTO next VALUES (?, ?, ?, ?, ?, ?)", rows)
            self.connection.commit()

    def end_places(self) -> None:
        """Put the places of this run in the place of those of the last."""
        if self.connection is not None:
            with suppress(sqlite3.Error):
                self.connection.executescript("BEGIN; DROP TABLE places; ALTER TABLE next RENAME TO places; COMMIT")

    def close(self) -> None:
        """Close the file."""
        if self.connection is not None:
            self.connection.close()

"""The shards of the last run, so that a file that has not changed is not read from the source again.

A cache beside the versioned outputs, of links to them: removing it costs time and changes no output.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.files import sha256_bytes, write_folder

KEPT = Path(".quantmill/shards")
RACY = 2 * 10**9  # nanoseconds; the coarsest clock of a file system (FAT)


@dataclass(frozen=True)
class Place:
    """Where the bytes of a file lie, and their SHA-256."""

    content: str
    shard: str
    offset: int
    size: int


def stamp_of(file: Path) -> str | None:
    """Return what changes when a file does: its size, inode, and the times of its last changes.

    None for a file changed a moment ago, of which a second change might leave the stamp as it is (git's "racily
    clean" entries: git documentation, technical/racy-git). The second time is that of the inode (`st_ctime`), which
    programs cannot set back. Raises OSError when there is no such file.
    """
    found = file.stat()
    if found.st_ctime_ns > time.time_ns() - RACY:
        return None
    return f"{found.st_size} {found.st_ino} {found.st_mtime_ns} {found.st_ctime_ns}"


class Kept:
    """Reads the kept shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, int] = {}

    def read(self, place: Place) -> bytes | None:
        """Return the bytes at a place; None where they are not those that it promises."""
        with suppress(OSError):
            if place.shard not in self.files:
                self.files[place.shard] = os.open(self.folder / place.shard, os.O_RDONLY)
            payload = os.pread(self.files[place.shard], place.size, place.offset)
            if sha256_bytes(payload) == place.content:
                return payload
        return None


def keep(shards: Path, folder: Path) -> None:
    """Link the shards for the next run, in place of those of the last; without links nothing is kept."""
    with suppress(OSError), write_folder(folder) as links:
        for shard in shards.glob("images-*.tar"):
            os.link(shard, links / shard.name)

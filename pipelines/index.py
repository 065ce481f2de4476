"""Writes the shards and the index. Rows go to disk as they come: memory holds about a kilobyte for each, not images."""

import json
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

SHARD_BYTES = 64 * 2**20
BATCH = 1024  # rows that wait in memory
GROUP = 65536  # rows of the index written at once


class Shards:
    """Writes images one after the other into uncompressed tar files of about SHARD_BYTES."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = -1
        self.file: BinaryIO | None = None

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def add(self, path: str, payload: bytes) -> tuple[str, int]:
        """Add one image; return the name of its shard and the offset of its bytes in it."""
        if self.file is None or self.file.tell() > SHARD_BYTES:
            self._end()
            self.number += 1
            self.file = (self.folder / f"images-{self.number:05d}.tar").open("wb")
        info = tarfile.TarInfo(path)
        info.size = len(payload)
        # tarfile's own writer copies in pieces of 16 kB, which takes five times as long
        self.file.write(info.tobuf(tarfile.PAX_FORMAT))
        offset = self.file.tell()
        self.file.write(payload)
        self.file.write(bytes(-len(payload) % tarfile.BLOCKSIZE))
        return f"images-{self.number:05d}.tar", offset

    def _end(self) -> None:
        """End a tar file: two empty blocks, and the rest of a record."""
        if self.file is not None:
            self.file.write(bytes(2 * tarfile.BLOCKSIZE))
            self.file.write(bytes(-self.file.tell() % tarfile.RECORDSIZE))
            self.file.close()


def schema(task: str, final: bool) -> Any:
    """Return the Arrow schema of the index; before the classes have ids (`final`), labels are names."""
    import pyarrow as pa

    label = pa.int32() if final else pa.string()
    sides = [pa.field(n, pa.float64()) for n in ("x", "y", "width", "height")]
    fields = [(n, pa.string()) for n in ("path", "split", "shard")]
    fields += [(n, pa.int64()) for n in ("offset", "bytes")]
    fields += [(n, pa.int32()) for n in ("width", "height", "channels", "bits")]
    fields += [(n, pa.string()) for n in ("content_hash", "pixel_hash")]
    fields += [(n, pa.list_(pa.float64())) for n in ("channel_mean", "channel_std")]
    fields += [(n, pa.float64()) for n in ("brightness", "sharpness")]
    if task == "classification":
        fields += [("label", label)]
    else:
        fields += [("boxes", pa.list_(pa.struct([*sides, pa.field("label", label)])))]
    return pa.schema(fields)


class Rows:
    """Rows of the index in the order in which they come, in an Arrow file."""

    def __init__(self, file: Path, task: str) -> None:
        import pyarrow as pa

        self.file, self.task = file, task
        self.schema = schema(task, final=False)
        self.writer = pa.ipc.new_file(str(file), self.schema)
        self.waiting: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add one row."""
        if row["boxes"] is not None:
            row = {**row, "boxes": [vars(box) for box in row["boxes"]]}
        self.waiting.append({name: row.get(name) for name in self.schema.names})
        if len(self.waiting) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self.writer.write_batch(pa.RecordBatch.from_pylist(self.waiting, schema=self.schema))
        self.waiting = []

    def close(self) -> Any:
        """Return all rows as a table that lies on disk."""
        import pyarrow as pa

        if self.waiting:
            self._flush()
        self.writer.close()
        return pa.ipc.open_file(pa.memory_map(str(self.file))).read_all()


def write(
    path: Path, table: Any, order: NDArray[np.int64], splits: NDArray[Any], classes: list[str], task: str
) -> None:
    """Write the rows of `table` in `order` as Parquet; `splits` are the names of the splits, per row of the table."""
    import pyarrow as pa
    from pyarrow import parquet

    target = schema(task, final=True).with_metadata({"classes": json.dumps(classes, ensure_ascii=False)})
    with parquet.ParquetWriter(path, target, compression="zstd") as writer:
        for start in range(0, len(order), GROUP):
            rows = order[start : start + GROUP]
            part = table.take(rows).combine_chunks()
            part = part.set_column(1, "split", pa.array(splits[rows], pa.string()))
            name = "label" if task == "classification" else "boxes"
            place = part.schema.get_field_index(name)
            column = part.column(name).combine_chunks()
            column = _ids(column, classes) if name == "label" else _box_ids(column, classes, target.field(name).type)
            writer.write_table(part.set_column(place, name, column).cast(target), row_group_size=GROUP)


def _ids(names: Any, classes: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.fill_null(pc.index_in(names, value_set=pa.array(classes, pa.string())), -1)


def _box_ids(column: Any, classes: list[str], kind: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    boxes, counts = column.flatten(), pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    sides = [boxes.field(name) for name in ("x", "y", "width", "height")]
    struct = pa.StructArray.from_arrays([*sides, _ids(boxes.field("label"), classes)], fields=list(kind.value_type))
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(counts)], pa.int32()), struct)

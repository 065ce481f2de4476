"""A table of image paths and class names, as CSV or Parquet."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from pipelines import formats
from pipelines.formats import SPELLINGS, Item, Source
from pipelines.params import Section
from pipelines.stage import StageError


class Options(Section):
    """Options of a table."""

    path: str = Field(min_length=1, description="The folder that holds the table and the images; DVC watches it.")
    table: str = Field(min_length=1, description="The .csv or .parquet file, relative to `path`.")
    image: str = Field(description="The column of the images' paths, relative to `path`.")
    label: str = Field(description="The column of the class names.")
    split: str | None = Field(description="The column of the splits (train, val, test), or null.")


def read(options: Options, task: str) -> Source:
    """List the images of the table, row by row.

    Raises StageError when the table is missing or broken, lacks a column, or the task is not classification.
    """
    if task != "classification":
        raise StageError(f"params.yaml: data.source.format: 'table' gives classes of images, which task '{task}' lacks")
    root = formats.root_of(options.path)
    where = formats.inside(root, options.table)
    if where is None or not where.is_file():
        raise StageError(f"params.yaml: data.source.table: no file '{options.table}' inside '{root}'")
    if where.suffix.lower() not in (".csv", ".parquet"):
        raise StageError(f"params.yaml: data.source.table: '{options.table}' is neither .csv nor .parquet")
    wanted = [c for c in (options.image, options.label, options.split) if c is not None]
    rows = _csv(where, wanted) if where.suffix.lower() == ".csv" else _parquet(where, wanted)
    return Source(_items(root, options, rows))


def _columns(where: Path, have: list[str], wanted: list[str]) -> None:
    for name in wanted:
        if name not in have:
            raise StageError(f"{where}: no column '{name}'; have: {', '.join(have)}")


def _csv(where: Path, wanted: list[str]) -> Iterator[dict[str, Any]]:
    with where.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _columns(where, list(reader.fieldnames or []), wanted)
            yield from reader
        except UnicodeDecodeError:
            raise StageError(f"{where}: not UTF-8 text; save it as UTF-8") from None
        except csv.Error as error:
            raise StageError(f"{where}: line {reader.line_num}: not valid CSV: {error}") from None


def _parquet(where: Path, wanted: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(where)
        _columns(where, file.schema_arrow.names, wanted)
        for batch in file.iter_batches(4096, columns=wanted):
            yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise StageError(f"{where}: not valid Parquet: {error}") from None


def _items(root: Path, options: Options, rows: Iterator[dict[str, Any]]) -> Iterator[Item]:
    for number, row in enumerate(rows, 1):
        name, label = _word(row[options.image]), _word(row[options.label])
        where = f"{options.table}#{number}"
        split = _word(row[options.split]) if options.split is not None else ""
        if not name:
            yield Item(where, problem=f"names no image in column '{options.image}'")
        elif not label:
            yield Item(name, problem=f"{where}: no label in column '{options.label}'")
        elif split and split.lower() not in SPELLINGS:
            yield Item(name, problem=f"{where}: no such split '{split}'; have: train, val, test")
        else:
            yield formats.image_item(root, name, label=label, split=SPELLINGS.get(split.lower()))


def _word(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()

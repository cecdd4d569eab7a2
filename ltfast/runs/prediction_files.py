"""Writes predictions to a CSV file, to JSON lines or to a Parquet file.

A CSV or JSON file grows row by row, and an interrupted one is continued after its last complete row. The file
`NAME.settings.json` beside it says what its predictions were made with, so that they are not mixed with others.
"""

import csv
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from ltfast.data.sources import PackageError
from ltfast.engine.report import write_json
from ltfast.engine.schema import read_json
from ltfast.errors import InputError
from ltfast.evaluation.csv_lines import digits, line
from ltfast.files import replace_file
from ltfast.runs.predict import Row

FORMATS = (".csv", ".json", ".jsonl", ".parquet")
_GROUP = 2**14  # rows of a row group of Parquet

Batches = Callable[[int], Iterable[list[Row]]]  # the rows after the first so many


def columns(top: int) -> list[str]:
    """The names of the columns, for rows with `top` classes."""
    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    return ["path", *(f"{name}{rank}" for rank in ranks for name in ("class", "probability")), "error"]


def write_predictions(
    out: Path, batches: Batches, paths: Iterable[str], settings: Mapping[str, Any], *, top: int
) -> None:
    """Write predictions to a file, or the rest of them if the file has some already.

    Args:
        out: the file; its extension is one of `FORMATS`.
        batches: called once with the number of rows that the file has.
        paths: the paths of all images, with which the rows of an existing file are compared.
        settings: what the predictions depend on, as plain values.
        top: the number of classes of a row.

    Raises:
        InputError: the file exists and has other predictions, or was not written by this function. A Parquet file is
            replaced.
        PackageError: Parquet needs the package `pyarrow`, which is not installed.
        OSError: the file cannot be written.
    """
    if out.suffix == ".parquet":
        parquet = _parquet()
        replace_file(out, lambda file: _write_parquet(parquet, file, batches(0), top))
        return
    names = columns(top)
    form: _Text = _Csv(names) if out.suffix == ".csv" else _JsonLines(names)
    _check_settings(out, json.loads(json.dumps(settings)))
    with open(out, "ab+") as file:
        done, end = _done(out, file, form, paths)
        file.truncate(end)
    if end == 0:
        _append(out, form.header)
    for rows in batches(done):
        _append(out, b"".join(map(form.encoded, rows)))


def check_format(out: Path) -> None:
    """Check the extension of a file for `write_predictions`, and whether its format can be written.

    Raises:
        InputError, PackageError: see `write_predictions`.
    """
    if out.suffix not in FORMATS:
        raise InputError(f"expected a file name that ends with {', '.join(FORMATS)}, got {str(out)!r}", name="out")
    if out.suffix == ".parquet":
        _parquet()


def _check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Check that an existing file has predictions of these settings, or write the settings of a new one."""
    beside = out.with_name(f"{out.name}.settings.json")
    remedy = "delete it, or give another name"
    if not os.path.lexists(out):
        write_json(beside, settings)
        return
    try:
        before = read_json(beside)
    except (ValueError, OSError):
        before = None
    if not isinstance(before, dict):
        raise InputError(f"expected a new file, got {out}, which has no {beside.name} beside it; {remedy}", name="out")
    for name in settings:
        if before.get(name) != settings[name]:
            raise InputError(
                f"{out} has predictions of another command, whose {name} was {before.get(name)} and is now "
                f"{settings[name]}; {remedy}",
                name="out",
            )


def _append(out: Path, data: bytes) -> None:
    try:
        with open(out, "ab") as file:
            file.write(data)
    except OSError as error:
        hint = "the same command continues after its last complete row"
        raise OSError(f"cannot write {out}: {error}; {hint}") from error


def _done(out: Path, file: BinaryIO, form: "_Text", paths: Iterable[str]) -> tuple[int, int]:
    """The number of complete rows in a file, and the position after the last one in bytes."""
    file.seek(0)
    found = file.read(len(form.header))
    if found != form.header:
        if not form.header.startswith(found):
            raise InputError(f"{out}:1: expected the header {form.header.decode().strip()}; delete it", name="out")
        return 0, 0
    done, end, expected = 0, len(found), iter(paths)
    for record in form.records(file):
        path = form.path(record)
        if path is None:
            break
        now = next(expected, None)
        if path != now:
            raise InputError(
                f"{out} has predictions of other images: image {done + 1} was {path} and is now {now}; delete it, or "
                "give another name",
                name="out",
            )
        done, end = done + 1, end + len(record)
    return done, end


class _Text(ABC):
    """A format of rows in bytes.

    Attributes:
        header: what a file starts with.
    """

    header: bytes = b""

    @abstractmethod
    def encoded(self, row: Row) -> bytes:
        """A row, which ends with a line feed."""

    @abstractmethod
    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """The rows of a file; the last one may be incomplete."""

    @abstractmethod
    def path(self, record: bytes) -> str | None:
        """The path of a row; None if the row is incomplete."""


class _Csv(_Text):
    def __init__(self, names: list[str]) -> None:
        self.width = len(names)
        self.header = line(names)

    def encoded(self, row: Row) -> bytes:
        cells = [cell for pair in zip(row.classes, map(digits, row.probabilities), strict=True) for cell in pair]
        return line([row.path, *(cells or [""] * (self.width - 2)), row.error or ""])

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        record = b""
        for part in file:
            record += part
            if record.count(b'"') % 2 == 0:  # no line feed inside of quotes
                yield record
                record = b""
        if record:
            yield record

    def path(self, record: bytes) -> str | None:
        text = record.decode(errors="surrogateescape")
        cells = next(csv.reader(io.StringIO(text, newline="")), [])
        return cells[0] if record.endswith(b"\n") and len(cells) == self.width else None


class _JsonLines(_Text):
    def __init__(self, names: list[str]) -> None:
        self.names = names

    def encoded(self, row: Row) -> bytes:
        values = chain.from_iterable(zip(row.classes, (float(digits(p)) for p in row.probabilities), strict=True))
        cells = dict(zip(self.names[1:-1], values, strict=False))
        cells = {name: cells.get(name) for name in self.names[1:-1]}
        return (json.dumps({"path": row.path, **cells, "error": row.error}) + "\n").encode()

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        return iter(file)

    def path(self, record: bytes) -> str | None:
        try:
            content = json.loads(record) if record.endswith(b"\n") else None
        except ValueError:
            return None
        return content.get("path") if isinstance(content, dict) and list(content) == self.names else None


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise PackageError(
            "a .parquet file needs the package pyarrow (pip install pyarrow); .csv and .json need none", name="out"
        ) from error
    return pyarrow.parquet


def _write_parquet(parquet: Any, file: BinaryIO, batches: Iterable[list[Row]], top: int) -> None:
    import pyarrow

    names = columns(top)
    types = [pyarrow.float32() if name.startswith("probability") else pyarrow.string() for name in names]
    schema = pyarrow.schema(list(zip(names, types, strict=True)))
    waiting: list[list[Any]] = []
    with parquet.ParquetWriter(file, schema) as writer:

        def write() -> None:
            parts = [
                pyarrow.array(column, type_) for column, type_ in zip(zip(*waiting, strict=True), types, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(parts, schema=schema))
            waiting.clear()

        for rows in batches:
            waiting += [_cells(row, top) for row in rows]
            if len(waiting) >= _GROUP:
                write()
        if waiting:
            write()


def _cells(row: Row, top: int) -> list[Any]:
    pairs: list[Any] = [cell for pair in zip(row.classes, row.probabilities, strict=True) for cell in pair]
    path = row.path.encode(errors="surrogateescape").decode(errors="backslashreplace")  # Parquet has UTF-8 only
    return [path, *(pairs or [None] * (2 * top)), row.error]

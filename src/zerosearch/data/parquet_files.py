"""Parquet files: bounded before the `datasets` library reads them.

A value that stands in a dictionary once and is named often takes bytes on the disk and as often its
size in memory. So what rows unpack to is counted first, from dictionaries and indices alone.
"""

from __future__ import annotations

import glob
import os
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from datasets.io.parquet import ParquetDatasetReader

from zerosearch.core.errors import InputError
from zerosearch.data.json_lines import MAX_ROW_BYTES

ROWS_PER_TABLE = 1000
MAX_TABLE_BYTES = 2**30  # of so many rows, which are in memory together


def open_parquet(path: str, cache_dir: str | None) -> Any:
    """The rows of a file, streamed.

    Args:
        path: of the file.
        cache_dir: of the library; None: its own.

    Raises:
        InputError: rows are larger than rows of questions can be.
    """
    with pyarrow.parquet.ParquetFile(path) as file:
        metadata = file.metadata
    _check_sizes(path, metadata)
    _check_dictionaries(path, metadata)
    # load_dataset would do the same, but first contact the hub to count the download: seconds of
    # waiting for a name server on a machine without a network
    escaped = glob.escape(os.path.abspath(path))  # the library reads brackets in names as patterns
    return ParquetDatasetReader(
        [escaped],  # type: ignore[arg-type]
        streaming=True,
        cache_dir=cache_dir,  # type: ignore[arg-type]
        batch_size=ROWS_PER_TABLE,  # else whole row groups, of any size
    ).read()


def _check_sizes(path: str, metadata: Any) -> None:
    first = 0
    for at in range(metadata.num_row_groups):
        group = metadata.row_group(at)
        if group.total_byte_size > MAX_ROW_BYTES * max(1, group.num_rows):
            raise _too_large(path, first, group.num_rows, group.total_byte_size)
        first += group.num_rows


def _check_dictionaries(path: str, metadata: Any) -> None:
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    chunks = [group.column(at) for group in groups for at in range(group.num_columns)]
    names = {
        chunk.path_in_schema
        for chunk in chunks
        if chunk.has_dictionary_page
        and chunk.physical_type == "BYTE_ARRAY"
        and chunk.num_values * chunk.total_uncompressed_size > MAX_ROW_BYTES
    }
    if not names:
        return
    first = 0
    with pyarrow.parquet.ParquetFile(path, read_dictionary=[*names]) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_TABLE, columns=[*names]):
            if (size := _unpacked(batch)) > MAX_ROW_BYTES:
                for row in range(batch.num_rows):
                    if (of_row := _unpacked(batch.slice(row, 1))) > MAX_ROW_BYTES:
                        raise _too_large(path, first + row, 1, of_row)
            if size > MAX_TABLE_BYTES:
                raise _too_large(path, first, batch.num_rows, size)
            first += batch.num_rows


def _unpacked(values: Any) -> int:
    """Bytes of a batch or an array with its dictionaries unpacked; of structures, their leaves."""
    if isinstance(values, pyarrow.RecordBatch):
        return sum(_unpacked(column) for column in values.columns)
    if isinstance(values, pyarrow.DictionaryArray):
        lengths = pyarrow.compute.call_function("binary_length", [values.dictionary])
        each = lengths.take(values.indices)
        return pyarrow.compute.call_function("sum", [each]).as_py() or 0
    if isinstance(values, pyarrow.StructArray):
        return sum(_unpacked(field) for field in values.flatten())
    if isinstance(values, (pyarrow.ListArray, pyarrow.LargeListArray)):  # maps, too
        return _unpacked(values.flatten())
    return values.nbytes


def _too_large(path: str, first: int, rows: int, size: int) -> InputError:
    place = f"row {first}" if rows == 1 else f"rows {first} to {first + rows - 1}"
    most = "a row" if size > MAX_ROW_BYTES * rows else f"each, {MAX_TABLE_BYTES >> 20} MiB together"
    return InputError(
        f"{path}, {place} (counting from 0): {size >> 20} MiB, more than {MAX_ROW_BYTES >> 20} MiB "
        f"{most}; keep the columns of questions and answers"
    )

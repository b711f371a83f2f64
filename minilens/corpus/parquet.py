"""The column of a Parquet file that holds its texts, some rows at a time, with the library pyarrow.

What pyarrow cannot read is an OSError, and what is no column of texts a ValueError.
"""

import errno
import io
from collections.abc import Iterator
from typing import Any

from ..arguments import quoted
from .unpacking import MOST_TIMES, SPARE

ROWS = 8  # that are read together: each may be a long document
BUFFER = 2**16  # bytes of the column that are read together
SHOWN = 8  # columns that a sentence names


def column(name: str, file: io.BufferedReader, size: int, key: str) -> Iterator[str]:
    """The text in each row. name: of the file, for what is said of it. size: of the file, in bytes.

    A page of a column is unpacked whole; of what is written by pyarrow as a rule 1 MB. Raises OSError where the texts
    have far more bytes than the file, and ValueError for a row without a text.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f'{name} needs pyarrow, which is not installed: pip install "minilens[parquet]"') from error
    number = n = 0
    try:
        whole = ParquetFile(file, pre_buffer=False, buffer_size=BUFFER)
        _check_column(name, whole.schema_arrow, key)
        _check_size(_claimed(whole.metadata, key), size)
        for rows in whole.iter_batches(ROWS, columns=[key], use_threads=False):
            for value in rows.column(0):
                number += 1
                text = value.as_py()
                if text is None:
                    raise ValueError(f'{name}, row {number} has no text: its "{key}" is null')
                _check_size(n := n + len(text) + 1, size)
                yield text
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, row {number} is not UTF-8: {error.reason} at byte {error.start}") from error
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error


def _check_column(name: str, schema: Any, key: str) -> None:
    """Raise ValueError where there is no such column, where there are two, and where it holds no text."""
    import pyarrow.types as types

    fields = [field for field in schema if field.name == key]
    if len(fields) != 1:
        names = ", ".join(quoted(each) for each in schema.names[:SHOWN]) + ", ..." * (len(schema.names) > SHOWN)
        found = f"{len(fields)} columns" if fields else "no column"
        raise ValueError(f'{name} has {found} "{key}" to read: --key names one; there are {names or "none"}')
    kind = fields[0].type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise ValueError(f'{name} has no text in its column "{key}": it holds {kind!s:.80}')


def _claimed(metadata: Any, key: str) -> int:
    """The characters of a column at most, by what the file says of itself."""
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    parts = (group.column(n) for group in groups for n in range(group.num_columns))
    return int(metadata.num_rows + sum(part.total_uncompressed_size for part in parts if part.path_in_schema == key))


def _check_size(n: int, size: int) -> None:
    """Raise OSError for texts of more bytes than a file of this size holds: a few may stand for gigabytes of one."""
    if n > SPARE + MOST_TIMES * size:
        why = f"it unpacks to more than {MOST_TIMES} times its bytes, as no text does; if it is one, save it as .jsonl"
        raise OSError(errno.EFBIG, why)

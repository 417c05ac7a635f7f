"""Uploads offline W&B runs, also from a folder that was moved to another place or machine.

The record of a run names the files of its artifacts, such as the pictures of a table, by absolute
paths. Where they lead nowhere, ``wandb sync`` uploads the rest, leaves those artifacts out and
reports success. The paths are therefore corrected first.

A record is a log in LevelDB's format: a header of 7 bytes, then blocks of 32 KiB with the chunks of
records. Each record is a message ``Record`` of W&B's protocol.
"""

import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, counted
from pipeline.files import replacing

HEADER = b":W&B\xe1\xbe\x00"
"""Begins a record: a name, a number that marks the format, and its version."""
BLOCK = 2**15
CHUNK = struct.Struct("<IHB")
"""Begins a chunk: checksum of its kind and bytes, number of bytes, kind."""
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""Kinds of chunks: a whole record, and the parts of one that several blocks hold."""


def upload(folder: Path) -> None:
    """Uploads the offline runs of a folder ``wandb`` that were not uploaded, or one run's folder.

    Raises:
        UserError: there is no offline run, a record is damaged, files of its artifacts are missing,
            or ``wandb sync`` fails.
    """
    files = sorted(
        {file.resolve() for file in (*folder.glob("*.wandb"), *folder.glob("*/*.wandb"))}
    )
    runs = [file for file in files if file.parent.name.startswith("offline-run-")]
    if not runs:
        raise UserError(
            f"{folder} has no offline run of W&B. Name the folder wandb/ that has the folders "
            "offline-run-…, or one of these"
        )
    waiting = [file for file in runs if not file.with_suffix(".wandb.synced").exists()]
    for file in waiting:
        correct_paths(file)
    if not waiting:
        print(f"{counted(len(runs), 'run')} in {folder}: all are uploaded")
        return
    command = [sys.executable, "-m", "wandb", "sync", *(str(file.parent) for file in waiting)]
    subprocess.run(command, check=False)
    left = [file.parent for file in waiting if not file.with_suffix(".wandb.synced").exists()]
    if left:
        raise UserError(
            f"`wandb sync` did not upload {counted(len(left), 'run')}, such as {left[0]}; it says "
            "why above. Without a key, run `wandb login` first. The same command goes on"
        )


def correct_paths(file: Path) -> None:
    """Replaces the paths in the record of a run that lead nowhere by those below its folder now.

    Raises:
        UserError: the record is damaged, or a file that it names is not there either.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    records = [Record.FromString(record) for record in read_log(file)]
    corrected, missing = 0, []
    for record in records:
        for entry in record.artifact.manifest.contents if record.HasField("artifact") else ():
            if not entry.local_path or Path(entry.local_path).is_file():
                continue
            if found := _below(file.parent.parent, Path(entry.local_path)):
                entry.local_path, corrected = str(found), corrected + 1
            else:
                missing.append(entry.local_path)
    if missing:
        raise UserError(
            f"{file.parent} lacks {counted(len(missing), 'file')} of its artifacts, such as "
            f"{missing[0]}. Bring the whole folder wandb/, with its folder data/; or upload the "
            f"run without them: `wandb sync {file.parent}`"
        )
    if corrected:
        _write_log(file, records)


def read_log(file: Path) -> Iterator[bytes]:
    """Yields the records of a log; one that was cut off as its process was killed ends it.

    Raises:
        UserError: the file is no such log, or it is damaged.
    """
    content, position, record = file.read_bytes(), len(HEADER), b""
    if content[:position] != HEADER:
        raise UserError(
            f"{file} is no record of W&B as known here. `wandb sync {file.parent}` may read it"
        )
    while position + CHUNK.size <= len(content):
        room = BLOCK - position % BLOCK
        if room < CHUNK.size:
            position += room
            continue
        checksum, size, kind = CHUNK.unpack_from(content, position)
        position += CHUNK.size
        chunk = content[position : position + size]
        if len(chunk) < size:
            return
        if _checksum(chunk, kind) != checksum:
            raise UserError(
                f"{file} is damaged at byte {position}. `wandb sync {file.parent}` uploads what it "
                "can read"
            )
        position += size
        record += chunk
        if kind in (FULL, LAST):
            yield record
            record = b""


def _write_log(file: Path, records: list[Any]) -> None:
    content = bytearray(HEADER)
    for record in records:
        rest, kinds = record.SerializeToString(), (FULL, FIRST)
        while True:
            room = BLOCK - len(content) % BLOCK
            if room < CHUNK.size:
                content += bytes(room)
                room = BLOCK
            chunk, rest = rest[: room - CHUNK.size], rest[room - CHUNK.size :]
            kind = kinds[1] if rest else kinds[0]
            content += CHUNK.pack(_checksum(chunk, kind), len(chunk), kind) + chunk
            kinds = LAST, MIDDLE
            if not rest:
                break
    with replacing(file) as temporary:
        temporary.write_bytes(content)


def _checksum(chunk: bytes, kind: int) -> int:
    return zlib.crc32(chunk, zlib.crc32(bytes([kind])))


def _below(folder: Path, path: Path) -> Path | None:
    """Returns the file below a folder whose path ends as a path does, by as much as possible."""
    ends = (Path(*path.parts[start:]) for start in range(1, len(path.parts)))
    return next((folder / end for end in ends if (folder / end).is_file()), None)

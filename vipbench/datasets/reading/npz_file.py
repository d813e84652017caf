"""Reading arrays out of an .npz file lazily and without trusting it. No pickle, ever."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from vipbench.api.dataset import DataError
from vipbench.files import open_regular
from vipbench.images import ImageError

# Compressed arrays up to this size are held in memory; larger ones are unpacked to a temporary
# file. Uncompressed ones, of any size, are read from where they lie.
IN_MEMORY_BYTES = 1024**3
# Compressed arrays above this size that shrank to less than one part in MOST_SHRUNK hold nothing
# but repetitions: a decompression bomb. Images shrink to a half or a third, masks to a fiftieth.
BOMB_BYTES, MOST_SHRUNK = 64 * 1024**2, 500

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Member:
    """One array of an .npz file, known by its header alone. state: of the file whose header that
    is; arrays of no other, or of one that was written since, are read."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    header_bytes: int
    state: tuple[int, ...]

    def read(self) -> Array:
        """The array, in memory. Raises DataError."""
        with self._archive() as archive, archive.open(f"{self.key}.npy") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
            return array

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        """The file, which is looked at before and after it is used."""
        with _errors(self.path, self.key), open_regular(self.path) as file:
            self.check(file.fileno())
            with zipfile.ZipFile(file) as archive:
                yield archive
            self.check(file.fileno())

    def check(self, handle: int) -> None:
        """Raise DataError where the open file is another, or was written since."""
        if _state(handle) != self.state:
            raise DataError(
                f"'{self.path}' changed while it was read (array '{self.key}'); it was not used; "
                "start the run again when the file no longer changes"
            )

    def rows(self) -> Array | _Rows:
        """The array, read from disk as it is used, or in memory where it is small."""
        size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        with self._archive() as archive:
            info = archive.getinfo(f"{self.key}.npy")
            if info.compress_type == zipfile.ZIP_STORED and size > 0 and not self.fortran:
                assert archive.fp is not None
                return _Rows(self, _data_start(archive.fp, info) + self.header_bytes)
            if size <= IN_MEMORY_BYTES:
                return self.read()
            # It has no name, and is gone from the disk when the map is.
            with tempfile.TemporaryFile() as unpacked, archive.open(info) as file:
                shutil.copyfileobj(file, unpacked, 1024 * 1024)
                unpacked.flush()
                order: Literal["F", "C"] = "F" if self.fortran else "C"
                mapped: Array = np.memmap(
                    unpacked, self.dtype, "r", self.header_bytes, self.shape, order
                )
                return mapped


class _Rows:
    """Rows of an uncompressed member, read out of the file that was opened first: one that takes
    its place is never looked at, and one that is cut short is an error. Reading from a map of it
    would end the process."""

    def __init__(self, member: Member, start: int) -> None:
        self._member, self._start = member, start
        self._file = os.open(member.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        member.check(self._file)

    def __getitem__(self, index: int) -> Array:
        member, shape = self._member, self._member.shape[1:]
        size = int(np.prod(shape, dtype=np.int64)) * member.dtype.itemsize
        with _errors(member.path, member.key):
            data = os.pread(self._file, size, self._start + index * size)
        if len(data) < size:
            raise ImageError(
                f"'{member.path}': array '{member.key}' was truncated during the run; copy or "
                f"download it again"
            )
        return np.frombuffer(data, member.dtype).reshape(shape)


class LazyImages(Sequence[npt.NDArray[np.uint8]]):
    """The images of a member (N,H,W) or (N,H,W,3), read when they are asked for."""

    def __init__(self, member: Member) -> None:
        self.member, self.file = member, member.path

    def __len__(self) -> int:
        return self.member.shape[0]

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[npt.NDArray[np.uint8]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return np.array(self._rows[range(len(self))[index]])

    @cached_property
    def _rows(self) -> Array | _Rows:
        return self.member.rows()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "member": self.member,
            "file": self.file,
        }  # an open file does not travel between processes


def read_members(path: Path) -> dict[str, Member]:
    """Key -> array, by the headers. Raises DataError for a file that is no .npz file."""
    members = {}
    with _errors(path, None), open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
        state = _state(opened.fileno())
        for info in archive.infolist():
            key = info.filename.removesuffix(".npy")
            if key == info.filename or info.is_dir():
                continue
            with _errors(path, key), archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                if version == (1, 0):
                    header = np.lib.format.read_array_header_1_0(file)
                elif version == (2, 0):
                    header = np.lib.format.read_array_header_2_0(file)
                else:
                    raise DataError(f"'{path}': array '{key}' has the unknown version {version}")
                shape, fortran, dtype = header
                member = Member(path, key, shape, dtype, fortran, file.tell(), state)
            if dtype.hasobject:
                raise DataError(
                    f"'{path}': array '{key}' holds Python objects, which are not loaded, because "
                    f"they could run code; save it again as numbers or texts of fixed width"
                )
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if min(shape, default=0) < 0 or info.file_size != member.header_bytes + size:
                raise DataError(
                    f"'{path}': array '{key}' is damaged: it states {shape} of {dtype} and holds "
                    f"{info.file_size - member.header_bytes} bytes"
                )
            if info.file_size > max(BOMB_BYTES, MOST_SHRUNK * info.compress_size):
                raise DataError(
                    f"'{path}': array '{key}' would unpack from {info.compress_size:,} to "
                    f"{info.file_size:,} bytes, like a decompression bomb; if the file is right, "
                    f"save it "
                    "with numpy.savez, uncompressed"
                )
            members[key] = member
    return members


@contextmanager
def _errors(path: Path, key: str | None) -> Iterator[None]:
    """Turns what zipfile, zlib and numpy raise for damaged files into DataError."""
    what = f"'{path}'" + (f": array '{key}'" if key else "")
    try:
        yield
    except DataError:
        raise
    except zipfile.BadZipFile as error:
        if "CRC" in str(error):
            raise DataError(f"{what} is damaged ({error}); copy or download it again") from error
        raise DataError(
            f"{what} is not an .npz file, or is truncated ({error}); expected what numpy.savez "
            "writes; copy or download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{what} cannot be read: {error.strerror or error}") from error
    except (zlib.error, struct.error, ValueError, EOFError, RuntimeError, KeyError) as error:
        raise DataError(f"{what} is damaged ({error}); copy or download it again") from error


def _state(handle: int) -> tuple[int, ...]:
    """Of an open file, what changes with its content: also where size and time are put back, the
    time of that does."""
    found = os.fstat(handle)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _data_start(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind its local header, 30 bytes and two fields."""
    file.seek(info.header_offset)
    fixed = file.read(30)
    name, extra = struct.unpack("<HH", fixed[26:30])
    return int(info.header_offset + 30 + name + extra)

"""Files that appear whole or not at all: written beside their place, synced, renamed.

A temporary is locked as long as its writer lives. What a killed writer left behind is therefore told from the work of
a living one, and the next writer of the same target removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing left behind is removed
    fcntl = None

TRIES = 1000
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)  # what _name_beside makes


class Temporary:
    """A new file beside ``path``, open for writing and reading, that ``publish`` renames over it."""

    def __init__(self, path: Path) -> None:
        sweep(path)
        self.path = path
        self.place, descriptor = _held(path, _new_file)
        self.file = os.fdopen(descriptor, "w+b")
        try:
            with contextlib.suppress(PermissionError, FileNotFoundError):
                os.chmod(self.place, path.stat().st_mode & 0o777)  # what it replaces keeps its mode
        except BaseException:
            self.discard()
            raise

    def sync(self) -> None:
        """Everything written reaches the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def publish(self) -> None:
        """Takes the place of ``path``; ``sync`` comes first, and ``sync_folder`` after."""
        os.replace(self.place, self.path)
        self.file.close()

    def discard(self) -> None:
        """Removes the file, unless it was published."""
        with contextlib.suppress(FileNotFoundError):
            self.place.unlink()
        with contextlib.suppress(OSError):  # closing flushes, which fails again where the disk is full
            self.file.close()


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Writes a JSON object as Hugging Face's files have it, or nothing.

    Args:
        path: where to; a file that is there is replaced. data: what it says.
    """
    temporary = Temporary(path)
    try:
        temporary.file.write(json.dumps(data, indent=2).encode() + b"\n")
        temporary.sync()
        temporary.publish()
    finally:
        temporary.discard()
    sync_folder(path.parent)


class TemporaryFolder:
    """A new folder beside ``path``, for several files, or for a checkpoint that is a folder."""

    def __init__(self, path: Path) -> None:
        sweep(path)
        self._descriptor: int | None = None
        if os.name == "posix":
            self.place, self._descriptor = _held(path, _new_folder)
        else:
            self.place = _name_beside(path)
            self.place.mkdir()

    def discard(self) -> None:
        """Removes the folder and what is in it, unless it was renamed."""
        shutil.rmtree(self.place, ignore_errors=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def sync_folder(folder: Path) -> None:
    """The renames of a folder reach the disk."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def publishing(folder: Path) -> Iterator[None]:
    """One writer at a time publishes sets of files in ``folder``; the lock dies with its process."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def leftovers(folder: Path, *, remove: bool = False) -> dict[Path, str]:
    """What killed writers left in ``folder``, and the name of the file that each wrote. ``remove``: it goes.

    Only what is named as a temporary of this library and is locked by no living writer.
    """
    found = {}
    for place in sorted(folder.glob(".*.tmp")) if fcntl is not None else ():
        match = _TEMPORARY.fullmatch(place.name)
        if match is not None and _dead(place, remove=remove):
            found[place] = match[1]
    return found


def sweep(path: Path) -> None:
    """Removes what killed writers of ``path`` left beside it."""
    if fcntl is None:
        return
    for place in path.parent.glob(f".{_escaped(path.name)}.*.tmp"):
        match = _TEMPORARY.fullmatch(place.name)
        if match is not None and match[1] == path.name:
            _dead(place, remove=True)


def _dead(place: Path, *, remove: bool) -> bool:
    """Whether no living writer holds ``place``; removed then, if asked for, while its lock is held."""
    with contextlib.suppress(OSError):
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if remove and place.is_dir():
                shutil.rmtree(place)
            elif remove:
                place.unlink()
            return True
        finally:
            os.close(descriptor)
    return False


def _name_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _held(path: Path, new: Callable[[Path], int]) -> tuple[Path, int]:
    """A new place beside ``path`` and its descriptor, locked: nobody sweeps it any more.

    Between its creation and its lock another writer may take it for a dead one's and remove it. What is locked is
    therefore looked at once more, and made again where it is gone.
    """
    for left in reversed(range(TRIES)):
        place = _name_beside(path)
        try:
            descriptor = new(place)
        except FileNotFoundError:
            if left and path.parent.is_dir():  # removed between the two steps that make and open a folder
                continue
            raise  # or the folder takes no files, as /proc
        if fcntl is None:
            return place, descriptor
        with contextlib.suppress(OSError):  # some network file systems lock nothing
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(place)):
                return place, descriptor
        os.close(descriptor)
    raise FileNotFoundError(f"{path}: what is made beside it is removed at once, {TRIES} times")


def _new_file(place: Path) -> int:
    return os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def _new_folder(place: Path) -> int:
    place.mkdir()
    return os.open(place, os.O_RDONLY)

"""The directory of an agent's own packet functions: whose files are trusted, and which function a file holds."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from ringway.control.rules import FunctionUse
from ringway.stack.function import Function, FunctionCause, FunctionError
from ringway.stack.library import load_library
from ringway.stack.prototype import load_prototype

SIZE_MAX: Final = 64 << 20  # bytes of a file
_LOADERS: Final = {".so": load_library, ".py": load_prototype}


class FunctionDirectory:
    """Fabric files name functions, and never paths: NAME is NAME.so in the directory, or NAME.py, a prototype."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self, use: FunctionUse, running: Sequence[Function] = ()) -> Function:
        """The function as the directory has it now; one that runs, where that is the same. FunctionError."""
        suffix, content = self._read(use.name)
        digest = hashlib.sha256(content).hexdigest()
        for function in running:
            if function.name == use.name and function.was_loaded_from(digest, use.options):
                return function
        return _LOADERS[suffix](use.name, content, use.options, digest)

    def _read(self, name: str) -> tuple[str, bytes]:
        if self._path is None:
            message = "this agent was given no directory of functions: start it with --functions DIR"
            raise FunctionError(FunctionCause.NO_DIRECTORY, name, message)
        try:
            directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            message = f"directory {self._path} cannot be read ({error.strerror}): make it, or name another"
            raise FunctionError(FunctionCause.NO_DIRECTORY, name, message) from None
        try:
            self._check_owner(name, directory, self._path)
            for suffix in _LOADERS:
                content = self._content(name, directory, f"{name}{suffix}")
                if content is not None:
                    return suffix, content
            self._refuse_missing(name, directory)
        finally:
            os.close(directory)

    def _content(self, name: str, directory: int, file: str) -> bytes | None:
        """None when there is no such file. What is checked is what is read: both by one descriptor."""
        assert self._path is not None
        path = self._path / file
        try:
            fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            message = f"{path} cannot be read ({error.strerror}): put a file there that this agent may read"
            raise FunctionError(FunctionCause.RIGHTS, name, message) from None
        with os.fdopen(fd, "rb") as opened:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FunctionError(FunctionCause.RIGHTS, name, f"{path} is no file: put one there")
            self._check_owner(name, fd, path)
            content = opened.read(SIZE_MAX + 1)
        if len(content) > SIZE_MAX:
            message = f"{path} has more than {SIZE_MAX} bytes: is it the right file?"
            raise FunctionError(FunctionCause.LOAD, name, message)
        return content

    def _check_owner(self, name: str, fd: int, path: Path) -> None:
        """Who can change it, or put another in its place, runs code in this agent: root and its own user may."""
        found = os.fstat(fd)
        if found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return
        message = (
            f"{path} belongs to uid {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):o}: it has to belong to "
            f"root or to this agent's user, {os.geteuid()}, and only its owner may write to it (chown, chmod go-w)"
        )
        raise FunctionError(FunctionCause.RIGHTS, name, message)

    def _refuse_missing(self, name: str, directory: int) -> NoReturn:
        names = sorted({Path(file).stem for file in os.listdir(directory) if Path(file).suffix in _LOADERS})
        there = ", ".join(names[:20]) or "none"
        message = f"{self._path} has no {name}.so or {name}.py; the functions there are: {there}"
        raise FunctionError(FunctionCause.MISSING, name, message)

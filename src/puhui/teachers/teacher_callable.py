"""A Python callable as a teacher: text to answer, or text to answer and probabilities. A coroutine function as well."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from puhui.cascade.agreement import canonical
from puhui.core.errors import LearningError, PuhuiError, SettingsError, UpstreamGarbled
from puhui.teachers.teacher import TeacherOptions, Told, file_identity, identity

PREFIX = "python:"


class CallableTeacher:
    """Asks a callable, one text a call. It runs in a thread, alone unless `options.parallel` says otherwise."""

    deterministic: bool | None = None
    batch = 1

    def __init__(self, ask: Callable[[str], Any], name: str, digest: str, options: TeacherOptions) -> None:
        self.name, self.digest = name, digest
        self.parallel = options.parallel or 1
        self.labels = tuple(options.labels)
        self._ask = ask

    async def ask_many(self, texts: Sequence[str]) -> list[Told]:
        """See `Teacher`. UpstreamGarbled where it raises; LearningError for what is neither an answer nor an answer
        with its probabilities."""
        return [await self._one(text) for text in texts]

    async def close(self) -> None:
        """Nothing to give back."""

    async def _one(self, text: str) -> Told:
        started = time.perf_counter()
        try:
            said = await self._called(text)
        except PuhuiError:
            raise
        except Exception as error:  # somebody else's code may raise anything; the text may be at fault
            raise UpstreamGarbled(f"{self.name} raised {type(error).__name__}: {error!s:.200}") from error
        seconds = time.perf_counter() - started
        answer, shares = said if isinstance(said, tuple) and len(said) == 2 else (said, None)
        if not isinstance(answer, str) or not isinstance(shares, Mapping | None):
            raise LearningError(
                f"{self.name} answered {said!r:.80} to {text!r:.80}; it must return the answer as a str, "
                "or a pair of the answer and a dict from label to probability"
            )
        return Told(answer=canonical(answer), probabilities=self._checked(shares), seconds=seconds)

    async def _called(self, text: str) -> Any:
        said = self._ask(text) if inspect.iscoroutinefunction(self._ask) else await asyncio.to_thread(self._ask, text)
        return await said if inspect.isawaitable(said) else said

    def _checked(self, shares: Mapping[str, float] | None) -> dict[str, float] | None:
        if shares is None:
            return None
        told = {canonical(str(label)): float(share) for label, share in shares.items()}
        total = sum(told.values())
        if not (0.0 < total < math.inf) or min(told.values()) < 0.0:
            raise LearningError(f"{self.name} gave probabilities {shares!r:.80}; they must be 0 or more, not all 0")
        return {label: share / total for label, share in told.items() if share > 0.0}


def open_callable(ask: Callable[[str], Any], options: TeacherOptions) -> CallableTeacher:
    """A teacher from a callable. A function is known by its name and source; what holds state must be named."""
    if options.name:
        return CallableTeacher(ask, options.name, identity("callable", options.name, options), options)
    if not inspect.isfunction(ask) or ask.__closure__:
        raise SettingsError(
            f"{ask!r:.80} is not a plain function, so nobody can tell whether it still answers as it did: "
            'name it, such as TeacherOptions(name="my classifier, version 3")'
        )
    name = f"{ask.__module__}.{ask.__qualname__}"
    try:
        source = inspect.getsource(ask)
    except (OSError, TypeError) as error:
        raise SettingsError(f"{name} has no source to be known by: give TeacherOptions(name=…)") from error
    return CallableTeacher(ask, name, identity("callable", name, options, {"source": source}), options)


def open_python(reference: str, options: TeacherOptions) -> CallableTeacher:
    """`python:module.path:function` or `python:folder/file.py:function`; known by the content of its file."""
    place, _, attribute = reference.removeprefix(PREFIX).rpartition(":")
    if not place or not attribute:
        raise SettingsError(f"{reference!r} must be python:MODULE:FUNCTION or python:FILE.py:FUNCTION")
    module = _load(place, reference)
    ask = getattr(module, attribute, None)
    if not callable(ask):
        offered = ", ".join(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
        raise SettingsError(f"{place} has no callable {attribute!r}; it has {offered[:200] or 'none'}")
    name = options.name or reference
    files = {} if options.name or not module.__file__ else file_identity(Path(module.__file__))
    return CallableTeacher(ask, name, identity("callable", name, options, {"files": files}), options)


def _load(place: str, reference: str) -> ModuleType:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except Exception as error:
            raise SettingsError(
                f"{reference}: the module {place!r} cannot be imported ({error}); install it or name its file, "
                "such as python:folder/file.py:function"
            ) from error
    path = Path(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise SettingsError(f"{reference}: there is no Python file {path.absolute()}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingsError(f"{reference}: {path} does not run ({type(error).__name__}: {error})") from error
    return module

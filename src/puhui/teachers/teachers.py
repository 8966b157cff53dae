"""Opening a big model as a teacher, by a reference that says what it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from puhui.core.errors import SettingsError
from puhui.teachers.hub_model import CAUSAL, HEAD, load_hub_model
from puhui.teachers.teacher import Teacher, TeacherOptions
from puhui.teachers.teacher_callable import PREFIX, open_callable, open_python
from puhui.teachers.teacher_causal import CausalTeacher
from puhui.teachers.teacher_encoder import HeadTeacher, ZeroShotTeacher
from puhui.teachers.teacher_endpoint import EndpointTeacher
from puhui.teachers.teacher_gguf import GgufTeacher
from puhui.teachers.teacher_onnx import OnnxTeacher

_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")

KINDS = """
  openai:MODEL@URL             a model behind an OpenAI-compatible endpoint
  FOLDER or NAME               a Hugging Face model: a folder, or a name in the local cache
  FILE.onnx                    a text classifier with tokenizer.json beside it
  FILE.gguf                    a language model for llama.cpp
  python:MODULE:FUNCTION       a Python function from text to answer; also python:FILE.py:FUNCTION"""


def open_teacher(
    reference: str | Callable[[str], Any], options: TeacherOptions | None = None, *, key: str | None = None
) -> Teacher:
    """The teacher that `reference` names (see `KINDS`) or that a callable is; `key` is an endpoint's bearer token.

    Raises SettingsError for a reference that names nothing usable, MissingExtra for a kind whose packages are missing.

    >>> open_teacher("python:string:capwords").name
    'python:string:capwords'
    """
    options = options or TeacherOptions()
    if callable(reference):
        return open_callable(reference, options)
    if reference.startswith(PREFIX):
        return open_python(reference, options)
    if reference.startswith(("openai:", "http://", "https://")):
        return EndpointTeacher(reference, options, key)
    if reference.endswith(".onnx"):
        return OnnxTeacher(Path(reference), options)
    if reference.endswith(".gguf"):
        return GgufTeacher(Path(reference), options)
    if not (reference and Path(reference).is_dir()) and not _NAME.fullmatch(reference):
        raise SettingsError(f"{reference!r} is no folder and names no big model; what does:{KINDS}")
    kind, loaded = load_hub_model(reference, options)
    if kind == HEAD:
        return HeadTeacher(loaded, options)
    return CausalTeacher(loaded, options) if kind == CAUSAL else ZeroShotTeacher(loaded, options)

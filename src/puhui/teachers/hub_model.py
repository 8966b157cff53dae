"""A Hugging Face model with its tokenizer, from a folder or from the local cache by name (extra `workshop`).

Nothing is downloaded unless the options say so, and code from a model's folder is never run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError

from puhui.core.errors import MissingExtra, SettingsError
from puhui.models.encoder import load_body
from puhui.teachers.teacher import TeacherOptions, file_identity, identity

HEAD, CAUSAL, ENCODER = "head", "causal", "encoder"


class Loaded(msgspec.Struct, frozen=True):
    """A tokenizer and a model in evaluation mode, on a GPU where there is one, and what names them."""

    name: str
    digest: str
    tokenizer: Any
    model: Any
    place: str
    local: bool

    @property
    def folder(self) -> Path | None:
        """Where its files lie; None without a `tokenizer.json` among them."""
        from transformers.utils import cached_file

        found = cached_file(
            self.place,
            "tokenizer.json",
            local_files_only=True,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found).parent


def load_hub_model(reference: str, options: TeacherOptions) -> tuple[str, Loaded]:
    """What kind it is (`HEAD`, `CAUSAL` or `ENCODER`) and the model. SettingsError where there is none to be asked."""
    try:
        import transformers
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise MissingExtra("A Hugging Face model as the big model", "workshop") from error
    disable_progress_bar()  # a bar for a second's loading only disturbs the caller's own output
    place = str(Path(reference).absolute()) if Path(reference).is_dir() else reference
    try:
        config = transformers.AutoConfig.from_pretrained(place, local_files_only=not options.download)
    except (OSError, ValueError) as error:
        raise SettingsError(_not_there(reference, options, error)) from error
    name = (config.architectures or ["an encoder"])[0]
    if name.endswith("ForSequenceClassification"):
        return HEAD, _load(place, options, transformers.AutoModelForSequenceClassification, config)
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return CAUSAL, _load(place, options, transformers.AutoModelForCausalLM, config, dtype="auto")
    if "For" in name and not name.endswith(("ForMaskedLM", "ForPreTraining")):
        raise SettingsError(
            f"{reference} is a {name}; what can be asked is an encoder with or without a classification head, or a "
            "causal model: serve it behind an OpenAI-compatible endpoint, or wrap it in python:FILE:FUNCTION"
        )
    return ENCODER, _load(place, options, transformers.AutoModel, config)


def _load(place: str, options: TeacherOptions, family: Any, config: Any, dtype: str = "float32") -> Loaded:
    import torch
    from transformers import AutoModel, AutoTokenizer

    local = not options.download
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=local)
        load = load_body if family is AutoModel else family.from_pretrained
        model = load(place, local_files_only=local, dtype=dtype).eval()
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise SettingsError(_not_there(place, options, error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    folder = Path(place)
    commit = {"commit": getattr(config, "_commit_hash", None)}
    known_by = {"files": file_identity(folder)} if folder.is_dir() else commit
    name = folder.name if folder.is_dir() else place
    digest = identity("huggingface", name, options, known_by)
    return Loaded(name, digest, tokenizer, model.to("cuda" if torch.cuda.is_available() else "cpu"), place, local)


def _not_there(reference: str, options: TeacherOptions, error: Exception) -> str:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    what = f"{reference} holds no Hugging Face model that can be read ({why:.200})"
    if Path(reference).is_dir() or options.download:
        return f"{what}: a folder needs config.json, a tokenizer and weights as safetensors"
    return (
        f"{reference!r} is no folder, and no model of that name is in the local cache: name a folder, allow "
        "its download, or write openai:MODEL@URL for an endpoint"
    )

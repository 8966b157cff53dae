"""`puhui compress`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import platformdirs
import typer
from rich.console import Console

from puhui.cli.compress_view import View
from puhui.cli.options import AsJson, DataFolder, PriceTokens, StoreUrl, data_folder, prices_of, store_url
from puhui.compress.profiles import load_profile
from puhui.compress.search import Goal
from puhui.compress.workshop import Order, base_for, craft, open_rows
from puhui.core.errors import SettingsError
from puhui.core.settings import Promise
from puhui.teachers.asking import Budget
from puhui.teachers.inputs import read_rows
from puhui.teachers.teacher import TeacherOptions
from puhui.teachers.teachers import open_teacher
from puhui.trust.keys import load_or_create_key

BUDGETS = ("money", "most_requests", "most_seconds")


def compress(
    context: typer.Context,
    big: Annotated[
        str,
        typer.Option(
            help="The big model: openai:MODEL@URL, a Hugging Face folder or name, a .onnx or .gguf file, or "
            "python:MODULE_OR_FILE:FUNCTION."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the expert; it must not exist yet.")],
    data: Annotated[
        Path | None,
        typer.Option(help='Texts to learn from: JSON Lines with "text" (or "messages", or an "answer"), .csv, .txt.'),
    ] = None,
    task: Annotated[str | None, typer.Option(help="In place of --data: a task of the node's store.")] = None,
    target: Annotated[
        str, typer.Option(help="The device: this, browser, phone, edge, or a TOML file of limits.")
    ] = "this",
    keep: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of answers that must be the big model's own.")
    ] = 0.98,
    risk: Annotated[float, typer.Option(help="ε of the guarantee.")] = 0.02,
    delta: Annotated[float, typer.Option(help="δ of the guarantee.")] = 0.05,
    prompt: Annotated[
        str | None,
        typer.Option(help='What the big model is told to do; with "{text}" in it, the whole message.'),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="The answers that are allowed, with commas between.")] = None,
    key_env: Annotated[str | None, typer.Option(help="Name of the environment variable with the API key.")] = None,
    money: Annotated[float | None, typer.Option(help="Most that asking may cost, in USD.")] = None,
    price_tokens: PriceTokens = None,
    most_requests: Annotated[
        int | None, typer.Option(min=0, help="Most requests to the big model; 0: use what is known.")
    ] = None,
    most_seconds: Annotated[float | None, typer.Option(min=0.0, help="Most seconds of asking it.")] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Questions under way at once.", show_default="16 for an endpoint, else 1")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Whether a model that is named may be fetched from Hugging Face.")
    ] = False,
    augment: Annotated[
        int, typer.Option(min=0, help="Texts to add where there are few: the big model's own paraphrases, if it can.")
    ] = 0,
    unlabelled: Annotated[
        Path | None, typer.Option(help="More texts, in the formats of --data: not asked, they teach encoders.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Most candidates to build.")] = 24,
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Most minutes of search.", show_default="no limit")
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Go on searching when the first candidate keeps enough.")
    ] = False,
    accept_nearest: Annotated[
        bool, typer.Option("--accept-nearest", help="Make the best that fits even if it keeps less than --keep.")
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Hugging Face folder of the encoder that encoder experts start from.",
            show_default="the big model itself where it is one, else all-MiniLM-L6-v2 if installed",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for answers and candidates, used again by the next run.", show_default="user cache"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before spending money.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the split and the search.")] = 0,
    data_dir: DataFolder = None,
    store: StoreUrl = None,
    json: AsJson = False,
) -> None:
    """Make a small expert from a big model, for a device: the smallest, fastest that still gives its answers."""
    folder = data_folder(data_dir)
    try:
        with View(Console(stderr=True), ask=not yes and not json and money is None) as view:
            more = (
                None if unlabelled is None else read_rows(unlabelled, progress=partial(view.reading, unlabelled.name))
            )
            rows = open_rows(data, task, store_url(store, folder), view.reading)
            names = tuple(name.strip() for name in labels.split(",")) if labels else ()
            options = TeacherOptions(
                labels=names,
                prompt=prompt or rows.prompt,
                prices=prices_of(price_tokens),
                parallel=parallel,
                download=download,
            )
            teacher = open_teacher(big, options, key=_key(key_env))
            order = Order(
                out=out,
                work=(work or Path(platformdirs.user_cache_dir("puhui", appauthor=False)) / "work").absolute(),
                goal=Goal(
                    profile=load_profile(target),
                    keep=keep,
                    promise=Promise(risk, delta),
                    trials=trials,
                    seconds=None if minutes is None else minutes * 60.0,
                    thorough=thorough,
                ),
                budget=Budget(money=money, requests=most_requests, seconds=most_seconds),
                base=base or base_for(teacher),
                name=task or (data.stem if data is not None else "expert"),
                source=str(data.name) if data is not None else f"task {task}",
                augment=augment,
                unlabelled=() if more is None else more.texts,
                accept_nearest=accept_nearest,
                command=shlex.join(again(context, out)),
                command_of_known=shlex.join(again(context, out, without=BUDGETS)),
                seed=seed,
            )
            for lost in () if more is None else more.lost:
                view.note(f"{unlabelled}: {lost}")
            made = craft(teacher, rows, order, load_or_create_key(folder / "keys" / "node.key"), view)
    except KeyboardInterrupt:
        typer.echo("puhui: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    if json:
        result = {"id": made.id, "folder": str(made.folder), "card": made.card, "why": made.found.why}
        result |= {"keep": made.keep, "keeps": made.keeps}
        typer.echo(msgspec.json.encode(result).decode())
        return
    view.conclude(made)


def again(context: typer.Context, out: Path, *, without: Collection[str] = ()) -> list[str]:
    """The words that make the same expert once more: every option that was typed, as it was understood, and a folder
    beside the first, as that must not exist yet.

    `without` are options to leave out, the `BUDGETS`: then the words ask nothing and use what is known. A budget is
    for one run, so that the same one once more would ask for more.
    """
    words = ["puhui", "compress"]
    for option in context.command.params:
        name = str(option.name)
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name in without:
            continue
        value = f"{out}-again" if name == "out" else context.params[name]
        words += [max(option.opts, key=len)] if value is True else [max(option.opts, key=len), str(value)]
    return [*words, "--most-requests", "0"] if without else words


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    if not os.environ.get(name):
        raise SettingsError(f"--key-env names {name}, but that environment variable is not set")
    return os.environ[name]

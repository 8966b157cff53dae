"""What a device can hold, what an expert takes, and whether the one fits the other.

An expert is measured on this machine, on one core, and its time is scaled to the device: `speed` is how many times
slower one core of the device runs such an expert. Of the speeds built in, one was measured here: the same int8 encoder
took 15 ms in a browser's WebAssembly and 4.1 ms in ONNX Runtime on the same machine, so 4 for `browser`. Those of
`phone` and `edge` are cautious round numbers for a mid-range phone and a single-board computer without instructions for
8-bit products. Measure your own device and give its number in a file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec

from puhui.core.errors import LearningError, SettingsError
from puhui.energy.power import estimate_joules
from puhui.models.family import FAMILIES, ExpertModel

MB = 1_000_000
ROUNDS, MOST_TEXTS, WARM_UP = 3, 200, 5
LIMITS = ("bytes", "wire_bytes", "memory_bytes", "latency_ms", "joules")


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What one expert takes. `bytes` are its files on disk, `wire_bytes` those compressed as a web server sends them.

    `memory_bytes` is what a process gains by loading it and answering; None where it was not measured. `latency_ms`
    is the median of one answer, `cpu_s` the mean CPU time, `joules` the estimate for that time.
    """

    bytes: int
    wire_bytes: int
    memory_bytes: int | None
    latency_ms: float
    cpu_s: float
    joules: float

    def scaled(self, profile: Profile) -> Footprint:
        """The same expert on the profile's device: its time is `speed` times as long.

        Joules stay: a slower core draws less, and nothing is known of the product.
        """
        return msgspec.structs.replace(
            self, latency_ms=self.latency_ms * profile.speed, cpu_s=self.cpu_s * profile.speed
        )


class Miss(msgspec.Struct, frozen=True):
    """A limit that is not kept: `what` is the profile's key."""

    what: str
    value: float
    allowed: float

    @property
    def ratio(self) -> float:
        """How many times the limit it takes; infinite for a limit of 0."""
        return self.value / self.allowed if self.allowed else float("inf")

    def __str__(self) -> str:
        return f"{self.what} is {self.value:.4g}, allowed are {self.allowed:.4g}"


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device and its limits for one expert; None is no limit, no `families` are all of them.

    `speed` is how many times slower than one core of this machine it is. See `Footprint` for the units.
    """

    name: str = ""
    speed: float = 1.0
    bytes: int | None = None
    wire_bytes: int | None = None
    memory_bytes: int | None = None
    latency_ms: float | None = None
    joules: float | None = None
    families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.speed < float("inf"):
            raise SettingsError(f"speed is {self.speed}, but must be above 0: how many times slower than this machine")
        for what in LIMITS:
            limit = getattr(self, what)
            if limit is not None and not limit >= 0:
                raise SettingsError(f"{what} is {limit}, but must be 0 or more")
        unknown = [family for family in self.families if family not in FAMILIES]
        if unknown:
            raise SettingsError(f"families names {', '.join(unknown)}; known are {', '.join(FAMILIES)}")

    def allows(self, family: str) -> bool:
        """Whether experts of that family may run there."""
        return not self.families or family in self.families

    def misses(self, footprint: Footprint) -> list[Miss]:
        """The limits that an expert does not keep, the worst first; `footprint` is scaled to this device already."""
        pairs = [(what, getattr(footprint, what), getattr(self, what)) for what in LIMITS]
        missed = [
            Miss(what, value, allowed)
            for what, value, allowed in pairs
            if allowed is not None and value is not None and value > allowed
        ]
        return sorted(missed, key=lambda miss: -miss.ratio)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(name="this"),
        Profile(
            name="browser",
            families=("static", "encoder"),
            speed=4.0,
            wire_bytes=20 * MB,
            memory_bytes=300 * MB,
            latency_ms=50.0,
        ),
        Profile(name="phone", speed=4.0, bytes=50 * MB, memory_bytes=300 * MB, latency_ms=50.0),
        Profile(name="edge", speed=8.0, bytes=200 * MB, memory_bytes=500 * MB, latency_ms=200.0),
    )
}
"""The profiles that need no file. Each is a choice, not a law: a file may say otherwise."""


def load_profile(reference: str) -> Profile:
    """A built-in profile by its name, or the one in a TOML file. SettingsError names the key at fault."""
    if reference in PROFILES:
        return PROFILES[reference]
    path = Path(reference)
    keys = ", ".join(Profile.__struct_fields__)
    if not path.is_file():
        raise SettingsError(
            f"{reference!r} is no target: name one of {', '.join(PROFILES)}, or a TOML file with any of the keys {keys}"
        )
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=Profile)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{path}: {error}; allowed are the keys {keys}") from error
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return found if found.name else msgspec.structs.replace(found, name=path.stem)


def measure_here(model: ExpertModel, texts: Sequence[str], *, memory: bool = True) -> Footprint:
    """What `model` takes on this machine, on up to 200 of the texts, one at a time.

    Times are the best of three rounds, as whatever else runs only adds. `memory` starts a process of its own, which
    takes a second or so. Raises LearningError without a text.
    """
    picked = list(texts[:: max(1, len(texts) // MOST_TEXTS)])[:MOST_TEXTS]
    if not picked:
        raise LearningError("an expert is measured on texts, and there are none")
    for text in picked[:WARM_UP]:
        model.predict_one(text)
    rounds = [_round(model, picked) for _ in range(ROUNDS)]
    cpu_s = min(cpu for _, cpu in rounds)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model.save(place / "model")
        files = [each for each in (place / "model").rglob("*") if each.is_file()]
        return Footprint(
            bytes=sum(each.stat().st_size for each in files),
            wire_bytes=sum(map(_compressed, files)),
            memory_bytes=_memory(model, place, picked) if memory else None,
            latency_ms=min(latency for latency, _ in rounds),
            cpu_s=cpu_s,
            joules=estimate_joules(cpu_s).joules,
        )


def _round(model: ExpertModel, texts: Sequence[str]) -> tuple[float, float]:
    """Median milliseconds and mean CPU seconds of one answer."""
    times = []
    cpu = time.process_time()
    for text in texts:
        started = time.perf_counter()
        model.predict_one(text)
        times.append(time.perf_counter() - started)
    return 1000.0 * median(times), (time.process_time() - cpu) / len(texts)


def _compressed(path: Path) -> int:
    """Bytes of a file by gzip at its usual level, without its header."""
    packer, size = zlib.compressobj(6), 0
    with path.open("rb") as file:
        while piece := file.read(MB):
            size += len(packer.compress(piece))
    return size + len(packer.flush())


# The interpreter and NumPy are on the device in any case; a family's own runtime is not.
_LOADS_ONE = """
import sys, msgspec, numpy, psutil
from pathlib import Path
from puhui.models.family import family_class
before = psutil.Process().memory_info().rss
model = family_class(sys.argv[1]).load(Path(sys.argv[2]))
for text in msgspec.json.decode(sys.stdin.buffer.read()):
    model.predict_one(text)
print(psutil.Process().memory_info().rss - before)
"""


def _memory(model: ExpertModel, place: Path, texts: Sequence[str]) -> int | None:
    """Bytes of memory that a fresh process gains; None for a model of no family."""
    where = f"{type(model).__module__}:{type(model).__qualname__}"
    family = next((name for name, known in FAMILIES.items() if known == where), None)
    if family is None:
        return None
    ran = subprocess.run(
        [sys.executable, "-c", _LOADS_ONE, family, str(place / "model")],
        input=msgspec.json.encode([text.encode("utf-8", "replace").decode() for text in texts]),
        capture_output=True,
        check=False,
    )
    if ran.returncode:
        raise LearningError(f"the expert cannot be loaded again: {ran.stderr.decode(errors='replace')[-400:]}")
    return max(0, int(ran.stdout))

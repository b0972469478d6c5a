"""Energy per megapixel from the power monitors of a Jetson board: TI INA3221 chips, by Linux's hwmon files.

A thread reads millivolts times milliamperes of every rail (Documentation/hwmon/ina3221 of the kernel) some 20 times a
second; a frame's energy is the integral of the power between its start and end. What the board takes while it does
nothing is measured first, and subtracted for a second figure. Other machines have no such rails and no figures.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HWMON = Path("/sys/class/hwmon")
CHIP = "ina3221"
CHANNELS = (1, 2, 3)
TOTAL_RAIL = "VDD_IN"
"""What the whole module takes, where the board measures it (Orin Nano and NX)."""
NOT_CONNECTED = "NC"
PERIOD_S = 0.05
IDLE_S = 2.0


@dataclass(frozen=True)
class Rail:
    name: str
    millivolts: Path
    milliamperes: Path

    def watts(self) -> float:
        """Raises OSError where the channel is switched off."""
        return int(self.millivolts.read_text()) * int(self.milliamperes.read_text()) / 1e6


def rails() -> list[Rail]:
    """The rails that can be read now."""
    found = []
    for folder in sorted(HWMON.glob("hwmon*")):
        with suppress(OSError):
            if (folder / "name").read_text().strip() != CHIP:
                continue
            for channel in CHANNELS:
                with suppress(OSError, ValueError):
                    name = (folder / f"in{channel}_label").read_text().strip()
                    rail = Rail(name, folder / f"in{channel}_input", folder / f"curr{channel}_input")
                    if name != NOT_CONNECTED:
                        rail.watts()
                        found.append(rail)
    return found


def total_rails(found: Sequence[Rail]) -> list[Rail]:
    """Those whose sum is the total: the one that measures it, else all."""
    return [rail for rail in found if rail.name == TOTAL_RAIL] or list(found)


class PowerMeter:
    """Reads `rails` in a thread from `start` to `stop`; times are those of `perf_counter_ns`."""

    def __init__(self, rails: Sequence[Rail]) -> None:
        self.rails, self._total = list(rails), total_rails(rails)
        self.idle_watts = 0.0
        self._moments: list[int] = []
        self._watts: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="power meter", daemon=True)

    def start(self) -> None:
        """Begin, and take what is drawn in the first IDLE_S seconds, in which this waits, for idle."""
        self._thread.start()
        time.sleep(IDLE_S)
        self.idle_watts = float(np.mean(self._watts)) if self._watts else 0.0

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _read(self) -> None:
        while not self._stopped.wait(PERIOD_S):
            with suppress(OSError, ValueError):  # a chip may be busy for a moment
                before = time.perf_counter_ns()
                watts = sum(rail.watts() for rail in self._total)
                self._moments.append((before + time.perf_counter_ns()) // 2)
                self._watts.append(watts)

    @property
    def has_readings(self) -> bool:
        return bool(self._watts)

    def joules(self, start: int, end: int) -> float:
        """Between two moments, by the trapezoidal rule; the power stays as it was before the first and after the last
        reading."""
        count = min(len(self._moments), len(self._watts))
        moments, watts = np.array(self._moments[:count]), np.array(self._watts[:count])
        inside = (moments > start) & (moments < end)
        at = np.concatenate([[start], moments[inside], [end]])
        power = np.interp(at, moments, watts)
        return float(((power[1:] + power[:-1]) / 2 * np.diff(at)).sum()) / 1e9

    def report(self, passes: Mapping[str, Sequence[tuple[int, float]]], pixels: int, origin: int) -> dict[str, Any]:
        """JSON-ready. `passes` are (start, seconds) of the frames of each direction; samples count from `origin`."""
        figures = {}
        for direction, frames in passes.items():
            joules = [self.joules(start, start + round(1e9 * seconds)) for start, seconds in frames]
            seconds = sum(took for _, took in frames)
            megapixels = len(frames) * pixels / 1e6
            figures[direction] = {
                "joules": joules,
                "watts": sum(joules) / seconds,
                "joules_per_megapixel": sum(joules) / megapixels,
                "joules_per_megapixel_above_idle": (sum(joules) - self.idle_watts * seconds) / megapixels,
            }
        return {
            "rails": [rail.name for rail in self.rails],
            "total_of": [rail.name for rail in self._total],
            "idle_watts": self.idle_watts,
            "power_mode": power_mode(),
            "per_direction": figures,
            "samples": [
                [(moment - origin) / 1e9, watts] for moment, watts in zip(self._moments, self._watts, strict=False)
            ],
        }


def power_mode() -> str | None:
    """What `nvpmodel -q` says, which decides clocks and cores of a Jetson board; None elsewhere."""
    command = shutil.which("nvpmodel")
    if command is None:
        return None
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run([command, "-q"], capture_output=True, text=True, timeout=10, check=True)
        return " ".join(answer.stdout.split()) or None
    return None

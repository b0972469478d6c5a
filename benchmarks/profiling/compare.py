"""Did it become slower? Two profiles, quantity by quantity: a rank test, corrected for their number, and a threshold.

A quantity (a frame's wall time, a stage, a layer) is a regression where all of these hold:
- the Mann-Whitney U test, two-sided, with tie-corrected normal approximation and continuity correction (exact for up to
  EXACT_SAMPLES samples a side without ties), says that B's samples are not from where A's are (Mann and Whitney, "On
  a test of whether one of two random variables is stochastically larger than the other", 1947);
- that p-value is below ALPHA after Holm's correction for all quantities compared ("A simple sequentially rejective
  multiple test procedure", 1979);
- B's median is above A's by more than `threshold`, and for a stage by more than MINIMUM_SHARE of the frame's time:
  a tenth of a millisecond more in a stage of a tenth of a millisecond is real, and nobody's problem.
The interval of the ratio of medians is a 95 % percentile bootstrap (Efron, 1979) and is for the reader only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ... import files
from ...runtime.errors import InputError
from .document import FORMAT

COMPARISON_FORMAT = "linnet-profile-comparison/1"
ALPHA = 0.01
THRESHOLD = 0.05
MINIMUM_SHARE = 0.01
EXACT_SAMPLES = 20
RESAMPLES = 2000
SEED = 7
FRAME = "frame"
HOST_KEYS = ("cpu", "cpu_flags", "usable_cores", "memory_mib", "system", "python", "versions")
SETTING_KEYS = ("backend", "threads", "batch", "quality", "tile", "bundle_identity")
FRAME_KEYS = ("source", "width", "height")


@dataclass(frozen=True)
class Change:
    """One quantity in both profiles. `p` is Holm-corrected; `ratio` is B's median over A's, with its 95 % interval.

    The three are None where A's median is nothing.
    """

    direction: str
    quantity: str
    a_ms: float
    b_ms: float
    ratio: float | None
    low: float | None
    high: float | None
    p: float
    verdict: str


def read(path: str) -> dict[str, Any]:
    """The document of a profile. InputError where the file is none or has no samples."""
    with files.reading(path) as source:
        try:
            document = json.loads(source.read())
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r}")
            if not all(document["samples"][direction] for direction in ("encode", "decode")):
                raise ValueError("no samples")
            if not all(isinstance(document[part], dict) for part in ("host", "settings", "frame")):
                raise ValueError("no host, settings or frame")
            for sample in (s for samples in document["samples"].values() for s in samples):
                _ = float(sample["wall_s"]), {k: float(v) for k, v in sample["stages_s"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{files.shown(path)}: not a report of `linnet profile --json` ({error}); measure it again"
            ) from error
    return document


def compare(a: Mapping[str, Any], b: Mapping[str, Any], threshold: float = THRESHOLD) -> dict[str, Any]:
    """JSON-ready: `changes`, `regressions`, what `differs` beside the times, and what to keep in mind (`notes`)."""
    pairs = [
        (direction, quantity, np.array(first), np.array(second))
        for direction in a["samples"]
        for quantity, first, second in _quantities(a["samples"][direction], b["samples"][direction])
    ]
    corrected = holm([mann_whitney(first, second) for _, _, first, second in pairs])
    frame_ms = {d: 1e3 * float(np.median([s["wall_s"] for s in samples])) for d, samples in a["samples"].items()}
    random = np.random.default_rng(SEED)
    changes = []
    for (direction, quantity, first, second), p in zip(pairs, corrected, strict=True):
        a_ms, b_ms = 1e3 * float(np.median(first)), 1e3 * float(np.median(second))
        ratio, low, high = None, None, None
        if a_ms:
            ratio = b_ms / a_ms
            low, high = ratio_interval(first, second, random)
        least_ms = MINIMUM_SHARE * frame_ms[direction]
        verdict = "same"
        if p < ALPHA and abs(b_ms - a_ms) > max(threshold * a_ms, 0.0 if quantity == FRAME else least_ms):
            verdict = "slower" if b_ms > a_ms else "faster"
        changes.append(Change(direction, quantity, a_ms, b_ms, ratio, low, high, p, verdict))
    return {
        "format": COMPARISON_FORMAT,
        "test": {"name": "Mann-Whitney U, Holm", "alpha": ALPHA, "threshold": threshold, "share": MINIMUM_SHARE},
        "samples": {d: [len(a["samples"][d]), len(b["samples"][d])] for d in a["samples"]},
        "differs": _differences(a, b),
        "notes": _notes(a, b, len(pairs)),
        "changes": [asdict(change) for change in changes],
        "regressions": sum(change.verdict == "slower" for change in changes),
    }


def _quantities(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[float], list[float]]]:
    """The frame's wall time and every stage; a stage that one side lacks took no time there."""
    stages = dict.fromkeys(stage for sample in [*first, *second] for stage in sample["stages_s"])
    walls = [(FRAME, [s["wall_s"] for s in first], [s["wall_s"] for s in second])]
    return walls + [
        (stage, [s["stages_s"].get(stage, 0.0) for s in first], [s["stages_s"].get(stage, 0.0) for s in second])
        for stage in stages
    ]


def mann_whitney(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p-value that both samples come from one distribution."""
    n, m = len(first), len(second)
    joined = np.concatenate([first, second])
    values, inverse, counts = np.unique(joined, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    if len(values) == len(joined) and max(n, m) <= EXACT_SAMPLES:
        ways = _rank_sums(n, m)
        return min(1.0, 2 * float(ways[: round(min(u, n * m - u)) + 1].sum() / ways.sum()))
    ties = float((counts.astype(float) ** 3 - counts).sum()) / ((n + m) * (n + m - 1))
    variance = n * m / 12 * (n + m + 1 - ties)
    if variance <= 0:
        return 1.0
    z = max(0.0, abs(u - n * m / 2) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def _rank_sums(n: int, m: int) -> np.ndarray:
    """In how many of the orders of n and m samples U is 0, 1, ... n m: coefficients of the Gaussian binomial."""
    ways = np.zeros(n * m + 1)
    ways[0] = 1
    for i in range(1, n + 1):
        grown = ways.copy()  # times (1 - x^(m + i))
        grown[m + i :] -= ways[: max(0, len(ways) - m - i)]
        for k in range(i, len(grown)):  # over (1 - x^i)
            grown[k] += grown[k - i]
        ways = grown
    return ways


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the same order."""
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def ratio_interval(first: np.ndarray, second: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """95 % interval of median(second) / median(first), which is not 0."""
    tops, bottoms = (
        np.median(values[random.integers(len(values), size=(RESAMPLES, len(values)))], axis=1)
        for values in (second, first)
    )
    known = bottoms > 0
    low, high = np.quantile(tops[known] / bottoms[known], (0.025, 0.975))
    return float(low), float(high)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What else changed between the two runs, in words."""
    groups = {"host": HOST_KEYS, "settings": SETTING_KEYS, "frame": FRAME_KEYS}
    return [
        f"{key.replace('_', ' ')}: {_shown(first)} -> {_shown(second)}"
        for group, keys in groups.items()
        for key in keys
        if (first := a[group].get(key)) != (second := b[group].get(key))
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _notes(a: Mapping[str, Any], b: Mapping[str, Any], quantities: int) -> list[str]:
    notes = []
    for name, document in (("A", a), ("B", b)):
        if document.get("partial"):
            notes.append(f"{name} is partial: {document['partial']}")
    n, m = (min(len(samples) for samples in document["samples"].values()) for document in (a, b))
    if 2 / math.comb(n + m, n) * quantities >= ALPHA:
        notes.append(
            f"{n} and {m} samples are too few for {quantities} quantities: no difference could be significant; "
            "measure more --frames"
        )
    return notes


def lines(comparison: Mapping[str, Any]) -> list[str]:
    """The comparison for people."""
    test = comparison["test"]
    text = [f"differs: {difference}" for difference in comparison["differs"]]
    text += [f"note: {note}" for note in comparison["notes"]]
    for direction, (n, m) in comparison["samples"].items():
        text += [""] if text else []
        text.append(
            f"{direction + f' ({n} and {m} frames)':<30}{'A p50 ms':>11}{'B p50 ms':>11}{'B / A':>8}"
            f"{'95 % interval':>17}{'p':>10}"
        )
        for change in comparison["changes"]:
            if change["direction"] == direction:
                ratio = interval = "-"
                if change["ratio"] is not None:
                    ratio, interval = f"{change['ratio']:.3f}", f"{change['low']:.3f}-{change['high']:.3f}"
                mark = "" if change["verdict"] == "same" else f"  {change['verdict'].upper()}"
                text.append(
                    f"  {change['quantity']:<28}{change['a_ms']:>11.2f}{change['b_ms']:>11.2f}{ratio:>8}"
                    f"{interval:>17}{change['p']:>10.2g}{mark}"
                )
    found = comparison["regressions"]
    rule = (
        f"(p < {test['alpha']:g} by {test['name']}; medians more than {100 * test['threshold']:g} % apart, and stages "
        f"by {100 * test['share']:g} % of the frame)"
    )
    return [*text, "", f"{found or 'no'} regression{'' if found == 1 else 's'} {rule}"]

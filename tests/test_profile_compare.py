"""`linnet profile --compare`: the test it states, what it flags and what it leaves alone."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linnet.benchmarks.profiling import compare
from linnet.cli import main

STAGES = {"network analysis": 0.060, "entropy coding": 0.030, "container": 0.0001}


def document(frames: int = 12, seed: int = 0, **factors: float) -> dict[str, Any]:
    """A profile whose stages take STAGES seconds times `factors` (by first word), with 2 % of noise."""
    random = np.random.default_rng(seed)

    def sample() -> dict[str, Any]:
        stages = {
            name: seconds * factors.get(name.split()[0], 1.0) * random.normal(1, 0.02)
            for name, seconds in STAGES.items()
        }
        return {"wall_s": sum(stages.values()), "stages_s": stages}

    return {
        "format": "linnet-profile/1",
        "partial": None,
        "host": {"cpu": "a processor", "versions": {"numpy": "2.0"}},
        "settings": {"backend": "onnxruntime", "threads": 1},
        "frame": {"source": "photographs", "width": 640, "height": 480},
        "samples": {direction: [sample() for _ in range(frames)] for direction in ("encode", "decode")},
    }


def verdicts(found: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(c["direction"], c["quantity"]): c["verdict"] for c in found["changes"]}


# The test


def all_orders(first: np.ndarray, second: np.ndarray) -> float:
    """The exact p-value, from every way to deal the joined samples out."""
    joined, n = np.concatenate([first, second]), len(first)

    def distance(chosen: tuple[int, ...]) -> float:
        rest = [joined[i] for i in range(len(joined)) if i not in chosen]
        return abs(sum(joined[i] > value for i in chosen for value in rest) - n * len(second) / 2)

    deals = [distance(chosen) for chosen in itertools.combinations(range(len(joined)), n)]
    return float(np.mean([d >= deals[0] for d in deals]))


@pytest.mark.parametrize(("n", "m"), [(3, 3), (4, 6), (7, 5)])
def test_small_samples_are_exact(n: int, m: int) -> None:
    random = np.random.default_rng(n)
    for shift in (0, 0.5, 1, 3):
        first, second = random.normal(size=n), random.normal(shift, size=m)
        assert compare.mann_whitney(first, second) == pytest.approx(all_orders(first, second))


def test_large_samples_and_ties() -> None:
    """The normal approximation comes near the exact test, and takes ties into account."""
    random = np.random.default_rng(1)
    for shift in (0.2, 0.5, 0.8):
        first, second = random.normal(size=20), random.normal(shift, size=20)
        exact = compare.mann_whitney(first, second)
        z = abs(sum((a > b) for a in first for b in second) - 200) - 0.5
        assert exact == pytest.approx(math.erfc(z / math.sqrt(20 * 20 * 41 / 12) / math.sqrt(2)), rel=0.3)
    tied = compare.mann_whitney(np.array([1.0, 2, 2, 3]), np.array([2.0, 3, 3, 4, 5]))
    # ranks of the first: 1, 3, 3, 6 -> U = 3; ties 3, 3 -> variance 20/12 * (10 - (24 + 24) / 72)
    assert tied == pytest.approx(math.erfc(6.5 / math.sqrt(20 / 12 * (10 - 48 / 72)) / math.sqrt(2)))
    assert compare.mann_whitney(np.ones(30), np.ones(30)) == 1
    assert compare.mann_whitney(np.zeros(30), np.ones(30)) < 1e-9


def test_false_alarms_are_as_rare_as_stated() -> None:
    random = np.random.default_rng(2)
    p = [compare.mann_whitney(random.normal(size=25), random.normal(size=25)) for _ in range(2000)]
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(p) < level) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 2000))


def test_holm() -> None:
    assert compare.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert compare.holm([0.9, 0.8]) == [1.0, 1.0]
    assert compare.holm([]) == []


def test_interval_covers_the_ratio() -> None:
    random = np.random.default_rng(3)
    low, high = compare.ratio_interval(random.normal(10, 1, 40), random.normal(12, 1, 40), random)
    assert low < 1.2 < high
    assert high - low < 0.2


# The verdict


def test_the_same_is_the_same() -> None:
    found = compare.compare(document(seed=1), document(seed=2))
    assert found["regressions"] == 0
    assert set(verdicts(found).values()) == {"same"}
    assert found["differs"] == found["notes"] == []


def test_a_slower_stage_and_frame_are_found() -> None:
    found = compare.compare(document(seed=1), document(seed=2, entropy=1.5))
    slower = {key for key, verdict in verdicts(found).items() if verdict == "slower"}
    assert slower == {(d, q) for d in ("encode", "decode") for q in ("frame", "entropy coding")}
    assert found["regressions"] == 4
    back = compare.compare(document(seed=2, entropy=1.5), document(seed=1))
    assert back["regressions"] == 0
    assert verdicts(back)["encode", "frame"] == "faster"


def test_what_does_not_matter_is_no_regression() -> None:
    significant = compare.compare(document(40, seed=1), document(40, seed=2, network=1.04))
    change = next(c for c in significant["changes"] if c["quantity"] == "network analysis")
    assert change["p"] < compare.ALPHA
    assert change["verdict"] == "same", "4 % are below the threshold"
    assert compare.compare(document(40, seed=1), document(40, seed=2, network=1.04), 0.02)["regressions"]
    assert compare.compare(document(seed=1), document(seed=2, container=3))["regressions"] == 0, "0.2 % of the frame"


def test_notes_and_differences() -> None:
    other = document(3, seed=2, entropy=1.5)
    other["partial"] = "interrupted after 3 frames of 20"
    other["host"]["cpu"] = "another processor"
    other["settings"]["threads"] = None
    found = compare.compare(document(3, seed=1), other)
    assert found["regressions"] == 0
    assert any("too few" in note for note in found["notes"])
    assert any("B is partial: interrupted" in note for note in found["notes"])
    assert found["differs"] == ["cpu: a processor -> another processor", "threads: 1 -> None"]


def test_a_stage_that_is_new() -> None:
    """A stage that only one side has took no time on the other."""
    new = document(seed=2)
    for sample in new["samples"]["encode"]:
        sample["stages_s"]["overview"] = 0.02
    found = compare.compare(document(seed=1), new)
    change = next(c for c in found["changes"] if c["quantity"] == "overview")
    assert (change["verdict"], change["a_ms"], change["ratio"]) == ("slower", 0, None)
    json.dumps(found, allow_nan=False)
    assert compare.lines(found)


# The command


@pytest.fixture
def reports(tmp_path: Path) -> list[str]:
    paths = []
    for name, factor in (("a", 1.0), ("b", 1.5)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(document(seed=len(paths), entropy=factor)))
        paths.append(str(path))
    return paths


def test_exit_status(reports: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = reports
    assert main(["profile", "--compare", a, b]) == 1
    shown = capsys.readouterr().out
    assert "entropy coding" in shown
    assert "SLOWER" in shown
    assert "4 regressions" in shown
    assert main(["profile", "--compare", a, a]) == 0
    assert "no regressions" in capsys.readouterr().out
    assert main(["profile", "--compare", a, b, "--threshold", "60"]) == 0
    capsys.readouterr()
    assert main(["profile", "--compare", a, b, "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["regressions"] == 4
    assert main(["profile", "--compare", a, b, "--json", str(tmp_path / "c.json")]) == 1
    assert json.loads((tmp_path / "c.json").read_text())["format"] == compare.COMPARISON_FORMAT


def test_what_is_no_report(reports: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = json.loads(Path(reports[0]).read_text())
    bad: list[Any] = [[], {}, {"format": "linnet-bench-rd/1"}]
    for path in (("samples",), ("samples", "decode"), ("host",), ("samples", "encode", 0, "wall_s")):
        broken = copy.deepcopy(good)
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = None
        bad.append(broken)
    bad.append({**good, "samples": {"encode": [], "decode": []}})
    for content in bad:
        (tmp_path / "bad.json").write_text(json.dumps(content))
        assert main(["profile", "--compare", reports[0], str(tmp_path / "bad.json")]) == 1
        assert "bad.json: not a report of `linnet profile --json`" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("nothing")
    assert main(["profile", "--compare", str(tmp_path / "bad.json"), reports[0]]) == 1
    assert main(["profile", "--compare", str(tmp_path / "absent.json"), reports[0]]) == 1
    assert main(["profile", "--compare", *reports, "--threshold", "-1"]) == 2

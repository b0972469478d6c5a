"""`linnet profile` from the command line to its reports: text, JSON, the page and its plots, the trace; interrupts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from linnet.benchmarks.profiling import ceiling, charts, page, session, trace
from linnet.benchmarks.profiling.document import FORMAT
from linnet.cli import main, parser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLOTS = ("stages", "distribution", "timeline", "roofline")
FRAMES = 3
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, report.json, report.html and trace.json of a small run."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("profile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceiling, "CONVOLUTIONS", ((64, 3),))
        patch.setattr(ceiling, "RUNS", 2)
        outputs = {"--json": "report.json", "--html": "report.html", "--trace": "trace.json"}
        named = [word for option, name in outputs.items() for word in (option, str(folder / name))]
        small = f"--size 500x300 --tile 128 --threads 1 --frames {FRAMES} --warmup 1 --backend onnxruntime --per-layer"
        with (folder / "text").open("w") as text:
            patch.setattr(sys, "stdout", text)
            assert main(["profile", *small.split(), *named]) == 0
    return folder


@pytest.fixture(scope="module")
def document(reports: Path) -> dict[str, Any]:
    return json.loads((reports / "report.json").read_text())


# Text and JSON


def test_document(document: dict[str, Any]) -> None:
    assert document["format"] == FORMAT
    assert document["partial"] is None
    assert document["host"]["cpu"]
    assert (document["frame"]["width"], document["frame"]["height"]) == (500, 300)
    assert document["frame"]["bits_per_pixel"] == pytest.approx(8 * document["frame"]["bytes"] / 150000)
    assert document["settings"]["threads"] == 1
    for direction, samples in document["samples"].items():
        one = document["summary"][direction]
        assert len(samples) == one["frames"] == FRAMES
        assert one["peak_mib"] > 10
        assert one["megapixels_per_s"] == pytest.approx(0.15 * one["frames_per_s"])
        for sample in samples:
            assert sum(sample["stages_s"].values()) <= sample["wall_s"]
            assert all(0 <= start <= end <= 1e6 * sample["wall_s"] for _, _, start, end, _ in sample["spans"])
    starts = [s["start_s"] for pair in zip(*document["samples"].values(), strict=True) for s in pair]
    assert starts == sorted(starts), "encoded and decoded in turns"
    assert document["ceiling"]["gmac_per_s"] > 0


def test_text(reports: Path, document: dict[str, Any]) -> None:
    text = (reports / "text").read_text()
    assert "500x300 (0.1 megapixels)" in text or "500x300 (0.2 megapixels)" in text
    for direction, one in document["summary"].items():
        assert re.search(rf"^{direction} +share +p50 ms", text, re.MULTILINE)
        for stage in one["stages"]:
            assert re.search(rf"^  {re.escape(stage)} +[0-9.]+ %", text, re.MULTILINE), stage
    assert "outside the networks:" in text
    assert re.search(r"^synthesis +out +[0-9.]+", text, re.MULTILINE)
    assert "ceilings: " in text
    assert not re.search(r" $", text, re.MULTILINE), "no trailing blanks"


# The trace


def test_trace(reports: Path, document: dict[str, Any]) -> None:
    events = json.loads((reports / "trace.json").read_text())["traceEvents"]
    assert all({"ph", "pid", "tid", "name"} <= set(event) for event in events)
    spans = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)
    frames = [event for event in spans if event["cat"] == "frame"]
    assert len(frames) == 2 * FRAMES
    for frame in frames:
        inside = [
            event for event in spans
            if event["pid"] == trace.FRAMES and event["cat"] != "frame"
            and frame["ts"] <= event["ts"] <= event["ts"] + event["dur"] <= frame["ts"] + frame["dur"] + 1
        ]  # fmt: skip
        assert {"colour and layout", "entropy coding"} <= {event["name"] for event in inside}
    units = [event for event in spans if event["tid"] == trace.LAYER_THREAD]
    assert {"analysis", "synthesis", "context_3"} <= {event["cat"] for event in units}
    named = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert {"measured frames", "layers, in a pass of their own", "thread 0"} <= named


# The page


class _Links(HTMLParser):
    """Whatever a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object", "embed"):
            self.found.append(tag)
        self.found += [f"{tag} {name}" for name, _ in attributes if name in ("src", "href", "xlink:href", "style")]


def plots(html: str) -> dict[str, ElementTree.Element]:
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", html, re.DOTALL)]
    return {plot.get("id", ""): plot for plot in found}


def marks(plot: ElementTree.Element, name: str, class_: str) -> list[ElementTree.Element]:
    return [e for e in plot.iter(SVG + name) if class_ in e.get("class", "").split()]


def test_page_needs_nothing_else(reports: Path) -> None:
    links = _Links()
    links.feed((reports / "report.html").read_text())
    assert links.found == []
    assert "url(" not in (reports / "report.html").read_text()


def test_plots_show_the_figures(reports: Path, document: dict[str, Any]) -> None:
    html = (reports / "report.html").read_text()
    drawn = plots(html)
    assert tuple(drawn) == PLOTS
    stages = [(name, one) for summary in document["summary"].values() for name, one in summary["stages"].items()]
    bars = marks(drawn["stages"], "rect", "bar")
    assert len(bars) == len(stages)
    slowest = max(range(len(stages)), key=lambda i: stages[i][1]["p50_ms"])
    for bar, (name, one) in zip(bars, stages, strict=True):
        assert name in bar.findtext(SVG + "title", "")
        ratio = one["p50_ms"] / stages[slowest][1]["p50_ms"]
        assert float(bar.get("width", 0)) == pytest.approx(ratio * float(bars[slowest].get("width", 0)), abs=0.51)
    for direction in document["samples"]:
        assert len(marks(drawn["distribution"], "circle", direction)) == FRAMES + 1, "and the legend"
        assert len(marks(drawn["distribution"], "path", direction)) == 1
    spans = marks(drawn["timeline"], "rect", "span")
    assert spans
    assert all(float(s.get("x", -1)) >= 0 and float(s.get("width", 0)) > 0 for s in spans)
    assert all(float(s.get("x", 0)) + float(s.get("width", 0)) <= charts.WIDTH + 1 for s in spans)
    circles = marks(drawn["roofline"], "circle", "layer")
    assert len(circles) == sum(row["gmac"] > 0 for row in document["layers"])
    assert len(marks(drawn["roofline"], "path", "roof")) == 1
    for plot in drawn.values():
        _, _, width, height = map(float, plot.get("viewBox", "").split())
        for mark in plot.iter():
            for name, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                assert -1 <= float(mark.get(name, 0)) <= limit + 1
    styled = set(re.findall(r"\.(stage-[\w-]+)", page.STYLE))
    assert {c for name, _ in stages for c in [charts.stage_class(name)]} <= styled, "every stage has a colour"


def test_lanes_keep_nested_spans_apart() -> None:
    spans = [["b", 0, 1, 5, ""], ["a", 0, 0, 10, ""], ["c", 0, 5, 9, ""], ["d", 0, 6, 7, ""], ["e", 1, 2, 3, ""]]
    assert [[span[0] for span in lane] for lane in charts.lanes(spans)] == [["a"], ["b", "c"], ["d"], ["e"]]


def test_page_of_a_hostile_name(document: dict[str, Any]) -> None:
    """What comes from outside is text, not markup."""
    name = "<script>alert(1)</script>&.png"
    html = page.html({**document, "frame": {**document["frame"], "source": name}, "partial": "interrupted <b>"})
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;.png" in html
    assert "PARTIAL: interrupted &lt;b&gt;" in html


@pytest.mark.parametrize("without", ["layers", "ceiling"])
def test_page_without_layers_or_ceiling(document: dict[str, Any], without: str) -> None:
    html = page.html({**document, without: None, "no_ceiling": "the package onnx is missing"})
    assert ("roofline" in plots(html)) == (without == "ceiling")
    if without == "ceiling":
        assert "the package onnx is missing" in html


def test_ticks() -> None:
    assert charts.nice_ticks(0, 10, 6) == [0, 2, 4, 6, 8, 10]
    assert charts.nice_ticks(498.2, 512.9, 8) == [500, 502, 504, 506, 508, 510, 512]
    assert charts.log_ticks(4, 300) == [5, 10, 20, 50, 100, 200]
    for low, high in ((0, 0.001), (1e-3, 1e4), (3, 3.0001)):
        assert 1 <= len(charts.nice_ticks(low, high, 8)) <= 9


def test_page_in_a_browser(reports: Path, tmp_path: Path) -> None:
    """A browser lays the plots out: every mark has a place and a size inside its plot."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs Chromium or Chrome to open the page in")
    measure = """<script>addEventListener('load', () => {
      const found = {};
      for (const svg of document.querySelectorAll('svg')) {
        const box = svg.getBoundingClientRect();
        const marks = [...svg.querySelectorAll('rect, circle, path')].map(m => m.getBoundingClientRect());
        const inside = marks.filter(m => m.width + m.height > 0 && m.left >= box.left - 2 && m.right <= box.right + 2
          && m.top >= box.top - 2 && m.bottom <= box.bottom + 2);
        found[svg.id] = {width: box.width, height: box.height, marks: marks.length, inside: inside.length,
          fill: getComputedStyle(svg.querySelector('rect, circle')).fill};
      }
      document.title = JSON.stringify({found, wide: document.documentElement.scrollWidth > innerWidth});
    });</script>"""
    copy = tmp_path / "page.html"
    copy.write_text((reports / "report.html").read_text().replace("</body>", measure + "</body>"))
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1000,900",
        f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=2000", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{browser} did not answer within 90 seconds")
    title = re.search(r"<title>(\{.*?\})</title>", shown.stdout)
    assert title, shown.stderr[-2000:]
    laid_out = json.loads(title[1].replace("&quot;", '"').replace("&amp;", "&").replace("&gt;", ">"))
    assert tuple(laid_out["found"]) == PLOTS
    for name, plot in laid_out["found"].items():
        assert plot["width"] > 700, name
        assert plot["height"] > 100, name
        assert 5 < plot["inside"] == plot["marks"], name
        assert plot["fill"] != "none", name
    assert not laid_out["wide"], "the page does not scroll sideways"


# Interrupts and mistakes


def profile(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-c", "import sys; from linnet.cli import main; sys.exit(main())", "profile"]
    small = "--size 320x192 --tile 64 --threads 1 --backend onnxruntime"
    return subprocess.Popen(
        [*command, *small.split(), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )  # fmt: skip


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "terminate"])
def test_an_interrupt_leaves_a_valid_report(tmp_path: Path, end: signal.Signals) -> None:
    if signal.getsignal(end) is signal.SIG_IGN:
        pytest.skip(f"the tests were started with {end.name} ignored, and so is what they start")
    report, html = tmp_path / "report.json", tmp_path / "report.html"
    running = profile(tmp_path, "--frames", "100000", "--warmup", "0", "--json", str(report), "--html", str(html))
    for _ in range(1200):
        files = {path.name: path.stat() for path in tmp_path.glob("linnet-profile-*/*")}
        if "decoded.rgb" in files and files["frame.lnt"].st_mtime_ns > files["decoded.rgb"].st_mtime_ns > 0:
            break  # the first frame is through and the second has begun
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    running.send_signal(end)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    document = json.loads(report.read_text())
    found = re.fullmatch(r"interrupted after (\d+) frames of 100000", document["partial"])
    assert found
    assert document["summary"]["encode"]["frames"] == int(found[1]) > 0
    assert len(document["samples"]["decode"]) == int(found[1])
    assert out.startswith(f"PARTIAL: {document['partial']}")
    assert "PARTIAL" in html.read_text()
    assert not list(tmp_path.glob("linnet-profile-*")), "the raw frames are gone"


def test_an_interrupt_before_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session.Pipeline, "run", interrupted)
    assert main(["profile", "--size", "128x128", "--backend", "onnxruntime", "--json", str(tmp_path / "r.json")]) == 130
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "linnet: interrupted before the first frame: nothing was measured and no report is written\n"
    assert not (tmp_path / "r.json").exists()


def test_documented_commands_are_understood() -> None:
    guide = Path(__file__).parent.parent / "docs" / "profile.md"
    code = r"^ {4}.*?linnet (profile .+?)(?: {2,}.*| \|\|.*| &&.*)?$"
    commands = re.findall(code, guide.read_text(), re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        options = command.split()
        assert parser(options).parse_args(options).command == "profile"


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def status(*options: str) -> int:
        return main(["profile", "--size", "128x128", *options])

    assert status("--json", str(tmp_path / "absent" / "r.json")) == 2
    assert status("--tile", "100") == 2
    assert status("--backend", "reference", "--per-layer") == 3
    assert status("--image", str(tmp_path / "absent.png")) == 1
    assert status("--seconds", "-1") == 2
    assert status("--json", "-", "--html", "-") == 2
    assert main(["profile", "--size", "100000x100000"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 7
    assert all(error.startswith("linnet: ") for error in errors)


def test_image_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture is profiled at its own size, or fills a larger frame; JSON on stdout stands alone."""
    from PIL import Image

    Image.effect_mandelbrot((200, 100), (-2, -1, 1, 1), 50).convert("RGB").save(tmp_path / "picture.png")
    for options, size in (([], (200, 100)), (["--size", "330x210"], (330, 210))):
        words = [
            "--image",
            str(tmp_path / "picture.png"),
            "--seconds",
            "0.01",
            "--warmup",
            "0",
            "--json",
            "-",
            *options,
        ]
        assert main(["profile", "--backend", "onnxruntime", "--threads", "1", *words]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["frame"]["width"], document["frame"]["height"]) == size
        assert document["frame"]["source"] == "picture.png"
        assert document["summary"]["encode"]["frames"] == 1

"""The real TensorRT bindings have every member that linnet touches: `make test-tensorrt-api`.

Downloads the bindings of several versions (a megabyte each, without the library behind them) and imports them over a
stub of that library: classes, constants and signatures load, and constructors give nothing. Needs a network, a C
compiler and Linux on x86-64 or ARM64.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tensorrt_api

PACKAGE = "tensorrt-cu12-bindings"
VERSIONS = ["10.3.0", "10.13.3.9", "10.16.0.72", "11.0.0.114", "11.4.0.106"]
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
TESTS = Path(__file__).parent

LIST_MEMBERS = """
import json, sys, tensorrt_bindings as trt
found = {}
for name in json.loads(sys.argv[1]):
    value = trt
    for part in name.split("."):
        value = getattr(value, part, None)
    settable = isinstance(value, property) and value.fset is not None
    found[name] = None if value is None else [callable(value), settable, getattr(value, "__doc__", "") or ""]
print(json.dumps(found))
"""

USE_THE_BACKEND = """
import sys, types, tensorrt_bindings as trt
from linnet.runtime.backends import engine_builder, tensorrt, tensorrt_layers
from linnet.runtime.backends.engines import BuildOptions, Target
from linnet.runtime.errors import MachineError
gpu = types.SimpleNamespace(trt=trt, version=trt.__version__)
log = tensorrt.Log(gpu)
log.logger.log(trt.ILogger.ERROR, "a line")
log.logger.log(trt.ILogger.Severity.INFO, "not kept")
assert str(log.error("x")) == f"TensorRT {trt.__version__} cannot x: a line"
steps = []
monitor = engine_builder._monitor(trt, lambda *step: steps.append(step))
monitor.phase_start("a", None, 2)
assert monitor.step_complete("a", 0) is True
assert steps == [("a", 0, 2), ("a", 1, 2)]
inspector = types.SimpleNamespace(get_engine_information=lambda form: '{"Layers": []}')
engine, times = types.SimpleNamespace(create_engine_inspector=lambda: inspector), []
tensorrt_layers.profiler(trt, engine, "n", times).report_layer_time("a", 2.0)
assert times[0].seconds == 0.002
flags = [engine_builder._network_flags(gpu, BuildOptions())]
try:
    flags.append(engine_builder._network_flags(gpu, BuildOptions(strongly_typed=False)))
except MachineError as error:
    flags.append(str(error))
try:
    engine_builder.build(gpu, b"", Target("x", ()), BuildOptions(), b"")
except MachineError as error:
    print(flags, error)
"""


@pytest.fixture(scope="module", params=VERSIONS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(version, folder to import from): the unpacked wheel with a stub beside it."""
    if "tensorrt_api" not in request.config.option.markexpr:
        pytest.skip("downloads from the package index: make test-tensorrt-api")
    version, folder = request.param, tmp_path_factory.mktemp("bindings")
    download = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), f"{PACKAGE}=={version}"]
    run(*download, timeout=300)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    stub = folder / "stub.c"
    stub.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in ENTRY_POINTS))
    for library in LIBRARIES:
        path = folder / "tensorrt_bindings" / f"lib{library}.so.{version.split('.')[0]}"
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path, stub], check=True)
    return version, folder


def run(*arguments: str, folder: Path | None = None, timeout: float = 60) -> str:
    """What a fresh interpreter prints that finds modules in `folder`, too."""
    environment = {"PYTHONPATH": str(folder)} if folder else None
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.tensorrt_api
def test_every_member_exists_with_its_signature(bindings: tuple[str, Path]) -> None:
    version, folder = bindings
    number = tuple(int(part) for part in version.split(".")[:2])
    members = tensorrt_api.members(tensorrt_api.TENSORRT)
    names = [str(member) for member in members]
    found = json.loads(run("-c", LIST_MEMBERS, json.dumps(names), folder=folder))
    wrong = []
    for member in members:
        real = found[str(member)]
        if (real is not None) != member.exists_in(number):
            wrong.append(f"{member} is {'there' if real else 'missing'}")
        elif real is not None:
            is_call, settable, documentation = real
            if is_call != (member.parameters is not None):
                wrong.append(f"{member} is {'' if is_call else 'not '}a call")
            if member.settable and not settable:
                wrong.append(f"{member} cannot be set")
            if is_call and not any(fits(member, *signature) for signature in signatures(member.name, documentation)):
                wrong.append(f"{member} has other parameters or another result: {documentation.strip()}")
    assert wrong == []


def signatures(name: str, documentation: str) -> list[tuple[list[str], set[str], str]]:
    """(parameters without self, those with a default, class of the result) of each overload that is documented."""
    found = []
    for parameters, result in re.findall(rf"^(?:\d\. )?{name}\((.*)\) -> (.+)$", documentation, re.MULTILINE):
        # Commas between parameters are those before "name:"; defaults and types may contain others.
        parts = re.split(r", (?=\w+: )", parameters) if parameters else []
        names = [part.partition(":")[0] for part in parts]
        optional = {part.partition(":")[0] for part in parts if " = " in part}
        found.append(([n for n in names if n != "self"], optional, re.split(r"[.:]", result.strip())[-1]))
    return found


def fits(member: tensorrt_api.Member, names: list[str], optional: set[str], result: str) -> bool:
    passed = list(member.parameters or ())
    rest = names[len(passed) :]
    return names[: len(passed)] == passed and optional.issuperset(rest) and member.result in ("", result)


@pytest.mark.tensorrt_api
def test_the_backend_takes_to_the_real_bindings(bindings: tuple[str, Path]) -> None:
    """What derives from the real classes can be made; a constructor that gives nothing is an error."""
    version, folder = bindings
    said = run("-c", USE_THE_BACKEND, folder=folder)
    modern = version.startswith("11")
    assert said.startswith("[1, 'TensorRT 11" if modern else "[2, 0] TensorRT 10"), said
    assert "cannot start its builder: it gives no reason" in said


def test_the_signatures_of_this_test_are_read_right() -> None:
    documentation = "1. f(self: a.B, x: int, y: c.D = <D.E: 0>) -> a.B.C\n\n2. f(self: a.B) -> n::D\nand f(x) -> y"
    assert signatures("f", documentation) == [(["x", "y"], {"y"}, "C"), ([], set(), "D")]

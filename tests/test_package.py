"""The package as a whole: what imports what, what an import costs, and that the documents name what exists."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import linnet
from linnet.runtime import core

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("linnet", "runtime", "calibration", "export", "training", "benchmarks")
FORBIDDEN_IN_RUNTIME = {
    "torch",
    "onnx",
    "cv2",
    "PIL",
    "tqdm",
    "skimage",
    "matplotlib",
    "imagecodecs",
    "fsspec",
    "aiohttp",
}
MAY_USE = {
    "runtime": {"runtime"},
    "calibration": {"calibration", "runtime"},
    "export": {"export", "calibration", "runtime"},
    "training": {"training", "export", "calibration", "runtime"},
    "benchmarks": {"benchmarks", "linnet", "calibration", "runtime"},
}


def modules(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of each import in a file, at any depth; names imported from packages included."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    inside = ["linnet", *([] if folder == "linnet" else [folder]), *rest]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def part_of(module: str) -> str | None:
    """The folder that a module of ours lives in; None for somebody else's."""
    first, _, rest = module.partition(".")
    if first != "linnet":
        return None
    second = rest.partition(".")[0]
    return second if second in FOLDERS else "linnet"


def loaded(code: str) -> set[str]:
    """Top-level and linnet modules that a fresh interpreter holds after running `code`."""
    report = "import sys, json; print(json.dumps(list(sys.modules)))"
    command = [sys.executable, "-I", "-c", f"{code}\n{report}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "docs")
    assert result.returncode == 0, result.stderr
    names = json.loads(result.stdout.splitlines()[-1])
    return {name if name.startswith("linnet") else name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", modules("runtime"), ids=lambda path: str(path.relative_to(ROOT)))
def test_runtime_needs_neither_torch_nor_onnx(path: Path) -> None:
    for line, module in imports(path):
        assert module.partition(".")[0] not in FORBIDDEN_IN_RUNTIME, f"{path}:{line} imports {module}"


@pytest.mark.parametrize("folder", MAY_USE)
def test_dependencies_point_one_way(folder: str) -> None:
    for path in modules(folder):
        for line, module in imports(path):
            part = part_of(module)
            assert part is None or part in MAY_USE[folder], f"{path}:{line} imports {module}"


def test_runtime_loads_nothing_else() -> None:
    names = [path.relative_to(ROOT).with_suffix("").parts for path in modules("runtime")]
    code = "\n".join(f"import linnet.{'.'.join(parts).removesuffix('.__init__')}" for parts in names)
    found = loaded(code)
    assert not found & FORBIDDEN_IN_RUNTIME
    for name in found:
        if name.startswith("linnet."):
            assert part_of(name) == "runtime", name


def test_import_linnet_is_light() -> None:
    found = loaded("import linnet; linnet.__version__")
    assert not found & {"numpy", "onnxruntime", "PIL", "cv2", "tqdm", "argparse"}
    assert {name for name in found if name.startswith("linnet")} == {"linnet"}


def test_help_is_light() -> None:
    code = "from linnet.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    found = loaded(code)
    assert not found & {"numpy", "onnxruntime", "PIL", "cv2", "tqdm", "torch", "linnet.benchmarks"}
    installed = {name.partition(".")[0] for name in found - loaded("pass")} - {"linnet"}
    assert installed <= sys.stdlib_module_names


def test_front_door_keeps_its_promises() -> None:
    for name in linnet.__all__:
        assert getattr(linnet, name) is not None
    assert set(linnet.__all__) == set(dir(linnet))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        linnet.nothing_of_the_kind  # noqa: B018 - fetching it is the test


def test_errors_end_with_their_status() -> None:
    statuses = {linnet.LinnetError: 1, linnet.InputError: 1, linnet.UsageError: 2, linnet.MachineError: 3}
    for error, status in statuses.items():
        assert issubclass(error, linnet.LinnetError)
        assert error.exit_status == status


def test_no_shapeless_module_names() -> None:
    shapeless = {"utils", "util", "helpers", "helper", "common", "misc"}
    for folder in (*FOLDERS, "tests", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.stem not in shapeless, path


def test_shipped_bundle_is_found_in_the_tree_and_once_installed(tmp_path: Path) -> None:
    """An installed package nests the folders that the tree keeps side by side."""
    from linnet.runtime.bundle import locate

    assert locate() == Path(linnet.__file__).parent / "bundles" / locate().name
    assert locate().is_file()
    skipped = shutil.ignore_patterns("__pycache__", "bundles", "native")
    shutil.copytree(ROOT / "linnet", tmp_path / "linnet", ignore=skipped)
    shutil.copytree(ROOT / "runtime", tmp_path / "linnet" / "runtime", ignore=skipped)
    for library in Path(core.__file__).parent.glob("_native*"):
        shutil.copy(library, tmp_path / "linnet" / "runtime")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from linnet.runtime.bundle import locate; print(locate())"
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == tmp_path / "linnet" / "bundles" / locate().name


# The documents


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_make_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= targets
    for path in documents():
        for target in re.findall(r"(?:^ {4}|`)make ([a-z]+)", path.read_text(), re.MULTILINE):
            assert target in targets, f"{path} names `make {target}`"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_readme_python_runs() -> None:
    found = blocks("python")
    assert found
    for code in found:
        exec(compile(code, "README.md", "exec"), {})


def test_readme_shell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    from PIL import Image

    from linnet.cli import main

    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((1100, 1700, 3), np.uint8)).save("photo.jpg")
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert len(lines) >= 6
    for line in lines:
        program, *arguments = line.split()
        assert program == "linnet"
        assert main(arguments) == 0, (line, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["encode_folder", "read_window", "pillow_plugin"])
def test_examples_run(tmp_path: Path, name: str) -> None:
    import numpy as np
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((70, 90, 3), 99, np.uint8)).save(tmp_path / "in" / "a.png")
    linnet_file, picture = tmp_path / "a.lnt", tmp_path / "in" / "a.png"
    linnet_file.write_bytes(linnet.encode(np.asarray(Image.open(picture))))
    arguments = {
        "encode_folder": [picture.parent, tmp_path / "out", 50],
        "read_window": [linnet_file, 10, 20, 30, 40, tmp_path / "window.png"],
        "pillow_plugin": [picture, tmp_path / "b.lnt"],
    }[name]
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr

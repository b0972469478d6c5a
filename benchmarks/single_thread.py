"""Runs a measuring module of this package in a fresh process whose libraries may use one thread.

Thread limits of numerical libraries count only when they are set before the libraries load, and peak memory is that of
a whole process: hence a process of its own. Request and answer are JSON files; progress passes through on stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runtime.errors import LinnetError, MachineError
from .codec import LINNET, Codec

ONE_THREAD = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)


def call(module: str, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of `linnet.benchmarks.<module>` to the request. An error over there becomes an error here."""
    with tempfile.TemporaryDirectory(prefix="linnet-bench-") as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", f"{__package__}.{module}", str(asked), str(answered)]
        status = subprocess.run(command, env=os.environ | dict.fromkeys(ONE_THREAD, "1"), check=False).returncode
        if not answered.exists():
            raise MachineError(f"measuring {module} ended with status {status} and no answer; is memory short?")
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
    if "error" in answer:
        raise MachineError(answer["error"])
    return answer


def answer(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The main function of a module that `call` runs."""
    asked, answered = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        result = measure(json.loads(asked.read_text(encoding="utf-8")))
    except LinnetError as error:
        result = {"error": str(error)}
    answered.write_text(json.dumps(result), encoding="utf-8")


def open_codec(name: str, bundle: str | None, backend: str) -> Codec:
    """linnet or a peer by name, in the process that will use it."""
    if name == LINNET:
        from .codec import linnet_codec

        return linnet_codec(bundle, backend)
    from .peers import PEERS

    return PEERS[name].codec()

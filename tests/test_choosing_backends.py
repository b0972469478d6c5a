"""Choosing a backend: providers and kernels of ONNX Runtime, what "auto" takes, and what is said about the others."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

from linnet import defaults
from linnet.runtime import backends
from linnet.runtime.backends import onnxruntime as provided
from linnet.runtime.backends.filters import FilterBackend
from linnet.runtime.backends.reference import ReferenceBackend, run_network
from linnet.runtime.bundle import Bundle
from linnet.runtime.errors import Absent, MachineError, UsageError
from linnet.runtime.network import Conv

runtime = pytest.importorskip("onnxruntime")
CPU = ("CPUExecutionProvider", {})


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA provider's place is taken by the CPU's: the graphs and the self-test are those of a GPU."""
    monkeypatch.setitem(provided.PROVIDERS, "onnxruntime-cuda", CPU)


def test_the_command_line_offers_what_exists(bundle: Bundle) -> None:
    assert defaults.BACKENDS == backends.NAMES
    with pytest.raises(UsageError, match="abacus"):
        backends.select("abacus", bundle)


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_absent_providers_name_the_package(bundle: Bundle, name: str) -> None:
    if provided.PROVIDERS[name][0] in runtime.get_available_providers():
        pytest.skip("this machine has it")
    with pytest.raises(Absent, match="ExecutionProvider: pip install onnxruntime-gpu"):
        backends.select(name, bundle)


def test_a_provider_runs_the_qdq_graphs_exactly(bundle: Bundle, fake_cuda: None) -> None:
    backend = backends.select("onnxruntime-cuda", bundle)
    assert backend.name == "onnxruntime-cuda"
    for network in ("analysis", "context_2", "synthesis"):
        inputs, expected = bundle.known_answer(network)
        for got, want in zip(backend.run(network, inputs), expected, strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want)


def test_auto_prefers_a_gpu(bundle: Bundle, fake_cuda: None) -> None:
    assert backends.select("auto", bundle).name == "onnxruntime-cuda"


def test_a_provider_whose_libraries_do_not_load_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = runtime.InferenceSession
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "InferenceSession", lambda graph, options, providers: session(graph, options, [CPU]))
    with pytest.raises(MachineError, match=r"CUDAExecutionProvider .* does not start here"):
        backends.select("onnxruntime-cuda", bundle)
    with pytest.warns(RuntimeWarning, match=r"does not start here.*trying the next backend"):
        assert backends.select("auto", bundle).name == "onnxruntime"


def test_a_provider_with_wrong_bits_is_refused(
    bundle: Bundle, fake_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    graphs = bundle.graphs("qdq")
    smallest = min(graphs, key=lambda network: len(graphs[network]))  # the one that is tried at once
    model = onnx.load_from_string(graphs[smallest])
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = bytes(byte ^ 4 for byte in weights.raw_data)
    wrong = {**graphs, smallest: model.SerializeToString()}
    monkeypatch.setattr(bundle, "graphs", lambda form: wrong if form == "qdq" else Bundle.graphs(bundle, form))
    with pytest.raises(MachineError, match=f"backend onnxruntime-cuda computes network {smallest} .* wrongly"):
        backends.select("onnxruntime-cuda", bundle)
    with pytest.warns(RuntimeWarning, match=r"wrongly.*trying the next backend"):
        backend = backends.select("auto", bundle)
    assert backend.name == "onnxruntime"
    inputs, expected = bundle.known_answer(smallest)
    np.testing.assert_array_equal(backend.run(smallest, inputs)[0], expected[0])


def test_without_onnxruntime_the_reference_remains(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.warns(RuntimeWarning, match=r"onnxruntime cannot be imported .*falling back to the slow reference"):
        assert isinstance(backends.select("auto", bundle), ReferenceBackend)
    with pytest.raises(Absent, match="pip install onnxruntime"):
        backends.select("onnxruntime", bundle)


def test_auto_is_silent_about_what_is_absent(bundle: Bundle) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backends.select("auto", bundle)


def test_describe_has_a_line_for_each(bundle: Bundle) -> None:
    found = backends.describe(bundle)
    assert [line["name"] for line in found] == list(backends.NAMES[1:])
    for line in found:
        assert line["detail"]
        assert line["available"] or line["remedy"], line


def _kernels_used(backend: backends.Backend, bundle: Bundle) -> dict[str, str]:
    return {name: backend.choose(name).kernels for name in bundle.networks}


def test_kernels_that_saturate_give_way_network_by_network(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on x86 without VNNI: of one network the integer graph is wrong here, of another it does not even load."""
    graphs = bundle.graphs("onnxruntime")
    broken = {
        **graphs,
        "context_1": graphs["context_2"].replace(b"context_2", b"context_1"),
        "hyper_analysis": b"not ONNX",
    }
    monkeypatch.setattr(bundle, "graphs", lambda form: broken if form == "onnxruntime" else Bundle.graphs(bundle, form))
    backend = backends.select("onnxruntime", bundle)
    others = {**dict.fromkeys(bundle.networks, "integer"), "analysis": "filters", "synthesis": "filters"}
    assert _kernels_used(backend, bundle) == {**others, "context_1": "float", "hyper_analysis": "float"}
    for network in ("context_1", "hyper_analysis"):
        inputs, expected = bundle.known_answer(network)
        np.testing.assert_array_equal(backend.run(network, inputs)[0], expected[0])


def test_filters_that_are_wrong_give_way(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FilterBackend, "run", lambda self, network, inputs: [np.zeros((1, 2, 2, 768), np.float32)])
    backend = backends.select("onnxruntime", bundle)
    assert _kernels_used(backend, bundle)["analysis"] == "integer"


def test_refusal_names_backend_network_and_remedy(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, expected = bundle.known_answer("context_2")
    wrong = [expected[0].copy()]
    wrong[0].flat[7] ^= 1
    monkeypatch.setattr(
        bundle, "known_answer", lambda n: (inputs, wrong) if n == "context_2" else Bundle.known_answer(bundle, n)
    )
    backend = backends.select("onnxruntime", bundle)
    with pytest.raises(MachineError) as caught:
        backend.run("context_2", inputs)
    assert "backend onnxruntime computes network context_2 of bundle camera wrongly here" in str(caught.value)
    assert f"1 of {expected[0].size} values of output 0 differ from the known answer" in str(caught.value)
    assert "--backend reference" in str(caught.value)


def test_known_answers_are_small_and_saturate(bundle: Bundle) -> None:
    """What every session computes at its start: counted, since a time says more about the machine."""
    total = 0.0
    for name, network in bundle.networks.items():
        inputs, _ = bundle.known_answer(name)
        _, height, width, _ = next(iter(inputs.values())).shape
        total += height * width * sum(count for _, count in network.macs())
        layers = tuple(node.output for node in network.nodes if isinstance(node, Conv) and not node.raw)
        computed = run_network(replace(network, outputs=layers), inputs)
        ends = [1 << (network.bits[layer] - 1) for layer in layers]
        assert any(value.min() == -end for value, end in zip(computed, ends, strict=True)), f"{name}: not below"
        assert any(value.max() == end - 1 for value, end in zip(computed, ends, strict=True)), f"{name}: not above"
    assert total < 350e6, "multiply-accumulates; an encoder spends as many on 24 kilopixels"

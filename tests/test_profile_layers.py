"""Layers by the engines' own clocks, their work, and the ceilings that they are compared with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import fake_gpu
import numpy as np
import pytest

from linnet.benchmarks.profiling import ceiling, layers
from linnet.benchmarks.profiling.pipeline import DECODE, ENCODE, NETWORK, Pipeline
from linnet.runtime import backends
from linnet.runtime.backends import tensorrt_layers
from linnet.runtime.backends.engine_builder import EngineBuilder
from linnet.runtime.backends.engines import BuildOptions, EngineCache, Target
from linnet.runtime.backends.layers import LayerTime
from linnet.runtime.backends.onnxruntime import OnnxRuntimeBackend
from linnet.runtime.backends.reference import ReferenceBackend
from linnet.runtime.backends.tensorrt import this_gpu
from linnet.runtime.bundle import Bundle
from linnet.runtime.codec import Codec
from linnet.runtime.errors import MachineError
from linnet.runtime.network import Conv, Network


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The codec whose layers these tests know by name."""
    return Bundle.open("camera")


def test_work_is_that_of_the_bundle(bundle: Bundle) -> None:
    """The sum over layers is what the bundle's manifest says per pixel; the bytes of a layer by hand."""
    shapes = {
        "analysis": {"planes": (1, 128, 256, 12)},
        "synthesis": {"latent": (1, 16, 32, 1536), "companded": (1, 16, 32, 769)},
    }
    for name, inputs in shapes.items():
        work = layers.layer_work(bundle.networks[name], inputs)
        position = next(iter(inputs.values()))
        by_structure = sum(macs for _, macs in bundle.networks[name].macs()) * position[1] * position[2]
        assert sum(w.macs for w in work.values()) == by_structure
    network = bundle.networks["analysis"]
    first = next(node for node in network.nodes if isinstance(node, Conv))
    assert first.raw and first.stride == 1
    moved = 128 * 256 * (12 + 4 * len(first.weight)) + first.weight.size
    assert layers.layer_work(network, shapes["analysis"])[first.name].bytes == moved
    last = network.nodes[-1]
    assert layers.layer_work(network, shapes["analysis"])[last.name].bytes == 2 * 4 * 16 * 32 * 768, "float32"


def test_units_belong_to_layers(bundle: Bundle) -> None:
    network = bundle.networks["synthesis"]
    for unit, layer in {
        "low4/nchw_token_4": "low4",
        "out/tap_1_2": "out",
        "blocks_0_spatial/nchw_token_16": "blocks.0.spatial",
        "blocks.0.spatial/weight_float": "blocks.0.spatial",
        "blocks_0_add/nchw": "blocks.0.add",
        "blocks_0_mix/nchw/wide + blocks_0_add/nchw/wide": "blocks.0.mix",
        "[ONNX Layer: blocks_0_add/nchw]": "blocks.0.add",
        "Gather_token_21": layers.BETWEEN,
        "": layers.BETWEEN,
    }.items():
        assert layers.layer_of(network, unit) == layer, unit


def test_rows_leave_the_first_frame_out(bundle: Bundle) -> None:
    network = {"context_1": bundle.networks["context_1"]}
    times = []
    for frame in range(3):
        for _ in range(2):  # calls in a frame
            for unit, ms in (("context/nchw", 3 + frame), ("cat/nchw", 1), ("reformat", 1)):
                times.append(LayerTime("context_1", unit, "op", None, ms / 1e3))
    calls = {("context_1", (("features", (4, 8, 8, 96)), ("coded", (4, 8, 8, 12)))): 2}
    found = {row["layer"]: row for row in layers.rows(times, calls, network, 3)}
    assert list(found) == ["context", "cat", layers.BETWEEN]
    assert found["context"]["samples_ms"] == pytest.approx([8, 10])
    macs = 2 * 9 * 132 * 96 * 4 * 8 * 8
    assert found["context"]["gmac"] == pytest.approx(macs / 1e9)
    assert found["context"]["gmac_per_s"] == pytest.approx(macs / 1e9 / 9e-3)
    assert sum(row["share"] for row in found.values()) == pytest.approx(1)
    assert found[layers.BETWEEN]["macs_per_byte"] is None
    rows = list(found.values())
    layers.against(rows, {"gmac_per_s": 2 * found["context"]["gmac_per_s"], "gb_per_s": 1e6})
    assert found["context"]["of_ceiling"] == pytest.approx(0.5)
    layers.against(rows, {"gmac_per_s": 1e9, "gb_per_s": 4 * found["cat"]["gb_per_s"]})
    assert found["cat"]["of_ceiling"] == pytest.approx(0.25)
    layers.against(rows, None)
    assert found["cat"]["of_ceiling"] is None


def test_layers_of_a_frame(codec: Codec, tmp_path: Path) -> None:
    """Every layer that computes is there, and the layers of a network take no longer than its calls did."""
    frame = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    pipeline = Pipeline(codec.bundle, codec.backend, frame, tmp_path, quality=60, tile=128, threads=1, batch=None)
    rows, times, last = layers.measure(pipeline, codec.bundle, codec.backend, lambda: None, frames=2)
    for name, network in codec.bundle.networks.items():
        timed = {row["layer"]: row for row in rows if row["network"] == name}
        computing = [node.name for node in network.nodes if isinstance(node, Conv)]
        assert {part for layer in timed for part in layer.split("+")} >= set(computing)
        for layer, row in timed.items():
            assert len(row["samples_ms"]) == 2
            assert (row["gmac_per_s"] > 0) == (not set(computing).isdisjoint(layer.split("+")))
    for direction, name in ((ENCODE, "analysis"), (DECODE, "synthesis")):
        spans = [s for s in last[direction].spans if s.stage == NETWORK + name]
        inside = [t for t in times if t.network == name and any(s.start - 1e6 <= t.start <= s.end for s in spans)]
        calls = sum(s.end - s.start for s in spans)
        assert 0 < sum(1e9 * t.seconds for t in inside) <= calls, "and the start times fit"
    data = codec.encode(frame)
    assert codec.decode(data).shape == frame.shape, "the sessions from before are back"


def test_who_cannot_time_layers_says_so(bundle: Bundle, reference_codec: Codec) -> None:
    with pytest.raises(MachineError, match="reference cannot time its layers"):
        backends.layer_times(reference_codec.backend)
    gpu = OnnxRuntimeBackend.__new__(OnnxRuntimeBackend)
    gpu.name, gpu._provider = "onnxruntime-cuda", ("CUDAExecutionProvider", {})
    with pytest.raises(MachineError, match="use --backend tensorrt"), gpu.layer_times():
        pass


def test_layers_of_tensorrt(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    """Each layer of each run, named and of a kind; without graphs meanwhile, and with them again afterwards."""
    target = Target("context_1", (("features", (2, 3, 5, 96)), ("coded", (2, 3, 5, 12))))
    EngineBuilder(bundle, EngineCache(bundle), this_gpu(), ReferenceBackend(bundle.networks)).make(
        target, BuildOptions()
    )
    backend = backends.select("tensorrt", bundle)
    inputs = {name: np.ones((4, *shape[1:]), np.int8) for name, shape in target.shapes}
    expected = backend.run("context_1", inputs)
    with backends.layer_times(backend) as times:
        for _ in range(3):
            assert np.array_equal(backend.run("context_1", inputs)[0], expected[0])
        assert not any(machine.graphs.values())
    network = bundle.networks["context_1"]
    assert len(times) == 3 * 2 * (len(network.nodes) + 1), "two batches a run"
    assert {time.operator for time in times} == {"CaskConvolution", "Shuffle", ""}
    rows = {row["layer"]: row for row in layers.rows(times, {}, bundle.networks, frames=3)}
    assert set(rows) == {node.name for node in network.nodes} | {layers.BETWEEN}
    assert rows["head.out"]["samples_ms"] == pytest.approx([2 * fake_gpu.FAKE_LAYER_MS] * 2)
    count = len(times)
    for _ in range(3):
        backend.run("context_1", inputs)
    assert len(times) == count
    assert any(machine.graphs.values()), "replayed again"
    backend._first.close()


@pytest.mark.parametrize("said", ["", "[]", '{"Layers": ["names only"]}', "{}"])
def test_an_engine_without_details_has_layers_all_the_same(said: str) -> None:
    inspector = SimpleNamespace(get_engine_information=lambda form: said)
    trt = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=1), IProfiler=object)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    times: list[LayerTime] = []
    tensorrt_layers.profiler(trt, engine, "analysis", times).report_layer_time("down2 + down4", 1.5)
    assert times == [LayerTime("analysis", "down2 + down4", "", None, 0.0015)]


def test_ceilings(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(ceiling, "CONVOLUTIONS", ((64, 3), (128, 1)))
    monkeypatch.setattr(ceiling, "RUNS", 3)
    monkeypatch.setattr(ceiling, "COPY_BYTES", 1 << 24)
    done = []
    found = ceiling.measure({"threads": 1, "name": "onnxruntime", "kernels": "integer"}, lambda: done.append(1))
    assert list(found["convolutions"]) == ["3x3 of 64", "1x1 of 128"]
    assert found["gmac_per_s"] == max(found["convolutions"].values()) > 0
    assert found["gb_per_s"] > 0
    assert len(done) == 2
    network: Network = ceiling._convolution(64, 3)
    assert layers.layer_work(network, {"x": (1, 64, 64, 64)})["conv"].macs == 64 * 64 * 9 * 64 * 64

"""The TensorRT backend on a fake GPU: building, the engine cache, wrong engines, falling back, running, releasing.

What the fake offers is checked against the real bindings by `test_tensorrt_api.py`.
"""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from dataclasses import replace

import fake_gpu
import numpy as np
import pytest

from linnet.runtime import backends
from linnet.runtime.backends import engines
from linnet.runtime.backends.engine_builder import EngineBuilder, build
from linnet.runtime.backends.engines import BuildOptions, EngineCache, Target
from linnet.runtime.backends.reference import ReferenceBackend
from linnet.runtime.backends.tensorrt import TensorRTBackend, this_gpu
from linnet.runtime.bundle import Bundle
from linnet.runtime.errors import Absent, MachineError

PLACE = 3, 5
TARGET = Target("context_1", (("features", (2, *PLACE, 96)), ("coded", (2, *PLACE, 12))))
RAW = Target("analysis", (("planes", (1, 16, 24, 12)),))
OPTIONS = BuildOptions()


def builder(bundle: Bundle) -> EngineBuilder:
    return EngineBuilder(bundle, EngineCache(bundle), this_gpu(), ReferenceBackend(bundle.networks))


def make(bundle: Bundle, target: Target = TARGET, options: BuildOptions = OPTIONS) -> engines.Record:
    return builder(bundle).make(target, options)


def stale(bundle: Bundle, options: BuildOptions = OPTIONS) -> list[str]:
    return builder(bundle).stale(TARGET, options)


def some_inputs(target: Target, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    return {name: rng.integers(-128, 128, (batch, *shape[1:])).astype(np.int8) for name, shape in target.shapes}


def assert_right(bundle: Bundle, backend: backends.Backend, target: Target, batch: int) -> None:
    inputs = some_inputs(target, batch)
    expected = ReferenceBackend(bundle.networks).run(target.network, inputs)
    for got, want in zip(backend.run(target.network, inputs), expected, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


# The cache


def test_a_built_engine_is_kept(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    assert stale(bundle) == ["there is none"]
    record = make(bundle)
    assert record.rejected == ""
    assert stale(bundle) == []
    assert EngineCache(bundle).records() == [record]
    assert not [path for path in EngineCache(bundle).root.rglob("*") if path.suffix == ".part"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("version", "10.16.0", "tensorrt was 10.13.3, is 10.16.0"),
        ("gpu", "Fake Thor", "gpu was Fake Orin, is Fake Thor"),
        ("capability", (11, 0), "compute_capability was 8.7, is 11.0"),
        ("driver", 13000, "cuda was 12.6.0 driver 12060, is 12.6.0 driver 13000"),
    ],
)
def test_another_machine_makes_it_stale(
    bundle: Bundle, machine: fake_gpu.Machine, monkeypatch: pytest.MonkeyPatch, name: str, value: object, reason: str
) -> None:
    make(bundle)
    setattr(machine, name, value)
    fake_gpu.install(machine, monkeypatch)
    assert stale(bundle) == [reason]
    with pytest.raises(MachineError, match=f"no stored engine fits .*{reason}.*linnet build"):
        TensorRTBackend(bundle)


def test_other_options_make_it_stale(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    assert stale(bundle, replace(OPTIONS, workspace_mib=64)) == ["workspace_mib was 1024, is 64"]
    assert stale(bundle, replace(OPTIONS, strongly_typed=False)) == ["strongly_typed was True, is False"]


def test_another_graph_makes_it_stale(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    changed = builder(bundle)
    changed._graphs = {**changed._graphs, "context_1": b"another"}
    (reason,) = changed.stale(TARGET, OPTIONS)
    assert reason.startswith("onnx was ")


def test_a_damaged_engine_is_built_again_and_never_loaded(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    (path,) = EngineCache(bundle).folder.glob("*.engine")
    path.write_bytes(path.read_bytes()[:-1])
    assert stale(bundle) == ["its file is damaged or gone"]
    with pytest.raises(MachineError, match="damaged or gone: run `linnet build` again"):
        TensorRTBackend(bundle).run("context_1", some_inputs(TARGET, 1))
    path.with_suffix(".json").write_text('{"target": 5}')
    assert stale(bundle) == ["there is none"]


def test_timings_are_kept_between_builds_and_replaced_when_unusable(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    make(bundle, RAW)
    assert machine.given_timings == [b"", b"timings "]
    (path,) = EngineCache(bundle).root.glob("timing-*.cache")
    assert "Fake_Orin" in path.name
    path.write_bytes(b"of another device")
    record = make(bundle)
    assert machine.given_timings[2:] == [b"of another device", b""]
    assert record.skipped == []
    assert path.read_bytes() == b"timings "


# Wrong engines


def test_an_engine_with_wrong_bits_is_rejected(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    machine.wrong_bits = lambda network: network == "context_1"
    record = make(bundle)
    assert "tensorrt computes network context_1 of bundle camera wrongly" in record.rejected
    assert not list(EngineCache(bundle).folder.glob("*.engine"))
    assert "rejected" in stale(bundle)[0]
    machine.wrong_bits = lambda network: False
    assert make(bundle).rejected == ""
    assert stale(bundle) == []


def test_an_engine_is_only_compared_with_a_backend_that_is_right(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    class Wrong(ReferenceBackend):
        def run(self, network: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [output + np.int8(1) for output in super().run(network, inputs)]

    with pytest.raises(MachineError, match=r"backend reference computes network context_1 .* wrongly"):
        EngineBuilder(bundle, EngineCache(bundle), this_gpu(), Wrong(bundle.networks)).make(TARGET, OPTIONS)
    assert EngineCache(bundle).records() == []


def test_an_engine_that_changed_its_bits_is_refused(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    machine.wrong_bits = lambda network: True
    backend = TensorRTBackend(bundle)
    for _ in range(2):
        with pytest.raises(MachineError, match="other values than when it was built: rejected"):
            backend.run("context_1", some_inputs(TARGET, 1))
    assert machine.counts["Runtime.deserialize_cuda_engine"] == 2  # once to build, once to refuse


def test_each_build_is_judged_by_its_own_engine(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    building = builder(bundle)
    assert building.make(TARGET, OPTIONS).rejected == ""
    machine.wrong_bits = lambda network: True
    assert building.make(TARGET, OPTIONS).rejected
    machine.wrong_bits = lambda network: False
    assert building.make(TARGET, OPTIONS).rejected == ""
    assert not [engine for lane in building._runner._lanes for engine in lane._bound]


# Falling back


@pytest.mark.parametrize("name", ["tensorrt", "auto"])
def test_a_session_falls_back_from_a_rejected_engine_and_says_so(
    bundle: Bundle, machine: fake_gpu.Machine, name: str
) -> None:
    make(bundle)
    make(bundle, RAW)
    machine.wrong_bits = lambda network: network == "context_1"
    backend = backends.select(name, bundle)
    assert backend.name == "tensorrt"
    with pytest.warns(RuntimeWarning, match=r"context_1 .*rejected.*; using onnxruntime instead") as caught:
        assert_right(bundle, backend, TARGET, 2)
        assert_right(bundle, backend, TARGET, 2)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_right(bundle, backend, RAW, 1)
    assert machine.counts["IExecutionContext.execute_async_v3"] == 5  # two built, two checked when loaded, one run


def test_shapes_without_an_engine_fall_back_and_name_the_remedy(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    backend = backends.select("auto", bundle)
    other = Target("context_1", (("features", (1, 2, 3, 96)), ("coded", (1, 2, 3, 12))))
    with pytest.warns(RuntimeWarning, match=r"no TensorRT engine for context_1 1x2x3x96 .*linnet build.*--size"):
        assert_right(bundle, backend, other, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_right(bundle, backend, TARGET, 1)


def test_auto_goes_on_where_every_engine_is_stale(
    bundle: Bundle, machine: fake_gpu.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(bundle)
    machine.version = "10.16.0"
    fake_gpu.install(machine, monkeypatch)
    with pytest.warns(RuntimeWarning, match=r"tensorrt was 10.13.3, is 10.16.0.*trying the next"):
        assert backends.select("auto", bundle).name == "onnxruntime"


def test_auto_passes_over_a_gpu_without_engines_in_silence(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.select("auto", bundle).name == "onnxruntime"
    with pytest.raises(Absent, match=r"no engine of bundle camera .*linnet build BUNDLE --device this"):
        backends.select("tensorrt", bundle)


def test_describe_says_what_is_there_and_what_is_missing(
    bundle: Bundle, machine: fake_gpu.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> dict[str, object]:
        return next(line for line in backends.describe(bundle) if line["name"] == "tensorrt")

    assert not found()["available"]
    assert "linnet build" in str(found()["remedy"])
    make(bundle)
    assert found()["available"]
    assert found()["detail"] == "TensorRT 10.13.3 on Fake Orin, 1 engines"
    machine.version = "8.6.1"
    fake_gpu.install(machine, monkeypatch)
    assert found()["detail"] == "TensorRT 8.6.1 is older than 10.3"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    this_gpu.cache_clear()
    assert "tensorrt cannot be imported" in str(found()["detail"])


# Running


@pytest.mark.parametrize("shared_memory", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_every_batch_equals_the_reference(
    bundle: Bundle, machine: fake_gpu.Machine, batch: int, shared_memory: bool
) -> None:
    machine.shared_memory = shared_memory
    make(bundle)
    backend = TensorRTBackend(bundle)
    for _ in range(3):
        assert_right(bundle, backend, TARGET, batch)
    assert (machine.counts.get("copy", 0) == 0) == shared_memory


def test_raw_outputs_are_float32_and_engines_share_their_memory(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    make(bundle, RAW)
    backend = TensorRTBackend(bundle)
    for target in (TARGET, RAW, TARGET, RAW):
        assert_right(bundle, backend, target, 3)


def test_the_size_of_batch_that_computes_least_is_taken(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    single = Target("context_1", tuple((name, (1, *shape[1:])) for name, shape in TARGET.shapes))
    four = Target("context_1", tuple((name, (4, *shape[1:])) for name, shape in TARGET.shapes))
    make(bundle, single)
    make(bundle, four)
    backend = TensorRTBackend(bundle)
    taken = {batch: backend._engine(replace_batch(TARGET, batch)).target.batch for batch in (1, 3, 4, 5, 8)}
    assert taken == {1: 1, 3: 1, 4: 4, 5: 1, 8: 4}


def replace_batch(target: Target, batch: int) -> Target:
    return Target(target.network, tuple((name, (batch, *shape[1:])) for name, shape in target.shapes))


def test_graphs_replay_after_one_plain_run(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    backend = TensorRTBackend(bundle)
    machine.counts.clear()
    for _ in range(10):
        assert_right(bundle, backend, TARGET, 4)
    # A plain run and a captured one per lane: the check while loading and twenty batches were all the rest.
    assert machine.counts["IExecutionContext.execute_async_v3"] == 4
    assert machine.counts["capture"] == 2
    assert machine.counts["launch"] == 2 * 10 + 1 - 2


def test_without_graphs_it_runs_all_the_same(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    machine.capture_error = 900
    make(bundle)
    backend = TensorRTBackend(bundle)
    for _ in range(4):
        assert_right(bundle, backend, TARGET, 4)
    assert machine.counts["capture"] == 2  # tried once per lane
    assert "launch" not in machine.counts


def test_several_threads_share_a_backend(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    make(bundle, RAW)
    backend = TensorRTBackend(bundle)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                assert_right(bundle, backend, (TARGET, RAW)[number % 2], 1 + number)
            assert machine.depth() == 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_failed_batch_leaves_nothing_running(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    """What is under way still reads the caller's frame and writes the lane's memory."""
    make(bundle)
    backend = TensorRTBackend(bundle)
    assert_right(bundle, backend, TARGET, 1)
    done = machine.counts["IExecutionContext.execute_async_v3"]

    class FailsLater(set):
        def __contains__(self, member: object) -> bool:
            return member == "IExecutionContext.execute_async_v3" and machine.counts[member] > done + 1

    machine.capture_error = 900
    machine.fails = FailsLater()
    with pytest.raises(MachineError, match="cannot run context_1"):
        for _ in range(3):
            backend.run("context_1", some_inputs(TARGET, 4))
    assert not any(stream._work for stream in machine.streams.values())
    machine.fails = set()
    assert_right(bundle, backend, TARGET, 4)


def test_close_gives_everything_back(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    gc.collect()
    backend = TensorRTBackend(bundle)
    assert_right(bundle, backend, TARGET, 4)
    assert machine.allocations
    backend.close()
    assert machine.allocations == {}
    del backend
    this_gpu.cache_clear()
    gc.collect()
    assert machine.counts["detach"] == 1


def test_a_failing_run_leaves_the_lanes_usable(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    make(bundle)
    backend = TensorRTBackend(bundle)
    machine.fails = {"IExecutionContext.execute_async_v3"}
    for _ in range(3):
        with pytest.raises(MachineError, match=r"cannot run context_1 .*execute_async_v3 went wrong"):
            backend.run("context_1", some_inputs(TARGET, 4))
        backend._loaded.clear()
    machine.fails = set()
    assert_right(bundle, backend, TARGET, 4)


def test_no_memory_is_a_clear_error(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    machine.fails = {"pagelocked_empty"}
    with pytest.raises(MachineError, match=r"the GPU has no .* MiB left \(out of memory\): use a smaller --tile"):
        build_and_load(bundle)
    machine.fails = set()


def build_and_load(bundle: Bundle) -> None:
    make(bundle)
    TensorRTBackend(bundle).run("context_1", some_inputs(TARGET, 1))


# Building


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("Builder", "cannot start its builder: Builder went wrong"),
        ("Builder.create_network", "cannot create a network: Builder.create_network went wrong"),
        ("OnnxParser.parse", r"cannot read the graph of context_1 .*\(no importer for Abacus\): OnnxParser.parse went"),
        ("IBuilderConfig.add_optimization_profile", "cannot take the shapes of context_1"),
        ("Builder.build_serialized_network", "cannot build context_1 .*: Builder.build_serialized_network went wrong"),
        ("Runtime.deserialize_cuda_engine", "cannot load the engine of context_1 .*: Runtime.deserialize_cuda_engine"),
    ],
)
def test_every_refusal_carries_what_tensorrt_said(
    bundle: Bundle, machine: fake_gpu.Machine, member: str, said: str
) -> None:
    machine.fails = {member}
    with pytest.raises(MachineError, match=f"^TensorRT 10.13.3 {said}"):
        make(bundle)
    assert EngineCache(bundle).records() == []


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3", "11.4.0"])
def test_options_that_a_version_lacks_are_noted(
    bundle: Bundle, machine: fake_gpu.Machine, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    machine.version = version
    fake_gpu.install(machine, monkeypatch)
    record = make(bundle, options=BuildOptions(max_tactics=8, workspace_mib=3))
    assert record.skipped == (["max_num_tactics"] if version == "10.3.0" else [])
    (config,) = machine.configs
    assert config._limits == {"WORKSPACE": 3 << 20}
    assert (config._cleared, config._flags) == (["TF32"], [])
    assert (config.builder_optimization_level, config.max_aux_streams, config.profiling_verbosity) == (3, 0, "DETAILED")
    assert machine.flags == [2 if version < "11" else 1]


def test_an_option_that_cannot_be_set_is_noted(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    machine.fails = {"IBuilderConfig.set_timing_cache"}
    assert make(bundle).skipped == ["timing cache"]


def test_weak_types_before_tensorrt_11(
    bundle: Bundle, machine: fake_gpu.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.version = "10.3.0"
    fake_gpu.install(machine, monkeypatch)
    weak = BuildOptions(strongly_typed=False)
    make(bundle, options=weak)
    assert machine.flags == [0]
    assert machine.configs[0]._flags == ["INT8"]
    machine.version = "11.0.0"
    fake_gpu.install(machine, monkeypatch)
    with pytest.raises(MachineError, match=r"TensorRT 11.0.0 has strongly typed networks only: .*--weakly-typed"):
        make(bundle, options=weak)


def test_progress_and_interruption(bundle: Bundle, machine: fake_gpu.Machine) -> None:
    seen: list[tuple[str, int, int]] = []
    builder(bundle).make(TARGET, OPTIONS, lambda *step: seen.append(step))
    assert seen[0] == ("Building", 0, 3)
    assert seen[-1] == ("Building", 3, 3)

    def interrupt(*step: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(this_gpu(), bundle.graphs("qdq")["context_1"], TARGET, OPTIONS, b"", interrupt)
    assert machine.counts["Builder.build_serialized_network"] == 1  # the second one stopped at its first step


def test_answers_at_other_shapes_repeat_no_row_and_no_tile(bundle: Bundle) -> None:
    target = Target("analysis", (("planes", (3, 64, 128, 12)),))
    planes = engines.inputs_at(bundle, target)["planes"]
    assert planes.shape == (3, 64, 128, 12)
    assert len({row.tobytes() for row in planes.reshape(3 * 64, -1)}) == 3 * 64
    again = engines.inputs_at(bundle, target)["planes"]
    np.testing.assert_array_equal(planes, again)

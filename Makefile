# Two commands: `make demo` and `make test`; `make test-tensorrt-api` compares the TensorRT backend with NVIDIA's own
# bindings, which it downloads; `make test-portability` runs the runtime on emulated ARM and older x86 machines (Debian,
# with qemu-user and g++-aarch64-linux-gnu). Each sets up .venv by itself and needs python3 (3.10 or newer, with venv)
# and a C++ compiler.
#
#   make demo IMAGE=my.jpg     your photograph instead of the one that scikit-image brings
#   make test TORCH=           without PyTorch: the tests of training and export are skipped
#   make test TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'
#                              the CPU build of PyTorch where pip would choose gigabytes of CUDA

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
IMAGE  ?=

BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard runtime/native/*)

.PHONY: demo test test-tensorrt-api test-portability lint clean

demo: $(VENV)/made
	rm -rf build
	$(BIN)/python -m pip install --quiet '.[demo]'
	rm -f $(VENV)/ready-to-test
	$(BIN)/python -I -m linnet.demo $(IMAGE)

test: $(VENV)/ready-to-test
	$(BIN)/ruff check .
	$(BIN)/pytest

test-tensorrt-api: $(VENV)/ready-to-test
	$(BIN)/pytest -m tensorrt_api tests/test_tensorrt_api.py

test-portability: $(VENV)/ready-to-test
	$(BIN)/pytest -m portability -s tests/portability

lint: $(VENV)/ready-to-test
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) .portability build dist demo linnet.egg-info .pytest_cache .ruff_cache .hypothesis
	find linnet runtime export calibration training benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
	find runtime -name '*.so' -delete

$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	touch $@

# The tests run on the tree itself (an editable install), so that what they name is what they test.
$(VENV)/ready-to-test: $(VENV)/made $(SOURCES)
ifneq ($(strip $(TORCH)),)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[test,export]'
else
	$(BIN)/python -m pip install --quiet --editable '.[test]'
endif
	touch $@

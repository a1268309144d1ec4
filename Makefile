# `make demo` runs the main job on data that ships with the project, `make test` passes the tests; both install into
# .venv first. TORCH may name another build of PyTorch.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := $(wildcard constraints.txt)
INSTALL := $(BIN)/uv pip install --quiet --python $(VENV) $(if $(CONSTRAINTS),--constraints $(CONSTRAINTS))
# A worker a core; a test file's tests stay together, as they share what they build.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10

# Where this is set, each process compiles TensorFlow's Python code again, for 8 s, and the tests start a dozen.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all lint constraints clean

demo: $(VENV)/installed-demo
	$(BIN)/rszoo demo --output demo-model

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) --slow

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# PyTorch comes first and by pip: only pip knows of a build that a machine has ready. uv is content with what is there,
# and installs the rest in a fraction of pip's time.
$(VENV)/installed-torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) uv
	touch $@

$(VENV)/installed-demo: pyproject.toml $(CONSTRAINTS) $(VENV)/installed-torch
	$(INSTALL) --editable ".[torch,keras,tensorflow]"
	touch $@

$(VENV)/installed-test: pyproject.toml $(CONSTRAINTS) $(VENV)/installed-torch
	$(INSTALL) --editable ".[test]"
	touch $@

# What CI installs, anew: the newest versions that go together, with PyTorch and its CUDA left to TORCH.
constraints: $(VENV)/installed-test
	echo '# What `make test` installs beside PyTorch, on Linux x86-64 with Python 3.11. Made by `make constraints`.' > $@.new
	echo "$(TORCH)" | $(BIN)/uv pip compile --quiet pyproject.toml - --extra test --no-header --no-annotate \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  | grep -Ev '^(torch|triton|nvidia-.*|cuda-.*)==' >> $@.new
	mv $@.new constraints.txt

clean:
	rm -rf $(VENV) demo-model build dist .pytest_cache .mypy_cache .ruff_cache

# `make demo` and `make test` are all a fresh machine needs; both set up what they use.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TORCH ?= torch==2.13.0

.PHONY: demo test check docs benchmark native sanitize arm clean

demo: $(VENV)/.demo
	$(BIN)/python -m demo.demo

# Each worker takes whole files in a row, so that what the tests of a file share is made once.
test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

check: $(VENV)/.test $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

benchmark: $(VENV)/.test
	$(BIN)/python -m benchmarks.fit_speed

# Anew after an edit of native/; installing does it too.
native:
	$(PYTHON) native/build.py

# The tests of native code with the checks of address and undefined behaviour compiled in.
SANITIZER = -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: $(VENV)/.test
	CFLAGS="$(SANITIZER)" $(PYTHON) native/build.py build/sanitize
	ISOLOSS_NATIVE=$(CURDIR)/build/sanitize/libisoloss.so ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so)" \
	$(BIN)/python -m pytest -q -n 0 tests/native tests/compress/test_kmeans.py \
		tests/deploy/test_packing.py tests/deploy/test_products.py tests/deploy/test_reals.py \
		tests/deploy/test_files.py tests/deploy/test_decoding.py

# The kernels of 64-bit ARM, compiled as an install does, under emulation; on Debian: gcc-aarch64-linux-gnu qemu-user-static.
arm: $(VENV)/.test
	ISOLOSS_ARM_CFLAGS= $(BIN)/python -m pytest -q -n 0 -rs tests/native/test_arm.py

# Marker files remember what is installed; editing pyproject.toml or native code installs anew.
$(VENV)/.base: pyproject.toml hatch_build.py $(wildcard native/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# torch first and by itself: a bare requirement may pick another build.
$(VENV)/.demo: $(VENV)/.base
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --group test
	touch $@

$(VENV)/.check: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --group check
	touch $@

$(VENV)/.docs: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

clean:
	rm -rf $(VENV) site out dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis

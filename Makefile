# The two commands: `make demo` shows what the project does, `make test` checks it. Both set everything up.

VENV ?= .venv
QT ?= pyqt5
DEMO_SEED ?= 2026
# Slides on which no method is perfect; how they were chosen: docs/demo.md.
DEMO_SLIDES := --slides 24/100/40/60 --size 1536x1536 --look lesion_radius_ratio=1.42 --look lesion_chromatin_ratio=1.62 \
	--look lesion_fraction_min=0.2 --look lesion_fraction_max=0.3
PY := $(VENV)/bin/python

# torch's threads sleep where they would spin for each other: 7 times faster on a machine with other work, and
# a fifth slower on an idle one.
export OMP_WAIT_POLICY ?= PASSIVE

# The tests run in as many processes as there are cores, four at most: each takes about 2 GB. Those of a file stay
# together, for what they share. Tests click and type: pytest-xvfb gives each process a virtual display of its own.
# `make test PYTEST_ARGS="-n0 -x tests/slide"` runs some in one process.
WORKERS ?= -n logical --maxprocesses 4 --dist loadfile

.PHONY: demo test check schema lock clean

demo: $(VENV)/.ready
	$(PY) -m training.cohort demo/cohort --seed $(DEMO_SEED) $(DEMO_SLIDES)
	$(PY) -m training.run training/configs/demo.toml
	$(PY) scripts/show_demo.py

# A plugin that writes to the viewer from another thread fails.
test: export NAPARI_ENSURE_PLUGIN_MAIN_THREAD = 1
test: $(VENV)/.ready
	$(PY) -m pytest $(WORKERS) $(PYTEST_ARGS)

check: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/npe2 validate napari-lrmil

$(VENV)/.ready: pyproject.toml requirements/lock-$(QT).txt scripts/setup.sh
	scripts/setup.sh $(VENV) $(QT)
	touch $@

# Write docs/result.schema.json anew, after a change of the result's JSON document.
schema: $(VENV)/.ready
	$(PY) scripts/result_schema.py

# Resolve anew within pyproject's bounds and write what came out.
lock:
	scripts/lock.sh pyqt5
	scripts/lock.sh pyqt6

clean:
	rm -rf demo build dist

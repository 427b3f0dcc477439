# `make lab` sets up everything and opens the tutorials; `make test` sets up everything and tests it.
# Everything is installed into .venv; installation is repeated only when what it depends on changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
WANTED := $(shell cat pyproject.toml .locks/*.txt setup.py | cksum | cut -d' ' -f1)
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NOTEBOOKS := $(wildcard tutorials/*.ipynb)

# Jupyter refuses to run as root unless told, and has no browser to open without a display.
LAB_FLAGS := $(if $(filter 0,$(shell id -u)),--allow-root) \
             $(if $(filter Linux,$(shell uname -s)),$(if $(DISPLAY)$(WAYLAND_DISPLAY),,--no-browser))

# A course that works offline does not ask on its first screen whether to fetch news.
LAB_SETTINGS := $(VENV)/share/jupyter/lab/settings
NO_NEWS := {"@jupyterlab/apputils-extension:notification": \
           {"fetchNews": "false", "checkForUpdates": false}}

.PHONY: help lab classroom demo figures again docs docs-serve test test-sanitize test-threads soak build \
        lint notebooks student slides gpu gpu-rehearsal wheel wheelhouse lock audit clean fuzz fuzz-sanitize

help:
	@echo "make lab    open the tutorials in JupyterLab (DIR=build/student another folder; ARGS='--port 9999')"
	@echo "make demo   enlarge the bundled photograph with every model, without a browser"
	@echo "make figures  draw the paper's figures again, into docs/images"
	@echo "make again  cards, scores, figures and notebooks again, after a model was replaced (QSR_DATA)"
	@echo "make docs   build the site into site/     make docs-serve  serve it while you write"
	@echo "make test   lint, all tests, all notebooks, the site"
	@echo "make test-sanitize  the tests of the native code under AddressSanitizer and UBSan"
	@echo "make test-threads   the networks in several threads under ThreadSanitizer, every kernel"
	@echo "make build  compile the native core     make lint   check style and types"
	@echo "make notebooks  run all tutorials afresh and keep their outputs"
	@echo "make student    the tutorials without solutions: build/student, and build/qsr-course.zip to hand out"
	@echo "make slides     slides from the tutorials, which need no network: build/slides"
	@echo "make gpu OUT=folder  a GPU for some minutes: build, test, train (docs/gpu.md)"
	@echo "make gpu-rehearsal   the same on the CPU, with tiny networks, in half a minute"
	@echo "make soak   what is too long for make test: kills, changed files, memory ... (soak-kills: a part)"
	@echo "make fuzz   changed files and odd arguments of every kind (MINUTES=10)"
	@echo "make fuzz-sanitize  the native operators' odd arguments under AddressSanitizer and UBSan"
	@echo "make wheel  a wheel with the compiled core, and an sdist, into dist/"
	@echo "make wheelhouse  what machines without a network install qsr from, into wheelhouse/"
	@echo "make audit  licences, and known faults, of what is installed     make lock  pin it again"
	@echo "make clean  remove .venv and build outputs"

# Environments: .venv/lab-1234 says that all of `.[lab]` is installed for these requirements: what is
# locked with hashes, torch (see .locks/torch.txt), and qsr alone, by the setuptools of the lock.
$(VENV)/%-$(WANTED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "qsr needs Python 3.11 or newer, and '$(PYTHON)' is not." \
	         "Name another: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "'$(PYTHON)' has no venv module. Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing qsr[$*] into $(VENV) (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes -r .locks/$*.txt
	@$(PIP) -r .locks/torch.txt
	@QSR_NATIVE=jit $(PIP) --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/$*-*
	@touch $@

build: $(VENV)/test-$(WANTED)
	@$(call build_core)

# The native core goes into the user's cache and is compiled again when its sources change.
define build_core
	test "$$QSR_NATIVE" = off || command -v $${CXX:-c++} >/dev/null || { \
	    echo "no C++ compiler '$${CXX:-c++}'. Debian: apt-get install g++." \
	         "To go on without it, exact but slow: make QSR_NATIVE=off ..."; exit 1; }; \
	QSR_NATIVE=$${QSR_NATIVE:-require} $(BIN)/python -c \
	    'from qsr.system import native; status = native.load(); print("native core:", status.how, status.path)'
endef

# JupyterLab opens nothing above its root, and notebooks link to pages and sources of the checkout: so
# the checkout is the root, unless the folder lies elsewhere.
DIR ?= tutorials
ELSEWHERE = $(filter /% ../%,$(DIR))
lab: classroom
	$(BIN)/jupyter lab --ServerApp.root_dir=$(or $(ELSEWHERE),.) \
	    --LabApp.default_url=/lab$(if $(ELSEWHERE),,/tree/$(DIR)) $(LAB_FLAGS) $(ARGS)

# All that `make lab` needs before somebody is there: what images of classrooms are made with.
classroom: $(VENV)/lab-$(WANTED)
	@$(call build_core)
	@$(if $(NOTEBOOKS),$(BIN)/jupyter trust $(NOTEBOOKS))
	@mkdir -p $(LAB_SETTINGS) && echo '$(NO_NEWS)' > $(LAB_SETTINGS)/overrides.json

# From fresh kernels, in place. Times of day would change every file on every run. Widgets lose
# their outputs: without a kernel JupyterLab shows "model not found" in their place.
notebooks: $(VENV)/lab-$(WANTED)
	@$(call build_core)
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False \
	    --NotebookExporter.preprocessors=nbconvert.preprocessors.TagRemovePreprocessor \
	    --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_all_outputs_tags=live \
	    $(NOTEBOOKS)

# Copies to look at (make lab DIR=build/student), and a file that needs no checkout, to hand out.
# YEAR=2027: with the numbers of a year in the tasks, and its solutions for the instructor, see
# docs/instructors.md.
student: $(VENV)/lab-$(WANTED)
	$(BIN)/python -m qsr.course.student build/student $(NOTEBOOKS) $(YEAR)
	@$(BIN)/jupyter trust $(patsubst tutorials/%,build/student/%,$(NOTEBOOKS))
	$(BIN)/python -m qsr.course.package build/qsr-course.zip $(NOTEBOOKS) $(YEAR)
	$(if $(YEAR),$(BIN)/python -m qsr.course.student --solutions build/instructor $(NOTEBOOKS) $(YEAR))
	@$(if $(YEAR),$(BIN)/jupyter trust $(patsubst tutorials/%,build/instructor/%,$(NOTEBOOKS)))

# For a lecture: build/slides/00_enlarge_a_photo.html, which needs the folder beside it and no network.
slides: $(VENV)/lab-$(WANTED)
	$(BIN)/python -m qsr.course.slides build/slides $(NOTEBOOKS)

demo: $(VENV)/lab-$(WANTED)
	@$(call build_core)
	$(BIN)/qsr demo $(ARGS)

# The site shows what the models make of a picture. The banner is about a version that is not used.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

docs: $(VENV)/docs-$(WANTED)
	@$(call build_core)
	$(MKDOCS) build --strict $(ARGS)

docs-serve: $(VENV)/docs-$(WANTED)
	@$(call build_core)
	$(MKDOCS) serve $(ARGS)

# The paper's figures for the site. Some minutes: it trains.
figures: $(VENV)/lab-$(WANTED)
	@$(call build_core)
	@mkdir -p figures; for n in 1 2 3 4 5 6 7 8; do \
	    if $(BIN)/qsr reproduce figure$$n --transparent --json > figures/figure$$n.json; then \
	        cp figures/figure$$n.json figures/figure$$n.png docs/images/; fi; done

# All that shows what the models do, made again from their files after one was replaced. Hours of one
# core. Times of docs/benchmarks.md are of a quiet machine and stay; pictures of them get new decibels.
again: $(VENV)/lab-$(WANTED)
	@$(call build_core)
	$(BIN)/qsr reproduce cards --write
	$(BIN)/qsr reproduce heldout --measure
	$(MAKE) demo && cp demo/before_after*.png docs/images/
	for name in bench_network curve; do \
	    $(BIN)/qsr bench --redraw docs/images/$$name.json --plot docs/images/$$name.png || exit 1; done
	$(MAKE) figures
	$(MAKE) notebooks

lint: $(VENV)/test-$(WANTED)
	$(BIN)/ruff check qsr tests tutorials docs setup.py
	$(BIN)/ruff format --check qsr tests docs setup.py
	$(BIN)/mypy

# A run on the slow reference must not pass for a test of the kernels: QSR_NATIVE=require. Files run
# side by side, one thread each, in the order of tests/conftest.py; ARGS='-n0' runs them in a row.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: lint
	@QSR_NATIVE=require; export QSR_NATIVE; $(call build_core)
	QSR_NATIVE=require OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) \
	    --doctest-modules --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	    --durations=10 tests qsr $(NOTEBOOKS) $(ARGS)

# The native code once more, with sanitizers, in a cache of its own. Python itself leaks by design.
SANITIZED := tests/test_kernels.py tests/test_layer.py tests/test_pack.py tests/test_plan.py \
             tests/test_plan_file.py tests/test_residual.py tests/test_formulas.py \
             tests/test_swin.py tests/test_attention.py tests/test_tail.py \
             tests/test_fused_swin.py
SANITIZE = cxx=$${CXX:-c++}; \
	LD_PRELOAD="$$($$cxx -print-file-name=libasan.so) $$($$cxx -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	QSR_NATIVE=jit QSR_CACHE=$(CURDIR)/$(VENV)/sanitize \
	QSR_CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g1"
test-sanitize: $(VENV)/test-$(WANTED)
	@$(SANITIZE) $(BIN)/python -m pytest -q -p no:cacheprovider --disable-warnings \
	    -k "not opcheck and not compiled and not pytorch_asks" \
	    $(SANITIZED) $(ARGS)

# Odd arguments of the native operators, where a read beside a tensor ends the process.
fuzz-sanitize: $(VENV)/test-$(WANTED)
	@$(SANITIZE) $(BIN)/python -c 'from qsr.system import native; native.load()'
	@$(SANITIZE) OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz native --minutes $(MINUTES) $(ARGS)

# torch does not start under ThreadSanitizer, so the kernels run there without it.
test-threads: $(VENV)/test-$(WANTED)
	QSR_ALL_ROWS=1 $(BIN)/python -m pytest -q -p no:cacheprovider -k sanitizer tests/test_threads.py $(ARGS)

# What is too long for `make test`, whose short forms are there. `make soak-kills` is one part of it;
# the record of each is kept in docs/results/soak, with its date: commit it.
MINUTES ?= 10
SOAKS := kills fuzz memory installs classrooms graders sanitize fuzz-sanitize threads
SOAK_kills         = $(BIN)/python -m tests.kills $$(mktemp -d)
SOAK_fuzz          = $(BIN)/python -m tests.fuzz --minutes $(MINUTES)
SOAK_memory        = for args in "" "4 --scale 4" "1 --family t" "1 --family float"; do \
                         $(BIN)/python -m tests.memory_soak $$args || exit 1; done
SOAK_installs      = $(BIN)/python -m tests.installs $(PYTHONS)
SOAK_classrooms    = $(BIN)/python -m tests.classrooms
SOAK_graders       = $(BIN)/python -m tests.graders
SOAK_sanitize      = $(MAKE) --no-print-directory test-sanitize
SOAK_fuzz-sanitize = $(MAKE) --no-print-directory fuzz-sanitize
SOAK_threads       = $(MAKE) --no-print-directory test-threads
soak: $(SOAKS:%=soak-%)
$(SOAKS:%=soak-%): soak-%: $(VENV)/test-$(WANTED)
	@$(call build_core)
	@mkdir -p docs/results/soak
	@{ echo "$$(date +%F), commit $$(git rev-parse --short HEAD), $$(nproc) cores: make $@"; \
	   (OMP_NUM_THREADS=1; export OMP_NUM_THREADS; $(SOAK_$*)) 2>&1 || echo FAILED; } \
	   | grep -v -e resource_tracker -e warnings.warn | tee docs/results/soak/$*.txt
	@! grep -q FAILED docs/results/soak/$*.txt

fuzz: $(VENV)/test-$(WANTED)
	@$(call build_core)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(ARGS)

# Packages by version and hash, for every system at once. Versions stay unless ARGS=--upgrade. What
# torch alone needs for CUDA is left out: torch brings what its build wants.
OF_TORCH := torch cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 \
            nvidia-nccl-cu13 nvidia-nvshmem-cu13 triton
TOOLS := $(VENV)/tools
LOCK  := $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11.0 --generate-hashes \
         --no-annotate --custom-compile-command 'make lock' $(ARGS)
lock: $(TOOLS)
	@echo $(OF_TORCH) | tr ' ' '\n' > $(TOOLS)/of_torch.txt
	$(LOCK) --group tools -o .locks/tools.txt
	@for extra in test lab docs bench; do echo ".locks/$$extra.txt"; \
	    $(LOCK) --excludes $(TOOLS)/of_torch.txt --extra $$extra pyproject.toml \
	        -o .locks/$$extra.txt $$(test $$extra = test || echo -c .locks/test.txt) || exit 1; done

$(TOOLS): .locks/tools.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -rf $@ && $(PYTHON) -m venv $@
	@$@/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<

# What pip installs without a compiler, into dist/. auditwheel names it by the oldest Linux that it runs
# on and holds it to that; libraries of torch come with torch. PYTHONS='python3.12 ...': more CPythons
# whose headers are here, to be told facts about the processor by `qsr info`.
PYTHONS ?=
wheel: $(TOOLS) $(VENV)/test-$(WANTED)
	@$(call build_core)
	@rm -rf build/wheel dist/quantsr-* && mkdir -p dist
	@QSR_NATIVE=aot QSR_PYTHONS='$(PYTHONS)' $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w build/wheel .
	@PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" $(TOOLS)/bin/auditwheel repair --exclude 'libtorch*' \
	    --exclude 'libc10*' --wheel-dir dist build/wheel/quantsr-*.whl 2> build/auditwheel.log || \
	    { cat build/auditwheel.log; exit 1; }
	@$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' > build/sdist.log
	@$(BIN)/python -c 'from pathlib import Path; [print(f"{p}  {p.stat().st_size / 1e6:.2f} MB") \
	    for p in sorted(Path("dist").iterdir())]'

# For machines like this one that have no network: docs/install.md, "Twenty laptops".
wheelhouse: wheel
	@rm -rf $@ && mkdir $@
	@$(BIN)/python -m pip wheel --quiet --no-deps --require-hashes --wheel-dir $@ -r .locks/lab.txt
	@$(BIN)/python -m pip wheel --quiet --find-links $@ --wheel-dir $@ -r .locks/torch.txt
	@cp dist/quantsr-*.whl $@ && cp -r tutorials $@
	@du -sh $@

# Licences of what is installed, and known faults where a database of them can be reached.
audit: $(TOOLS) $(VENV)/test-$(WANTED)
	@$(TOOLS)/bin/pip-licenses --python=$(BIN)/python --order=license
	@said=$$($(TOOLS)/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps \
	    $(patsubst %,-r %,$(wildcard .locks/*.txt)) 2>&1); code=$$?; \
	case "$$said" in *"could not be audited"* | *onnect*) code=0; \
	    said="no database of known faults can be reached from here: nothing was audited";; esac; \
	echo "$$said"; exit $$code

# Without .venv: where a GPU is lent for minutes, its own Python has torch and CUDA, and no index.
OUT ?= gpu
gpu:
	$(PYTHON) -m qsr.bench.gpu $(OUT) $(ARGS)

# All its stages on the CPU with tiny networks; tests/test_gpu.py does the same.
gpu-rehearsal: $(VENV)/test-$(WANTED)
	@rm -rf build/gpu-rehearsal
	$(BIN)/python -m qsr.bench.gpu build/gpu-rehearsal --rehearse $(ARGS)

clean:
	rm -rf $(VENV) build dist wheelhouse site *.egg-info qsr/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis

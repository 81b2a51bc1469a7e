# MDM: what a person types. `make` alone lists it. Needs a Rust toolchain, a C++ compiler and Python 3 with pip.

PREFIX ?= /usr/local
DESTDIR ?=
# cpu or cuda. Left empty, an ONNX Runtime that is already there is kept, and a missing one is fetched for the CPU.
DEVICE ?=

CARGO ?= cargo
PYTHON ?= python3
CARGO_TARGET_DIR ?= target

RELEASE := $(CARGO_TARGET_DIR)/release
# Where things are installed; a shell may leave the ~ to us.
ROOT = $(DESTDIR)$(patsubst ~/%,$(HOME)/%,$(PREFIX))
COMMANDS := mdm-server-start mdm-server-terminate mdm-server-status mdm-infer mdm-bench mdm-model
FETCH := examples/setup/fetch_onnxruntime.py
CLIENTS_LIST := tests/door/official/requirements.txt
CLIENTS = $(CARGO_TARGET_DIR)/python
# Of this one only a program is wanted, whose Python is older than the clients' own.
PERF_LIST := tests/door/official/perf_analyzer.txt
PERF = $(CLIENTS)/perf_analyzer
# What the Python packages are built and tested with, and the wheels that their tests install.
PYTHON_LIST := python/requirements.txt
PYTHON_TOOLS = $(CARGO_TARGET_DIR)/python-tools
PYTHON_WHEELS = $(CARGO_TARGET_DIR)/python-wheels
WITH_PYTHON_TOOLS = PYTHONPATH='$(abspath $(PYTHON_TOOLS))' PYTHONDONTWRITEBYTECODE=1
# Each of these has to compile without the others; the first is none at all, and client,plugin is a model's author who
# calls the server too.
FEATURES := "" client plugin client,plugin server gateway

# $(call need,COMMAND,HOW TO GET IT): one clear line instead of a failure in the middle of a build.
need = command -v $(1) >/dev/null 2>&1 || { echo "error: '$(1)' was not found. $(2)" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help cargo toolchain python onnxruntime clients python-tools build wheel wheel-release demo ner demo-ner demo-image test test-python test-valgrind bench bench-doors bench-python bench-ner bench-image install uninstall clean fmt lint

help:
	@echo 'make demo                        fetch ONNX Runtime, build, and classify the handwritten digits on 2 workers'
	@echo 'make demo-ner                    a plugin finds the birth dates in 1,000 Chinese sentences on 2 workers'
	@echo 'make ner                         what the demo serves: the plugin and its proxy, in $(CARGO_TARGET_DIR)/ner/'
	@echo 'make demo-image                  the same with photographs of digits: decoded, classified and labelled by the server'
	@echo 'make test                        every test, each feature alone, and the documentation'
	@echo 'make test-python                 the tests of the Python client alone, and of the wheels in dist/ if they are built'
	@echo 'make wheel                       what `pip install mdm-serving --find-links dist` installs, into dist/'
	@echo 'make wheel-release               the same for every Linux since 2018 (manylinux_2_28), built with zig'
	@echo 'make test-valgrind               what malformed plugins do, under valgrind'
	@echo 'make build                       the commands, in $(RELEASE)/'
	@echo 'make bench                       the benchmarks: one table of ratios (minutes; BENCH=--quick: a look)'
	@echo 'make bench SERVER=PATH           the same, each of our servers measured in turn with the mdm-server-start at PATH'
	@echo 'make bench-doors                 the doors for HTTP and gRPC, to the ZeroMQ client and to bare servers'
	@echo 'make bench-python                the Python client beside a bare pair of pyzmq sockets (BENCH=--quick: a look)'
	@echo 'make bench-ner                   400 to 8,000 sentences on 1 to 8 workers: a table and a plot (minutes)'
	@echo 'make bench-image                 where an image is decoded: client, server, extra workers (BENCH=--quick: a look)'
	@echo 'make install PREFIX=/usr/local   the commands, the library and the header for plugins in C; DESTDIR for packagers'
	@echo 'make uninstall PREFIX=/usr/local'
	@echo 'make onnxruntime DEVICE=cpu|cuda the pinned ONNX Runtime library, into .onnxruntime/'
	@echo 'make clients                     the clients of others that tests run, in $(CARGO_TARGET_DIR)/python (make test does it)'
	@echo 'make fmt, make lint              rustfmt; clippy, warnings are errors'
	@echo 'make clean                       remove what was built (.onnxruntime/ stays)'

cargo:
	@$(call need,$(CARGO),Install Rust: https://rustup.rs)

toolchain: cargo
	@$(call need,$${CXX:-c++},libzmq is built from source and needs a C++ compiler; on Debian and Ubuntu: sudo apt-get install g++)

python:
	@$(call need,$(PYTHON),It fetches ONNX Runtime with pip; on Debian and Ubuntu: sudo apt-get install python3-pip)

onnxruntime: python
	@case '$(DEVICE)' in ''|cpu|cuda) ;; *) echo "error: DEVICE is '$(DEVICE)'; expected cpu or cuda" >&2; exit 1;; esac
	@$(PYTHON) $(FETCH) $(if $(DEVICE),--device $(DEVICE))

# The clients of others that tests run, about 600 MB. Where they cannot be had, those tests say so; with
# REQUIRE_CLIENTS=1 they fail.
clients: python
	@if ! cmp -s '$(CLIENTS_LIST)' '$(CLIENTS)/requirements.txt'; then \
		echo '$(PYTHON) -m pip install --target $(CLIENTS) -r $(CLIENTS_LIST)'; \
		rm -rf '$(CLIENTS)'; \
		if $(PYTHON) -m pip install -q --disable-pip-version-check --only-binary :all: --target '$(CLIENTS)' -r '$(CLIENTS_LIST)'; \
		then cp '$(CLIENTS_LIST)' '$(CLIENTS)/requirements.txt'; \
		else echo 'note: the clients could not be fetched; their tests will say that they were skipped' >&2; fi; \
	fi
	@if ! cmp -s '$(PERF_LIST)' '$(PERF)/perf_analyzer.txt'; then \
		echo '$(PYTHON) -m pip install --target $(PERF) -r $(PERF_LIST)'; \
		rm -rf '$(PERF)'; \
		if $(PYTHON) -m pip install -q --disable-pip-version-check --only-binary :all: --no-deps --target '$(PERF)' \
			--platform manylinux1_x86_64 --platform manylinux2014_x86_64 -r '$(PERF_LIST)'; \
		then cp '$(PERF_LIST)' '$(PERF)/perf_analyzer.txt'; \
		else echo 'note: perf_analyzer could not be fetched; its tests will say that they were skipped' >&2; fi; \
	fi

# As the clients of others: tests only read what is fetched here. The wheels are for each Python that is there, the oldest
# and the newest of which the tests use.
python-tools: python
	@if ! cmp -s '$(PYTHON_LIST)' '$(PYTHON_TOOLS)/requirements.txt'; then \
		echo '$(PYTHON) -m pip install --target $(PYTHON_TOOLS) -r $(PYTHON_LIST)'; \
		rm -rf '$(PYTHON_TOOLS)' '$(PYTHON_WHEELS)'; \
		if $(PYTHON) -m pip install -q --disable-pip-version-check --only-binary :all: --target '$(PYTHON_TOOLS)' -r '$(PYTHON_LIST)' && \
			$(PYTHON) python/tests/pythons.py --download '$(PYTHON_WHEELS)'; \
		then cp '$(PYTHON_LIST)' '$(PYTHON_TOOLS)/requirements.txt'; \
		else echo 'note: the packages could not be fetched; the tests of the Python client will say that they were skipped' >&2; fi; \
	fi

# How the commands in the wheel are compiled: release, or dev for a wheel that is only to be tested, of what the tests build anyway.
WHEEL_PROFILE ?= release
# The commands by maturin, and the client, which is pure Python, by flit.
WHEEL = cd python/mdm-serving && CARGO_TARGET_DIR='$(abspath $(CARGO_TARGET_DIR))' '$(abspath $(PYTHON_TOOLS))/bin/maturin' build --profile $(WHEEL_PROFILE) --out '$(abspath dist)'
CLIENT_WHEEL = cd python/mdm-client && $(WITH_PYTHON_TOOLS) $(PYTHON) -m flit_core.wheel --outdir '$(abspath dist)'
# flit makes a file that only its owner can read.
READABLE_WHEELS = chmod 644 dist/mdm_*.whl

wheel: toolchain python-tools
	rm -f dist/mdm_*.whl
	$(WHEEL)
	$(CLIENT_WHEEL)
	$(READABLE_WHEELS)

# zig brings the C library that manylinux_2_28 is named after. It has a folder of its own: pip replaces the bin/ of one that is
# there already.
wheel-release: toolchain python-tools
	rm -f dist/mdm_*.whl
	$(PYTHON) -m pip install -q --disable-pip-version-check --only-binary :all: --target '$(PYTHON_TOOLS)/zig' --upgrade ziglang
	PATH='$(abspath $(PYTHON_TOOLS))/bin':"$$PATH" PYTHONPATH='$(abspath $(PYTHON_TOOLS))/zig' && export PATH PYTHONPATH && \
		$(WHEEL) --zig --compatibility manylinux_2_28
	$(CLIENT_WHEEL)
	$(READABLE_WHEELS)

build: toolchain
	$(CARGO) build --release --locked

demo: toolchain onnxruntime
	$(CARGO) build --release --locked --bins --example digits
	$(RELEASE)/examples/digits

# As `make demo` does, `ner` builds all that the five steps of examples/ner/README.md use.
ner: toolchain onnxruntime
	$(CARGO) build --release --locked --bins --example ner --example ner-dump --example ner-client
	$(RELEASE)/examples/ner-dump '$(CARGO_TARGET_DIR)/ner'

demo-ner: ner
	@examples/ner/demo.sh '$(RELEASE)' '$(CARGO_TARGET_DIR)/ner'

# What it leaves in target/image is a folder to start a server over.
demo-image: toolchain onnxruntime
	$(CARGO) build --release --locked --bins --example image --example image-dump --example image-client
	$(RELEASE)/examples/image-dump $(CARGO_TARGET_DIR)/image
	$(RELEASE)/examples/image-client

# The tests come last, so that their closing lines are the last thing on the screen. `cargo test` runs the
# documentation's examples too.
test: toolchain onnxruntime clients python-tools
	@set -e; for features in $(FEATURES); do \
		echo "$(CARGO) check --locked --no-default-features --features '$$features'"; \
		$(CARGO) check --locked --no-default-features --features "$$features"; \
	done
	@set -e; for features in $(FEATURES); do \
		echo "$(CARGO) doc --locked --no-deps --lib --no-default-features --features '$$features'"; \
		RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --lib --no-default-features --features "$$features"; \
	done
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps
	$(CARGO) build --locked --bins --example echo_plugin
	@$(TEST_PYTHON)
	$(CARGO) test --locked

# The client's tests against the commands that were built last. Without their packages they say so; with REQUIRE_CLIENTS=1
# that is an error.
TEST_PYTHON = if test -e '$(PYTHON_TOOLS)/requirements.txt'; then \
	echo '$(PYTHON) -m pytest python'; \
	$(WITH_PYTHON_TOOLS) $(PYTHON) -m pytest -q -p no:cacheprovider python/mdm-client/tests python/tests && \
	(cd python/mdm-client && $(WITH_PYTHON_TOOLS) $(PYTHON) -m mypy --cache-dir '$(abspath $(CARGO_TARGET_DIR))/mypy'); \
	elif test -n "$$REQUIRE_CLIENTS"; then echo 'error: the packages for the tests in Python are not there: run `make python-tools`' >&2; exit 1; \
	else echo 'skipped: the tests in Python; `make python-tools` fetches what they need'; fi

test-python: toolchain onnxruntime python-tools
	$(CARGO) build --locked --bins --example echo_plugin
	@$(TEST_PYTHON)

# The host's side of the C interface, right and wrong plugins alike; needs no engine. Whole pages of C are compiled by
# the tests, whose children are not watched.
test-valgrind: toolchain
	@$(call need,valgrind,On Debian and Ubuntu: sudo apt-get install valgrind)
	@program=$$($(CARGO) test --locked --lib --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\)).*/\1/p') && \
		test -n "$$program" || { echo 'error: the tests do not compile; see `$(CARGO) test --lib`' >&2; exit 1; }; \
		echo "valgrind $$program plugin::host"; \
		valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite \
			$$program --test-threads=1 plugin::host

# More words for it in BENCH: --quick, and the parts that are wanted, as in BENCH='small large'.
bench: toolchain onnxruntime
	$(CARGO) build --locked --release --example echo_plugin
	$(CARGO) bench --locked --bench table -- $(BENCH) $(if $(SERVER),--server '$(patsubst ~/%,$(HOME)/%,$(SERVER))')

# The doors beside what they are made of.
bench-doors: toolchain onnxruntime
	$(CARGO) bench --locked --bench table -- doors $(BENCH)

# The client in Python, and the sizes of the wheels in dist/.
bench-python: toolchain onnxruntime python-tools
	$(CARGO) build --release --locked --bins
	TESTED_MDM_BIN='$(abspath $(RELEASE))' $(WITH_PYTHON_TOOLS) $(PYTHON) benches/python.py $(BENCH)

bench-ner: ner
	$(CARGO) bench --locked --bench ner

# More words for it in BENCH: --quick, --images 20, --rounds 2, digits, resnet50.
bench-image: toolchain onnxruntime
	$(CARGO) build --release --locked --example image
	$(CARGO) bench --locked --bench image -- $(BENCH)

# Which folders `make install` has made and `make uninstall` may take away, where they are empty: one a line below $(ROOT), and
# a dot for $(ROOT) itself and each folder above it.
FOLDERS_MADE = $(ROOT)/lib/mdm/folders-made

# Where there is no cargo, as for root under sudo, what `make build` left is installed.
# The commands look for the library in ../lib/mdm/ from where they are.
install: onnxruntime
	@if command -v $(CARGO) >/dev/null 2>&1; then $(MAKE) --no-print-directory build; fi
	@for command in $(COMMANDS); do test -x '$(RELEASE)'/$$command || { \
		echo "error: $(RELEASE)/$$command is not built; run 'make build' first" >&2; exit 1; }; done
	@made=; for folder in bin include lib; do test -d '$(ROOT)'/$$folder || made="$$made $$folder"; done; \
	folder='$(ROOT)'; while ! test -d "$$folder"; do made="$$made ."; folder=$$(dirname "$$folder"); done; \
	echo install -d '$(ROOT)/bin' '$(ROOT)/include' '$(ROOT)/lib/mdm'; \
	install -d '$(ROOT)/bin' '$(ROOT)/include' '$(ROOT)/lib/mdm' && \
	printf '%s\n' $$made >> '$(FOLDERS_MADE)'
	install -m 755 $(COMMANDS:%='$(RELEASE)/%') '$(ROOT)/bin/'
	install -m 644 src/model/mdm_model.h '$(ROOT)/include/'
	rm -f '$(ROOT)/lib/mdm/'libonnxruntime*
	install -m 644 .onnxruntime/libonnxruntime* .onnxruntime/LICENSE .onnxruntime/ThirdPartyNotices.txt '$(ROOT)/lib/mdm/'

uninstall:
	rm -f $(COMMANDS:%='$(ROOT)/bin/%')
	rm -f '$(ROOT)/lib/mdm/'libonnxruntime* '$(ROOT)/lib/mdm/LICENSE' '$(ROOT)/lib/mdm/ThirdPartyNotices.txt'
	rm -f '$(ROOT)/include/mdm_model.h'
	@made=$$(cat '$(FOLDERS_MADE)' 2>/dev/null); rm -f '$(FOLDERS_MADE)'; \
	if test -d '$(ROOT)/lib/mdm'; then rmdir '$(ROOT)/lib/mdm'; fi; \
	above='$(ROOT)'; for folder in $$made; do \
		case $$folder in .) folder=$$above; above=$$(dirname "$$above");; *) folder='$(ROOT)'/$$folder;; esac; \
		rmdir "$$folder" 2>/dev/null || true; \
	done

clean: cargo
	$(CARGO) clean

fmt: cargo
	$(CARGO) fmt --all

lint: toolchain
	$(CARGO) clippy --all-targets --locked -- -D warnings

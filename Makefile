# Two commands: `make run` forwards for real, `make test` sets up and passes every test.
# `make install` (root) installs for the machine: the package in a folder of its own, command, unit, manual pages.
# The environment is .venv, made here; PYTHON names the interpreter that makes it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
COMMA  := ,
NATIVE := $(wildcard _fastpath/*.pyx _fastpath/*/*.pxd _fastpath/*.py _package/*.py)
BENCH  := bench/pyproject.toml $(wildcard bench/native/*)

# Where `make install` installs; DESTDIR, for those who make packages, stands before all of it.
PREFIX   ?= /usr/local
LIBRARY  := $(PREFIX)/lib/oinetd
INSTALLED_PYTHON ?= $(LIBRARY)/bin/python
SHARE    := $(DESTDIR)$(PREFIX)/share
COMPLETIONS := bash-completion/completions/oinetd zsh/site-functions/_oinetd fish/vendor_completions.d/oinetd.fish

.PHONY: run test check docs bench bench-full bench-check package-check package-test sanitize fuzz soak build wheel sbom deb install install-files clean

# Without a network pip prints a page of errors: one sentence replaces it. Other errors of pip are printed.
define INSTALL
$(PIP) install $(1) >$(VENV)/pip.log 2>&1 || { \
  if grep -qE '$(OFFLINE)' $(VENV)/pip.log; \
  then echo '$(2): the package index cannot be reached: connect to the network, or set PIP_INDEX_URL to one that can be' >&2; \
  else cat $(VENV)/pip.log >&2; fi; exit 1; }
endef
OFFLINE := Temporary failure in name resolution|Name or service not known|Network is unreachable|Connection refused|Connection to [^ ]* timed out|Read timed out|Cannot connect to proxy

run: $(VENV)/built
	@$(BIN)/oinetd demo

test: $(VENV)/test-ready
	@sh tests/prerequisites.sh
	@$(BIN)/python -m pytest -n 2

check: $(VENV)/check-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" cython-lint --max-line-length 120 _fastpath bench/native
	$(BIN)/stubtest oinetd._fastpath bench._native

# What is made in the pages: the drawing from its text, the figures and plots from bench/results.
docs: docs/architecture.svg $(VENV)/test-ready
	@$(BIN)/python -m bench report --pages

# A quick run of everything, with a page: five minutes, as root, on a machine that does nothing else.
bench: $(VENV)/test-ready
	@$(BIN)/python -m bench quick --out build/bench --page build/bench/page.html

# The figures of README.md and of pages in docs: two full runs, whether they agree, and the pages. Forty minutes, as
# root, on a machine that does nothing else. RESUME=1 goes on where a run ended, TRIAL=1 sees in some minutes that all works.
bench-full: $(VENV)/test-ready
	@$(BIN)/python -m bench publish $(if $(RESUME),--resume) $(if $(TRIAL),--trial --out build/trial)

# Whether this tree is worse than the commit that it comes from: under ten minutes, as root. BASE names another one.
BASE ?= $(shell git merge-base HEAD origin/main 2>/dev/null || git rev-parse HEAD)
bench-check: $(VENV)/test-ready
	@$(BIN)/python -m bench compare $(BASE) . --out build/bench

docs/architecture.svg: docs/architecture.dot
	@command -v dot >/dev/null || { echo 'graphviz is missing. Debian: apt install graphviz'; exit 1; }
	dot -Tsvg -o $@ $<

# The engine tests under the address, undefined-behaviour and thread sanitizers, on a build of its own.
sanitize: $(VENV)/test-ready
	@$(PIP) install 'cython>=3.1' 'setuptools>=77'
	sh tests/sanitize.sh address -n 2
	sh tests/sanitize.sh thread

# The native parsers of what clients send, fuzzed for FUZZ_SECONDS (60) with libFuzzer; FUZZ_SEED repeats a run.
fuzz: $(VENV)/test-ready
	@command -v clang >/dev/null || { echo 'clang is missing. Debian: apt install clang'; exit 1; }
	@$(PIP) install 'cython>=3.1'
	sh tests/fuzz/run.sh $(or $(FUZZ_SECONDS),60) $(or $(FUZZ_SEED),0)

# What is installed: the distributions, the Debian package, the container, several machines, and the unit under systemd in
# systemd-nspawn. The first run makes folders with debootstrap (root, network, ten minutes, 1 GB in
# /var/cache/oinetd-tests). Once the folder of the guest is there, `make test` runs tests/systemd, too (25 s).
package-test: $(VENV)/package-ready
	@OINETD_MAKE_GUEST=1 OINETD_PACKAGE_TESTS=1 $(BIN)/python -m pytest tests/systemd tests/packages tests/faults

# The part of it that makes no folder of a Debian and takes minutes: what CI runs.
package-check: $(VENV)/package-ready
	@OINETD_PACKAGE_TESTS=1 $(BIN)/python -m pytest \
	  $(patsubst %,tests/packages/test_%.py,distributions kubernetes container)

# Long runs of the load drivers: keyed streams, denials that race, calls that fail at random. SOAK_SEED repeats one.
soak: export SOAK_SECONDS ?= 300
soak: $(VENV)/test-ready
	@$(BIN)/python -m pytest -s tests/soak tests/engine/native/test_relay.py
	sh tests/sanitize.sh faults -s
	@[ "$$(id -u)" != 0 ] || $(BIN)/python -m tests.faults --minutes $$(( ($(SOAK_SECONDS) + 59) / 60 ))

build: $(VENV)/built

# A wheel to publish: built with the very files that constraints-build.txt names, whatever the index offers.
wheel: $(BIN)/python
	@rm -rf build/wheel-env && $(PYTHON) -m venv build/wheel-env
	@build/wheel-env/bin/python -m pip --quiet --disable-pip-version-check install \
	  --require-hashes --no-deps --only-binary :all: --requirement constraints-build.txt
	@build/wheel-env/bin/python -m pip --disable-pip-version-check wheel \
	  --no-build-isolation --no-deps --wheel-dir dist .

# The Debian package, for the release of Debian that this is: in dist/. What it is built with is pinned, see debian/README.source.
DEB := build/deb/oinetd
deb:
	@command -v dh >/dev/null && command -v pybuild >/dev/null && command -v dpkg-buildpackage >/dev/null \
	  || { echo 'debhelper is missing. Debian: apt install dpkg-dev debhelper dh-python pybuild-plugin-pyproject python3-dev'; exit 1; }
	@rm -rf build/deb && mkdir -p $(DEB) dist
	@tar -c --exclude-from=debian/not-in-source --exclude-vcs . | tar -x -C $(DEB)
	@/usr/bin/python3 -m venv build/deb/env && build/deb/env/bin/python -m pip --quiet --disable-pip-version-check install \
	  --require-hashes --no-deps --only-binary :all: --target $(DEB)/build-tools --requirement constraints-build.txt
	@cd $(DEB) && PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage --build=binary --no-sign >../build.log 2>&1 || { cat ../build.log >&2; exit 1; }
	@rm -f dist/oinetd*.deb && cp build/deb/oinetd_*.deb dist/ && ls dist/oinetd_*.deb

# The bill of materials of a release, in CycloneDX's format: what is installed with oinetd, in an environment of its own.
SBOM ?= dist/oinetd.cdx.json
sbom: $(VENV)/package-ready
	@rm -rf build/sbom-env && $(PYTHON) -m venv --without-pip build/sbom-env && mkdir -p $(dir $(SBOM))
	@$(PIP) --python build/sbom-env/bin/python install .
	@$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --mc-type application \
	  --output-file $(SBOM) build/sbom-env/bin/python 2>build/sbom.log || { cat build/sbom.log >&2; exit 1; }

install: $(BIN)/python install-files
	@$(PYTHON) -m venv --without-pip $(DESTDIR)$(LIBRARY)
	@$(BIN)/python -m pip --quiet --disable-pip-version-check --python $(DESTDIR)$(LIBRARY)/bin/python install .
	@for file in $(COMPLETIONS); do install -D -m 644 $(DESTDIR)$(LIBRARY)/share/$$file $(SHARE)/$$file; done
	@echo 'installed $(PREFIX)/bin/oinetd; next: a configuration in /etc/oinetd.conf, systemctl enable --now oinetd'

# All but the package. -I: the command looks at no PYTHON* variable and in no folder of its user.
install-files:
	@install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)/etc/logrotate.d
	@install -d $(SHARE)/man/man8 $(SHARE)/man/man5 $(SHARE)/oinetd
	@printf '#!%s -I\nimport sys\n\nfrom oinetd.process.cli import main\n\nsys.exit(main())\n' $(INSTALLED_PYTHON) \
	  > $(DESTDIR)$(PREFIX)/bin/oinetd
	@chmod 755 $(DESTDIR)$(PREFIX)/bin/oinetd
	@sed 's|/usr/bin/oinetd|$(PREFIX)/bin/oinetd|' conf/oinetd.service \
	  > $(DESTDIR)$(PREFIX)/lib/systemd/system/oinetd.service
	@install -m 644 conf/oinetd.logrotate $(DESTDIR)/etc/logrotate.d/oinetd
	@install -m 644 man/oinetd.8 $(SHARE)/man/man8/
	@install -m 644 man/oinetd.conf.5 $(SHARE)/man/man5/
	@install -m 644 conf/oinetd.conf conf/oinetd.socket $(SHARE)/oinetd/

clean:
	rm -rf $(VENV) build dist *.egg-info oinetd/_*.so _fastpath/*.c bench/build bench/*.egg-info bench/_*.so bench/native/*.c

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'oinetd needs Python 3.11 or newer. Debian: apt install python3, or make PYTHON=/path/to/python'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo 'Python has no venv module. Debian: apt install python3-venv'; exit 1; }
	@echo 'making the environment $(VENV)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/built: $(BIN)/python pyproject.toml $(NATIVE)
	@command -v cc >/dev/null || command -v gcc >/dev/null \
	  || echo 'No C compiler: the native engine is left out, the Python engine serves. Debian: apt install gcc'
	@$(BIN)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' \
	  || echo 'No Python.h: the native engine is left out, the Python engine serves. Debian: apt install python3-dev'
	@echo 'building oinetd'
	@$(call INSTALL,--editable .,oinetd is not built)
	@touch $@

$(VENV)/test-ready: $(VENV)/built $(BENCH)
	@echo 'installing what the tests need'
	@$(call INSTALL,--editable '.[test]' --editable bench,the tests cannot run)
	@touch $@

$(VENV)/package-ready: $(VENV)/test-ready
	@$(call INSTALL,--editable '.[test$(COMMA)package]',the packages cannot be made)
	@touch $@

$(VENV)/check-ready: $(VENV)/test-ready
	@$(call INSTALL,--editable '.[test$(COMMA)check]',the checks cannot run)
	@touch $@

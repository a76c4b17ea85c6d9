# Two commands do everything on a fresh Debian 12 or 13 machine: `make run` and `make test`.
# Debian's own Python where there is one: what a host runs, and faster than one that was built without optimization.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help run test test-all test-on check quick sim bench lab lab-lvm lab-readme fuzz man deb rpm clean setup

help:
	@echo "make run     set up, then guard a real QEMU with holdfastd and show a refused second start"
	@echo "make test    set up what the tests need (Debian packages too, when root) and run them all"
	@echo "make test-all   the same and the tests that wait for minutes, for dead bounds of real sanlocks; and e2e with libvirt's hook on all hosts (TESTS='--tiers interop')"
	@echo "make test-on DISTRO=trixie   both in another Debian release (bookworm, trixie, forky): root, mmdebstrap (TESTS=)"
	@echo "make check   ruff and mypy --strict"
	@echo "make quick   the same and the unit tests: between two edits"
	@echo "make sim     1500 fresh seeds of the simulator, about three minutes (SEEDS=, FIRST=)"
	@echo "make bench   figures beside Debian's virtlockd and sanlock, in one run"
	@echo "make lab     guests with their own kernel and watchdog: a host that hangs is reset before another takes over, about 50 minutes (CASES=); then lab-readme"
	@echo "make lab-lvm two such guests with a shared volume group and the real lvmlockd, also with libvirt and VMs, 10 to 30 minutes a suite (SUITES=)"
	@echo "make lab-readme   two such guests with systemd: README followed from the package to a VM that outlives its host, about 15 minutes (CASES=; DISTRO=trixie: hosts of Debian 13)"
	@echo "make man     manual pages of the commands, the daemon, the hook and the configuration, into build/man"
	@echo "make deb     Debian packages for this release, or for another one (DISTRO=trixie), into build/deb"
	@echo "make rpm     RPM packages for the Python of this machine, into build/rpm (Fedora, RHEL and its kin)"
	@echo "make fuzz    fuzzing of what is read from clients, files and storage (atheris), of both sockets and of lease storage, each of a live daemon (FUZZ_S=)"

$(STAMP): pyproject.toml tools/setup-venv
	@PYTHON="$(PYTHON)" tools/setup-venv $(VENV) dev
	@touch $@

setup: $(STAMP)

run: 
	@tools/debian-packages run
	@PYTHON="$(PYTHON)" $(MAKE) -s $(STAMP)
	@$(BIN)/python tools/demo.py

test-on:
	@tools/test-on $(or $(DISTRO),trixie) sh -c 'make -s run && make -s test TESTS="$$1"' make "$(TESTS)"

test:
	@tools/debian-packages test
	@PYTHON="$(PYTHON)" $(MAKE) -s $(STAMP)
	@$(MAKE) -s check
	@$(BIN)/python tools/run_tests.py $(TESTS)

test-all:
	@tools/debian-packages long
	@$(MAKE) -s test TESTS="--all $(TESTS)"
	@$(BIN)/python tools/run_tests.py -m "not long" --hook tests/e2e

check: $(STAMP)
	@$(BIN)/ruff check --no-cache src tests bench lab tools
	@$(BIN)/ruff format --check --no-cache src tests bench lab tools
	@$(BIN)/mypy

quick: check
	@$(BIN)/python tools/run_tests.py --tiers unit

SEEDS ?= 1500
# Fresh ones each time: seconds since the epoch, so that no two runs play the same.
FIRST ?= $(shell date +%s)

sim: $(STAMP)
	@$(BIN)/holdfast sim --first $(FIRST) --seeds $(SEEDS)

bench: 
	@tools/debian-packages test
	@PYTHON="$(PYTHON)" $(MAKE) -s $(STAMP)
	@$(BIN)/python bench/run.py

lab:
	@tools/debian-packages lab
	@PYTHON="$(PYTHON)" $(MAKE) -s $(STAMP)
	@$(BIN)/python -m lab.fencing $(CASES)
	@$(if $(CASES),true,$(BIN)/python -m lab.readme)

lab-readme:
	@tools/debian-packages lab
	@PYTHON="$(PYTHON)" $(MAKE) -s $(STAMP)
	@$(BIN)/python -m lab.readme $(if $(DISTRO),--distro $(DISTRO)) $(CASES)

lab-lvm:
	@tools/debian-packages lab
	@PYTHON="$(PYTHON)" $(MAKE) -s $(STAMP)
	@$(BIN)/python -m lab.lvm $(SUITES)

# An hour of it belongs to a release: make fuzz FUZZ_S=3600
FUZZ_S ?= 180

fuzz: $(STAMP)
	@tools/debian-packages test
	@$(BIN)/pip install -q -e '.[fuzz]'
	@$(BIN)/python tests/fuzz/atheris_frames.py -max_total_time=$$(( $(FUZZ_S) / 3 ))
	@$(BIN)/python -m tests.fuzz.live_sockets $$(( $(FUZZ_S) / 3 ))
	@$(BIN)/python -m tests.fuzz.damaged_storage $$(( $(FUZZ_S) / 3 ))

man: $(STAMP)
	@$(BIN)/python tools/man_pages.py build/man

deb:
	@tools/deb $(DISTRO)

rpm:
	@tools/rpm

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build

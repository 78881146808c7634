# The commands of this project, for people and for the build server alike. `make help` lists them.
# The work is in scripts/, so that each of them also runs by itself.

SHELL := bash
.DEFAULT_GOAL := help
# Cargo builds in parallel already; two of these at once would only wait for its lock.
.NOTPARALLEL:
.PHONY: help demo test sim torture million lint lint-deps fuzz setup bench bench-setup

# Arguments for the command behind a target: make demo ARGS="--targets 5", make bench ARGS=--quick
ARGS ?=

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@printf '\n  ARGS="..." goes to the command: make demo ARGS="--targets 5", make bench ARGS=--quick\n'

demo: ## build, then run a master and four agents here and watch them work
	@scripts/demo.sh $(ARGS)

test: ## format, lints and all tests; says first what this machine cannot do
	@scripts/test.sh $(ARGS)

sim: ## the state machines under simulated faults, by seed: ARGS="--seeds 10000", "--kind links --seed 7"
	@scripts/sim.sh $(ARGS)

torture: ## random work under random faults, then everything is compared: ARGS="--seconds 3600 --seed 7"
	@scripts/torture.sh $(ARGS)

million: ## many files, times and memory: ARGS="--files 1000000 --shape one-folder", or "--ledger 10000000"
	@scripts/million.sh $(ARGS)

lint: ## format, clippy and documentation, warnings as errors; cargo deny where installed
	@scripts/lint.sh

lint-deps: ## licences, bans, sources and advisories of all crates (installs cargo-deny: minutes)
	@scripts/lint-deps.sh

fuzz: ## feed noise to every decoder: ARGS="--seconds 60 [--keep] [TARGET..]" (installs cargo-fuzz)
	@scripts/fuzz.sh $(ARGS)

setup: ## install what building and testing need (Debian, as root), check the Rust toolchain
	@scripts/setup.sh

bench: ## measure, side by side with rsync, lsyncd and Syncthing where installed (root)
	@python3 bench/run.py $(ARGS)

bench-setup: ## install the peers to measure against, and two kernel trees (Debian, as root)
	@scripts/bench-setup.sh

# The ways to use this repository. A fresh Debian 12 with a Rust toolchain is enough: each target first installs what it
# lacks (scripts/setup.sh), with sudo when it is not root.

export PATH := $(CURDIR)/target/tools:$(PATH):/usr/sbin:/sbin
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: help run test check lint unit-file release bench fuzz

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

run: ## Build and start the demo: three origins and a gateway on 127.0.0.1:8080
	@scripts/setup.sh build
	# Optimised but not link-time optimised: that would be minutes before the first answer.
	cargo build --locked --profile quick --bin gatewright
	exec target/quick/gatewright demo

test: ## Everything that CI runs
	@scripts/setup.sh test
	$(MAKE) --no-print-directory lint unit-file
	log=$$(mktemp)
	trap 'rm -f "$$log"' EXIT
	# Not --all-targets: that builds examples as test harnesses only, and a test drives one as the program it is.
	cargo test --locked 2>&1 | tee "$$log"
	cargo test --locked --benches 2>&1 | tee -a "$$log"
	echo
	echo "In short:"
	grep -E '^(test result:|test .* FAILED)' "$$log"

check: lint ## What is quick: formatting, lints, unit tests
	cargo test --locked --lib

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	shellcheck -x scripts/*.sh benches/wrk/*.sh benches/limits/*.sh .ci/run

# systemd takes both units without a word, and the exposure of the service is at most 2.0 of 10.
unit-file:
	units=$$(mktemp -d)
	trap 'rm -rf "$$units"' EXIT
	cp systemd/gatewright.socket "$$units"
	# Whether the program is there is not the unit's to say.
	sed 's,/usr/bin/gatewright,/bin/true,' systemd/gatewright.service >"$$units/gatewright.service"
	said=$$(systemd-analyze verify --man=no "$$units"/gatewright.* 2>&1) || { echo "$$said"; exit 1; }
	# It only warns of keys that it does not know.
	[[ -z $$said ]] || { echo "$$said"; exit 1; }
	systemd-analyze security --offline=true --threshold=20 --no-pager systemd/gatewright.service | tail -n 1

release: ## The binary to install, built and laid out by what training traffic uses: target/pgo/gatewright
	@scripts/setup.sh bench
	benches/wrk/pgo.sh

bench: ## CPU, throughput and latency next to a bare Pingora proxy, nginx and HAProxy
	@scripts/setup.sh bench
	benches/wrk/run.sh $(ARGS)

# Without cargo-fuzz and without a nightly compiler: what cargo-fuzz passes to the compiler, less the address sanitizer, which
# has little to find in code without `unsafe`. RUNS=0 runs until there is a finding.
RUNS ?= 10000000
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_FLAGS = --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1

fuzz: ## Each parser of untrusted bytes under libFuzzer, 10 million runs or RUNS=n
	@scripts/setup.sh build
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --locked --release --target $(FUZZ_HOST) --manifest-path fuzz/Cargo.toml
	for target in head canonical_path proxy_protocol chunks answer; do
		mkdir -p fuzz/artifacts/$$target
		# New inputs go to a directory of their own: the committed corpus stays small.
		mkdir -p fuzz/target/corpus/$$target
		fuzz/target/$(FUZZ_HOST)/release/$$target -runs=$(RUNS) -max_len=4096 -artifact_prefix=fuzz/artifacts/$$target/ \
			fuzz/target/corpus/$$target fuzz/corpus/$$target
	done

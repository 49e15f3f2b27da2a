# What can be done with this tree. `make` alone lists it. Everything is built under $(TARGET); nothing is installed outside it,
# except Debian packages by `make demo` and .ci/run, which say so.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export CARGO_TARGET_DIR ?= $(CURDIR)/target
TARGET := $(CARGO_TARGET_DIR)
TOOLS := $(TARGET)/tools
# What `coretunnel version` says it was built from.
export CORETUNNEL_GIT_REVISION ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
export PATH := $(TOOLS)/bin:$(PATH):/usr/sbin:/sbin

DENY_VERSION := 0.20.2
FUZZ_SECONDS ?= 60
OUTPUT := $(TARGET)/test-output.txt
# Not those that compare times: a checked program spends its own where another does not.
ASAN_TESTS := connecting drops exhaustion foreign incoming posts resets shares sockets splice

.PHONY: help
help: ## This list
	@echo "coretunnel: a node proxy for ambient mesh. First time here? make demo, then docs/ARCHITECTURE.md."; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' Makefile; echo
	@echo "  One crate's tests: cargo test -p mesh-state.  One test: cargo test -p testbed --test mesh_policy a_name"
	@echo "  (testbed's tests run the real daemon: cargo build -p coretunnel first; they need root, ip and iptables)."

.PHONY: demo
demo: ## Two nodes, two tenants, what the mesh does for them; installs what is missing, as root, under 2 minutes after the build
	@.ci/need demo
	cargo build --release -p coretunnel
	cargo build --release -p testbed --bin mesh-demo
	@$(TARGET)/release/mesh-demo

.PHONY: test
test: ## Every test, as root; fails if one can't run, is ignored, or is named by docs/REQUIREMENTS.md and did not pass
	@.ci/need --check test
	cargo build -p coretunnel
	@mkdir -p $(TARGET)
	cargo test --workspace --exclude inpod --no-fail-fast 2>&1 | tee $(OUTPUT)
	@# By itself: its tests count descriptors in tables of their own, which lack the one that tokio's signals keep for the
	@# whole process, and a build of the workspace compiles signals into every crate's tokio.
	cargo test -p inpod --no-fail-fast 2>&1 | tee -a $(OUTPUT)
	cargo test -p benches --benches 2>&1 | tee -a $(OUTPUT)
	cargo run -q -p testbed --bin requirements-check -- docs/REQUIREMENTS.md $(OUTPUT)

.PHONY: check
check: ## Format, clippy, licences and bans, rustdoc, the tree's own rules: warnings are errors
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is missing: make tools (some minutes)"; exit 1; }
	cargo deny --all-features --config .cargo/deny.toml check bans licenses sources
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	cargo test -q -p testbed --test tidy

.PHONY: fmt
fmt: ## Format every crate
	cargo fmt --all

.PHONY: bench
bench: ## Criterion benches (benches/), then the data path's figures through two nodes, as root
	cargo bench -p benches --bench decisions
	@.ci/need --check test
	cargo build --release -p coretunnel
	cargo build --release -p testbed --bin mesh-bench
	@$(TARGET)/release/mesh-bench

.PHONY: bench-mesh
bench-mesh: ## What a mesh of a million workloads costs: memory, build, change, lookups; the last line is one JSON object
	@cargo bench -p benches --bench mesh

.PHONY: bench-engine
bench-engine: ## The engine by itself on two CPUs: against tokio, shares, isolation; last line JSON, under 10 minutes after the build
	cargo build --release -p perf-tests --bin bench-engine
	@$(TARGET)/release/bench-engine

.PHONY: bench-config
bench-config: ## What configuration costs: gaps, memory, CPU, certificates, as root in 10 minutes; the last line is one JSON object
	@.ci/need --check test
	cargo build --release -p coretunnel -p bench-config
	@$(TARGET)/release/bench-config

.PHONY: interop
interop: ## With real peers, as root: Envoy both ways, then istio's own istiod, CA and CNI agent (needs Go; says what is missing)
	@.ci/need --check interop
	@$(MAKE) interop-envoy
	@$(MAKE) interop-istio

.PHONY: interop-envoy
interop-envoy: ## Both ways with a real Envoy (pinned, checked, installed under target), as root
	@.ci/need --check test
	cargo build -p coretunnel
	ENVOY_BIN="$$(perf-tests/interop/install-envoy)" cargo test -p testbed --features interop --test interop_envoy

.PHONY: interop-istio
interop-istio: ## With istio's own istiod, CA and CNI agent (pinned, built under target in some minutes), as root
	@.ci/need --check interop
	cargo build -p coretunnel
	ISTIO_PEERS_BIN="$$(perf-tests/interop/build-istio-peers)" \
		cargo test -p testbed --features interop --test interop_zds --test interop_istiod

.PHONY: fuzz
fuzz: ## A CPU-minute of each fuzz target of each crate (FUZZ_SECONDS=60), with the pinned compiler
	@.ci/fuzz $(FUZZ_SECONDS)

.PHONY: asan
asan: ## The reactor's tests of sockets, posts, shares and drops under AddressSanitizer: no memory is used that is freed
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$(TARGET)/asan \
		cargo test -p reactor --lib $(addprefix --test ,$(ASAN_TESTS)) --target "$$(rustc -vV | sed -n 's/^host: //p')"

.PHONY: tools
tools: ## Installs cargo-deny under target/tools, if it is not there
	@command -v cargo-deny >/dev/null || \
		CARGO_TARGET_DIR=$(TARGET)/tools-build cargo install cargo-deny --locked --debug --version $(DENY_VERSION) --root $(TOOLS)

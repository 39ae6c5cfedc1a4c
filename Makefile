# Every check of this project is a target here; .ci/run and contributors call the same ones.   make help

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PKG      ?= ./...
FUZZTIME ?= 10s
BENCH    ?= .
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COUNT    ?= 10
REQUESTS ?= 40
# run by version and not a tool in go.mod: its few hundred dependencies would become this module's
GOLANGCI ?= go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: help
help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'variables: PKG=./... FUZZTIME=10s BENCH=. COUNT=10 OLD=file REQUESTS=40'

##### one check each

.PHONY: fmt
fmt: ## Format all Go files
	gofmt -w .

.PHONY: fmt-check
fmt-check: ## Fail when a Go file is not formatted
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "not formatted, run make fmt:"; echo "$$out"; exit 1; }

.PHONY: vet
vet: ## go vet
	go vet $(PKG)

.PHONY: fix-check
fix-check: ## Fail when go fix would modernise something (go fix ./... does it)
	go fix -diff $(PKG)

.PHONY: tidy-check
tidy-check: ## Fail when go.mod or go.sum is not tidy
	go mod tidy -diff

.PHONY: lint
lint: ## golangci-lint (.golangci.yml); compiling it takes some two minutes the first time
	$(GOLANGCI) run $(PKG)

.PHONY: deps
deps: ## Fail when a package imports against the direction of dependencies
	go test ./internal/deps

.PHONY: build
build: ## Compile everything
	go build ./...

.PHONY: binary
binary: ## bin/kvtier as a release has it: static, stripped, stamped with the version from git
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -buildid= -X main.version=$(VERSION)' -o bin/kvtier ./cmd/kvtier

.PHONY: test
test: ## All tests; those that need a container are skipped without Docker
	go test -timeout 25m $(PKG)

.PHONY: race
race: ## All tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race -timeout 25m $(PKG)

.PHONY: integration
integration: ## Tests against real Redis containers; a missing Docker is a failure
	KVTIER_REQUIRE_CONTAINERS=1 go test -count=1 -timeout 25m ./integration/... ./store/redisstore/...

.PHONY: clients
clients: ## The clients of OpenAI's API that people use, against real workers: the table of docs/API.md (UPDATE=1 writes it)
	clients/make-env .cache/clients
	.cache/clients/lint/bin/ruff check -q clients
	.cache/clients/lint/bin/ruff format -q --check clients
	KVTIER_CLIENTS=$(CURDIR)/.cache/clients KVTIER_REQUIRE_CONTAINERS=1 go test -count=1 -timeout 25m -parallel 3 -run '^TestClients$$' -v ./integration $(if $(UPDATE),-update-clients)

.PHONY: redis-7.0
redis-7.0: ## The tests of the store, the coordinator and fleets against the Redis of Debian 12 and Ubuntu 24.04
	deploy/offline/image.sh redis:7.0.15
	KVTIER_REQUIRE_CONTAINERS=1 KVTIER_TEST_REDIS_IMAGE=redis:7.0.15 go test -count=1 -timeout 15m ./store/redisstore ./coordinator
	KVTIER_REQUIRE_CONTAINERS=1 KVTIER_TEST_REDIS_IMAGE=redis:7.0.15 go test -count=1 -timeout 15m -run 'EveryKindOfRedis|Sentinel|Cluster|SlotsMigrate|WorkersShare|Activation|MayGoAway|RolesCan|FullServer|EvictionStorm|WarmupBeforeTraffic|BadRedis|RevocationLatency' ./integration

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME
	FUZZTIME=$(FUZZTIME) .ci/fuzz $(PKG)

.PHONY: mutations
mutations: ## Seed protocol bugs one by one; fail when a check misses one
	go test -tags kvtier_mutations -timeout 40m -run Mutant -count=1 -v ./internal/stalecheck

.PHONY: invariants
invariants: ## The cache's tests with poisoned buffers and checked reference counts
	go test -tags invariants ./tiered

.PHONY: stale
stale: ## Ten million simulated operations under every fault
	go test -count=1 -timeout 20m ./internal/stalecheck -ops 10000000

.PHONY: soak
soak: ## A hundred million of them
	go run ./cmd/kvtier check stale --ops 100000000

.PHONY: check
check: fmt-check vet fix-check tidy-check lint deps licences test race ## What a change must pass

##### looking closer

.PHONY: cover
cover: ## Test coverage: coverage.out, coverage.html and the total
	go test -coverpkg=./... -coverprofile=coverage.out $(PKG)
	go tool cover -html=coverage.out -o coverage.html
	@go tool cover -func=coverage.out | tail -n 1

.PHONY: bench
bench: ## Benchmarks into bench.out, summed up by benchstat; OLD=file compares with an earlier bench.out
	go test -run='^$$' -bench='$(BENCH)' -benchmem -count=$(COUNT) -timeout 2h $(PKG) | tee bench.out
	go tool benchstat $(OLD) bench.out

.PHONY: faults
faults: ## Break Redis in every way, on a redis-server of its own; writes docs/FAULTS.md (REQUESTS=40)
	benchmarks/faults.sh $(REQUESTS)

.PHONY: demo
demo: ## Two workers and a shared tier in one process
	go run ./cmd/kvtier demo

##### containers

.PHONY: images-offline
images-offline: ## Docker, compose and every image, with or without a registry (root on Debian)
	deploy/offline/images.sh

.PHONY: smoke
smoke: ## docker compose up, and everything that users do with it, on every kind of Redis; down
	deploy/smoke.sh

.PHONY: image
image: ## Build the image and check what deploy/Dockerfile promises of it
	deploy/check-image.sh

.PHONY: rules
rules: ## Check and test the alerts with promtool
	deploy/check-rules.sh

.PHONY: kubernetes
kubernetes: ## Build the kustomizations and decode them strictly
	cd deploy/kubernetes/validate && go test ./...

##### release

.PHONY: licences
licences: ## Fail when a dependency of the binary has a licence that is not on the list
	deploy/release/licences.sh

.PHONY: vuln
vuln: ## Known vulnerabilities that the code reaches; needs vuln.go.dev
	go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./...

.PHONY: sbom
sbom: binary ## dist/kvtier.cdx.json: what is in bin/kvtier, as CycloneDX
	mkdir -p dist
	go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0 bin -json -version $(VERSION) -output dist/kvtier.cdx.json bin/kvtier

.PHONY: bench-llamacpp
bench-llamacpp: ## A worker beside llama-server against llama-server alone: the table of docs/ENGINES.md (needs Docker)
	go test -run='^$$' -bench=LlamaServer -benchtime=1x -timeout 30m ./integration

.PHONY: benchmarks-build
benchmarks-build: ## Compile and vet the comparison with rivals, a module of its own
	cd benchmarks && go vet ./... && go mod tidy -diff

.PHONY: rivals
rivals: ## kvtier and what one would use instead, on a redis-server of its own; PASTE=1 updates docs/PERFORMANCE.md
	benchmarks/run.sh

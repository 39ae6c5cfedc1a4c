# Every check of this project is a target here; .ci/run and contributors call the same ones.   make help

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PKG      ?= ./...
FUZZTIME ?= 10s
BENCH    ?= .
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

.PHONY: test
test: ## All tests; those that need a container are skipped without Docker
	go test $(PKG)

.PHONY: race
race: ## All tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race $(PKG)

.PHONY: integration
integration: ## Tests against real Redis containers; a missing Docker is a failure
	KVTIER_REQUIRE_CONTAINERS=1 go test -count=1 ./integration/... ./store/redisstore/...

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME
	FUZZTIME=$(FUZZTIME) .ci/fuzz $(PKG)

.PHONY: mutations
mutations: ## Seed protocol bugs one by one; fail when a check misses one
	go test -tags kvtier_mutations -run Mutant -count=1 -v ./internal/stalecheck

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
check: fmt-check vet fix-check tidy-check lint deps test race ## What a change must pass

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
smoke: ## docker compose up, one prefix through both workers, check for a hit, down
	deploy/smoke.sh

.PHONY: bench-llamacpp
bench-llamacpp: ## A worker beside llama-server against llama-server alone: the table of docs/ENGINES.md (needs Docker)
	go test -run='^$$' -bench=LlamaServer -benchtime=1x -timeout 30m ./integration

.PHONY: rivals
rivals: ## kvtier and what one would use instead, on a redis-server of its own; PASTE=1 updates docs/PERFORMANCE.md
	benchmarks/run.sh

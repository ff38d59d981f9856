# Everything CI does, one target each. Needs Go; race also needs a C compiler, which is used for nothing else.
# `make` alone prints the targets.

GO       ?= go
FUZZTIME ?= 10s
BENCH    ?= .
# Packages with goroutines, processes or shared memory: where the race detector can find something in reasonable time.
RACE     ?= $(wildcard internal client shm cmd/zcctl gpu examples test)
IMAGE    ?= zcstore
CROSS    ?= amd64 arm64

.DEFAULT_GOAL := help
.PHONY: help build test race vet staticcheck fmt-check generate generate-check fuzz faults soak offline cross bench safetensors demo check docker

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## static binaries into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/...

test: ## all tests that need no GPU
	$(GO) test ./...

race: ## the packages with concurrency, under the race detector
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) test -race -timeout 20m $(patsubst %,./%/...,$(RACE))

vet: ## go vet
	$(GO) vet ./...

staticcheck: ## staticcheck, at the version in go.mod
	$(GO) tool staticcheck ./...

fmt-check: ## fail when a file is not gofmt's
	@out=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go' | while read -r f; do [ -e "$$f" ] && echo "$$f"; done)); \
	if [ -n "$$out" ]; then echo "not formatted, run gofmt -w:"; echo "$$out"; exit 1; fi

generate: ## the protocol's Go code, and every go:generate
	cd proto && $(GO) run ../internal/protogen zcstore/v1/zcstore.proto
	$(GO) generate ./...

generate-check: ## fail when generate changes anything
	@before=$$(mktemp) && after=$$(mktemp) && trap 'rm -f "$$before" "$$after"' EXIT && \
	{ git diff; git status --porcelain; } >"$$before" && \
	$(MAKE) --no-print-directory generate && \
	{ git diff; git status --porcelain; } >"$$after" && \
	if ! diff "$$before" "$$after"; then echo "generated code is out of date: run make generate and commit the result"; exit 1; fi

fuzz: ## every fuzz target for FUZZTIME (10s), one after the other
	@n=0; log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	for f in $$(grep -rl --include='*_test.go' '^func Fuzz' . | sort); do \
		for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$f"); do \
			n=$$((n+1)); echo "== $$t in $$(dirname "$$f")"; \
			run() { $(GO) test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$f")" >"$$log" 2>&1; rc=$$?; cat "$$log"; return $$rc; }; \
			run || { grep -q '^ *context deadline exceeded$$' "$$log" && ! grep -q 'Failing input' "$$log" && echo "its time ended in mid-input: once more" && run; } || exit 1; \
		done; \
	done; \
	echo "$$n fuzz targets"; [ $$n -gt 0 ]

faults: ## kills, failing steps and histories, as often as CI does them (about 3 minutes)
	ZCSTORE_CI=1 $(GO) test -count=1 -v -timeout 15m -run '^TestCase' ./test/fault ./test/limits

soak: ## the same for hours: 10,000 killed clients, 1,000 killed daemons, 2,000 histories, an hour of everything at once
	ZCSTORE_SOAK=1 $(GO) test -count=1 -v -timeout 6h -run '^TestCase' ./test/fault ./test/limits ./internal/server

offline: ## all tests in a network namespace that has no network (needs root)
	unshare -n $(GO) test -count=1 ./...

cross: ## build for every architecture, and vet the one that is not tested here
	@for a in $(CROSS); do echo "== linux/$$a"; CGO_ENABLED=0 GOOS=linux GOARCH=$$a $(GO) build ./... || exit 1; done
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) vet ./...

bench: ## benchmarks; BENCH is a pattern
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem $$(grep -rl --include='*_test.go' '^func Benchmark' . | xargs -n1 dirname | sort -u)

safetensors: ## the official safetensors reader, and proto/README.md's example, on a live daemon's segments (needs python3)
	./test/safetensors_check.sh

demo: ## zcctl demo, and nothing left in shared memory
	./.ci/demo

check: ## everything CI does
	./.ci/run

docker: ## the image
	docker build -t $(IMAGE) .

# Starling. "make" lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export GOFLAGS ?= -buildvcs=false
export CGO_ENABLED ?= 0
SEED ?=
S ?= warm
ARGS ?=
FUZZTIME ?= 30s

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

build: ## static binaries into bin/
	@mkdir -p bin
	go build -trimpath -ldflags '-s -w' -o bin/ ./cmd/starling ./cmd/starling-guest ./cmd/starling-vmd

functions: build ## the demo and bench functions as zips into bin/functions
	bench/functions/build.sh bin/functions

runsc: ## gVisor's runsc into bin/, for isolation gvisor: built from its Go module, once
	internal/runsc.sh

guest-images: needs ## what microVMs boot, into the user's cache: Debian's cloud kernel, a root for each runtime
	vmpool/kata/images/roots.sh

guest-kernel: needs ## a small guest kernel in place of Debian's, built from its source in a quarter of an hour, once
	vmpool/kata/images/kernel.sh

DRIVER ?= process

demo: needs functions $(if $(filter gvisor,$(DRIVER)),runsc) $(if $(filter kata,$(DRIVER)),guest-images) ## a real cluster of three nodes, real functions, called, one of them at a PostgreSQL in its network; DRIVER=gvisor or kata isolates them so, KEEP=1 leaves it running
	KEEP=$(KEEP) DRIVER=$(DRIVER) bench/demo.sh

test: needs functions runsc guest-images ## everything CI checks by default: tests, then the same with -race where goroutines meet
	internal/leaks.sh before
	go test -timeout 8m $(ARGS) ./...
	$(MAKE) --no-print-directory race
	internal/leaks.sh after

RACE ?= ./transport/... ./metrics/... ./cluster ./cluster/backup ./cluster/dragonboat ./cluster/identity ./cluster/manager ./actors ./actors/host ./actors/partition ./actors/protoactor ./vmpool ./vmpool/framed ./vmpool/runtimeapi/... ./vmpool/process ./vmpool/kata/... ./vpcproxy ./vpcproxy/capture ./vpcproxy/handover ./vpcproxy/plugboard ./frontend ./frontend/auth ./frontend/dispatch ./frontend/lean ./frontend/overload/... ./store/... ./internal/run ./internal/crash ./cmd/starling/node

race: ## tests of everything concurrent with the race detector
	CGO_ENABLED=1 go test -race -vet=off -short -timeout 8m $(ARGS) $(RACE)

check: ## what CI runs: format, vet, then test
	@test -z "$$(gofmt -l .)" || { echo "run gofmt -w on:"; gofmt -l .; exit 1; }
	go vet ./...
	$(MAKE) --no-print-directory test

fuzz: ## every decoder for FUZZTIME each
	internal/fuzz.sh $(FUZZTIME)

SYSCALLS ?= 1000000

attack: needs build runsc guest-images ## hostile functions against the sandboxes of each driver, every row; SYSCALLS random system calls in each, and in each of a real node
	go test -count=1 -p 1 -timeout 90m -v -run TestAttacks ./vmpool/process ./vmpool/gvisor ./vmpool/kata -args -attacks all -syscalls $(SYSCALLS)
	go test -count=1 -timeout 90m -v -run TestRandomSystemCalls ./cmd/starling -args -fuzzed process,gvisor,kata -syscalls $(SYSCALLS)

e2e: needs functions ## real processes: nodes killed in turn under load
	go test -count=1 -v -timeout 20m ./cmd/starling -run E2E -args -e2e

bench: needs functions ## a bench scenario against a fresh node: make bench S=warm|cold|burst
	bench/run.sh $(S) $(ARGS)

EVENTS ?= 2000

sim: ## one simulated world with its trace: make sim SEED=7; without SEED: a thousand worlds
	go test -count=1 -v ./sim -run Whatever -args $(if $(SEED),-seed $(SEED)) -events $(EVENTS)

soak: ## simulated worlds until one fails or you stop it
	internal/soak.sh $(EVENTS)

needs: ## install what is missing from Debian's packages, saying so
	@internal/needs.sh

clean: ## remove what the targets made
	rm -rf bin

.PHONY: help build functions runsc guest-images guest-kernel demo test race check fuzz attack e2e bench sim soak needs clean

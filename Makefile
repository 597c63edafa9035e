# make prints its targets.
.DEFAULT_GOAL := help
GOFUMPT := mvdan.cc/gofumpt@v0.12.0
LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
VERSITYGW := v1.8.0
RACE := ./internal/...
FUZZTIME ?= 30s
FUZZREST ?= 10s
STEPS ?= 200
N ?= 1000
LAYERS ?= packages,sim,crash,chaos
SEEDS ?= 50
MINUTES ?= 10
# What 'go test ./...' leaves out, to stay under three minutes.
LONG := TransferIsCut|ManyPartitions|DamageFoundByAReader|RebalanceGoesOn|NewNode.*TheStore|FrozenNode.*|SpoiledCheckpoints
LONG := $(LONG)|Release|SecondProcessOfANodeIsRefused|FullDisk|Demo.*|Overload|Crowd|RollingUpgrade
LONG := $(LONG)|AllKilledRepeatedly|SlowLink|AsymmetricPartition|FullDiskUnderLoad|HundredGroupsRejoin|LeaderChangesInMidTransfer|DiskFullWhileStaging|RecordsGoDuringTransfer
LONG := $(LONG)|TwoOfThreeWiped|SmallWindows|IdleGroups

help: ## print the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

build: ## build bin/chronik
	go build -o bin/chronik ./cmd/chronik

release: ## static builds for linux on amd64 and arm64 with checksums, into dist
	@deploy/release.sh

test: ## every test that needs only Go
	go test ./...

long: ## the tests of real processes that take too long for 'make test'
	CHRONIK_TEST_LONG=1 go test -count=1 -timeout 30m -v -run '^Test($(LONG))$$' ./deploy ./test/archive ./test/badinput ./test/chaos ./test/demo ./test/limits ./test/rejoin ./test/upgrade

race: ## the packages with goroutines under the race detector
	go test -race $(RACE)

lint: ## golangci-lint and gofumpt
	@test -z "$$(go run $(GOFUMPT) -l . | tee /dev/stderr)" || { echo "not gofumpt'd"; exit 1; }
	go run $(LINT) run ./...

fmt: ## gofumpt everything
	go run $(GOFUMPT) -w .

fuzz: ## fuzz what reads disks and strangers for FUZZTIME, the rest for FUZZREST
	@test/fuzz.sh $(FUZZTIME) $(FUZZREST)

fuzz-long: ## fuzz each target until test/fuzz-tally.tsv has 10 minutes of it, PARALLEL of them side by side
	@PARALLEL=$${PARALLEL:-2} RESUME=1 TALLY=test/fuzz-tally.tsv test/fuzz.sh $${FUZZTIME:-10m}

fuzz-corpus: ## commit-ready inputs from the fuzzing cache into testdata/fuzz
	@test/fuzz-corpus.sh

e2e: ## three stories with kafka-python 2.0.2 (needs python3)
	@test/e2e/run.sh

compat: ## the client matrix (needs python3, java, mvn; skips what is missing)
	@test/compat/run.sh

kill: ## kill -9 of random nodes 50 times, and of all nodes 20 times, under load
	CHRONIK_ROUNDS=50 go test -count=1 -timeout 30m -run TestKillRounds -v ./test/kill
	CHRONIK_ROUNDS=20 go test -count=1 -timeout 30m -run TestKillAll -v ./test/kill

crash: ## cut the power at every step, leave out every sync in turn
	CHRONIK_TEST_LONG=1 go test -count=1 -timeout 30m -v ./test/crash

chaos: ## storms: every nemesis in random order for MINUTES; a line in the tally (root: also cuts in namespaces, full disks)
	CHRONIK_TEST_TALLY=testdata/tally.jsonl CHRONIK_TEST_MINUTES=$(MINUTES) go test -count=1 -timeout 12h -v -run '^TestStorm$$' ./test/chaos

chaos-short: ## the same for 80 seconds, without a line
	CHRONIK_TEST_MINUTES=1.3 go test -count=1 -timeout 20m -v -run '^TestStorm$$' ./test/chaos

chaos-tally: ## what all storms add up to
	go test -count=1 -v -run '^TestTally$$' ./test/chaos

chaos-rounds: ## each named chaos test, 20 rounds
	CHRONIK_ROUNDS=$${CHRONIK_ROUNDS:-20} CHRONIK_TEST_LONG=1 go test -count=1 -timeout 180m -v -skip '^TestStorm$$' ./test/chaos

sim: ## deterministic simulation: make sim SEED=17 STEPS=340, or make sim N=1000
	go run ./test/sim -steps $(STEPS) $(if $(SEED),-seed $(SEED) -v,-n $(N)) $(SIMFLAGS)

sim-ci: ## 200 simulated seeds; five minutes on two cores that do nothing else, fails above eight
	go run ./test/sim -steps 150 -n 200 -least 200 -for 8m $(SIMFLAGS)

sim-profile: ## what simulated nodes compute, for the compiler of 'make sim' (test/sim/guest/cpu.pgo); natively: an idle machine
	dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; go build -trimpath -o "$$dir/guest" ./test/sim/guest; \
	for seed in 1 2 3 4 5 6 7 8; do "$$dir/guest" -seed $$seed -steps 150 -cpuprofile "$$dir/$$seed.pprof" >"$$dir/log" & done; wait; \
	go tool pprof -proto "$$dir"/*.pprof >test/sim/guest/cpu.pgo

limits: ## ten times the sustained load for a minute; 5,000 idle connections and 500 slow readers
	CHRONIK_TEST_LIMITS=1 go test -count=1 -timeout 30m -v ./test/limits

s3: ## the object store against a real S3 server program, versitygw (built into a temporary directory)
	@bin=$$(mktemp -d); trap 'rm -rf "$$bin"' EXIT; GOBIN=$$bin go install github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW) && \
	CHRONIK_S3_SERVER=$$bin/versitygw go test -count=1 -v ./test/s3

mutation: ## break the code in each of the ways in test/mutation and see who notices (ONLY=07,12 LAYERS=packages SEEDS=50)
	go run ./test/mutation -only '$(ONLY)' -layers '$(LAYERS)' -seeds '$(SEEDS)'

demo-input: ## every line of GOROOT/src through a cluster while a node dies
	CHRONIK_FULL=1 go test -count=1 -timeout 30m -v -run TestRealInput ./test/input

start-time: ## exec to first acknowledged record with 5 GB after kill -9
	CHRONIK_TEST_BYTES=5000000000 go test -count=1 -timeout 30m -v ./test/start

transfer: ## a 2 GiB snapshot transfer against a bare copy of the same bytes; kills, reuse, memory
	CHRONIK_TEST_TRANSFER_BYTES=$${CHRONIK_TEST_TRANSFER_BYTES:-2147483648} go test -count=1 -timeout 30m -v ./test/transfer

bench: ## throughput and latency against the bare loop of the same run
	go run ./test/bench

bench-guard: ## fail if a byte or a record costs far more than it did, as multiples of what the machine asks for the bare work in the same run
	go run ./test/bench -rounds 3 -seconds 3 -most 3 -dearest 7

bench-peers: ## beside Apache Kafka and NATS, into docs/benchmarks.md (java, mvn; PART=all ONLY=REGEXP ROUNDS=5 SECONDS=5 WARM=60 BYTES=1000000000)
	go run ./test/bench/peers -part '$(or $(PART),all)' -only '$(ONLY)' -rounds $(or $(ROUNDS),5) -seconds $(or $(SECONDS),5) -warm $(or $(WARM),60) -bytes $(or $(BYTES),1000000000) $(PEERSFLAGS)

bench-snapshot: ## what snapshots cost, and which threshold to choose, into docs/benchmarks.md
	go build -o bin/chronik ./cmd/chronik
	bin/chronik bench snapshot --docs docs

scale: ## what 10 to 3,000 idle partitions cost three nodes, into docs/scaling.md (PARTITIONS=10,100,1000,3000)
	go run ./test/scale -partitions $${PARTITIONS:-10,100,300,1000,3000} -docs docs/scaling.md

docs: ## regenerate the references of settings, commands and metrics
	go run ./cmd/chronik config reference >docs/configuration.md
	go run ./cmd/chronik reference >docs/cli.md
	CHRONIK_TEST_UPDATE=1 go test -count=1 -run TestCommands ./test/cli

full: lint test long race fuzz e2e compat kill crash sim chaos chaos-rounds limits mutation s3 demo-input start-time bench-guard ## everything

.PHONY: help build release test long race lint fmt fuzz fuzz-long fuzz-corpus e2e compat kill crash chaos chaos-short chaos-tally chaos-rounds sim sim-ci sim-profile limits s3 mutation demo-input start-time transfer bench bench-guard bench-peers bench-snapshot scale docs full

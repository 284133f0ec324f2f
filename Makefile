# make         shows this list
# make build   builds bin/fairway, static
# make test    runs every test, those in network namespaces and against a real control plane too (needs root)
# make unit    runs the tests that need no root
# make lint    vet, gofmt, staticcheck, go mod verify, and govulncheck where its database can be reached
# make demo    shows a little cluster in network namespaces (needs root; KEEP=1 leaves it up, make demo-down takes it down)
# make bench   prints what large rule sets cost, fairway's and kube-proxy's (needs root)
# make faults  runs the tests of what goes wrong on a node and prints the table of docs/faults.md (needs root)
# make differential  compares many more random clusters with kube-proxy than make test does (needs root)
# make clean   removes what was built

# Tools come through the Go module proxy, at these versions.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.2.0

# The programs of Debian that tests and demo need: program=package.
TEST_TOOLS := iptables-nft=iptables nft=nftables ip=iproute2 conntrack=conntrack curl=curl bird=bird2 /usr/lib/frr/bgpd=frr gobgpd=gobgpd /usr/lib/systemd/systemd-networkd=systemd ipset=ipset
DEMO_TOOLS := iptables-nft=iptables ip=iproute2 bird=bird2

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E env "PATH=$$PATH")

.PHONY: help build test unit lint demo demo-down bench faults differential clean tools demo-tools root

help:
	@sed -n 's/^# make/make/p' Makefile

build:
	CGO_ENABLED=0 go build -trimpath -o bin/fairway ./cmd/fairway

test: tools lint root
	FAIRWAY_LAB=require $(SUDO) go test -count=1 -timeout 25m ./...

unit:
	go test -count=1 ./...

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "not gofmt-ed: $$unformatted"; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
	go mod verify
	@test/vulnerabilities.sh $(GOVULNCHECK)

demo: demo-tools build
	@CGO_ENABLED=0 go build -trimpath -o bin/demo ./test/demo
	@$(SUDO) bin/demo -agent bin/fairway $(if $(filter-out 0,$(KEEP)),-keep)

demo-down:
	@CGO_ENABLED=0 go build -trimpath -o bin/demo ./test/demo
	@$(SUDO) bin/demo -down

# BENCH passes flags on: make bench BENCH='-services 1000 -only contenders -contenders fairway-legacy,fairway-nft -rounds 1'
bench: tools build
	FAIRWAY_BIN=bin/fairway $(SUDO) go run ./test/bench $(BENCH)

# FAULTS passes flags on: make faults FAULTS='-run Fault16'; -update writes what was measured into docs/faults.md. Some of its rows are
# tests of other packages, at the end of a name their -run.
faults: export FAIRWAY_MEASURED := $(CURDIR)/.cache/faults
FAULTS_ELSEWHERE := ./agent/source/kube ./test/takeover ./test ./test/bgp
faults: tools build root
	@mkdir -p .cache && rm -f $(FAIRWAY_MEASURED)
	[ -n "$(findstring -run,$(FAULTS))" ] || FAIRWAY_LAB=require $(SUDO) go test -count=1 -run '^Test(SourceStrangeObjects|RunningKubeProxy|WallClock|Import|TooManyPrefixes|DrainAndLeave)' $(FAULTS_ELSEWHERE)
	FAIRWAY_LAB=require FAIRWAY_BIN=$(CURDIR)/bin/fairway $(SUDO) go test -count=1 -timeout 4h -v ./test/faults -table=true $(FAULTS)

# DIFFERENTIAL passes flags on: make differential DIFFERENTIAL='-seed 41 -clusters 1'
DIFFERENTIAL ?= -clusters 500
differential: tools build
	FAIRWAY_LAB=require FAIRWAY_BIN=$(CURDIR)/bin/fairway $(SUDO) go test -count=1 -timeout 24h -v -run TestDifferential ./test/differential -args $(DIFFERENTIAL)

clean:
	rm -rf bin .cache

tools:
	@test/tools.sh $(TEST_TOOLS)

demo-tools:
	@test/tools.sh $(DEMO_TOOLS)

root:
	@[ "$$(id -u)" = 0 ] || command -v sudo >/dev/null || { echo "make test needs root or sudo: it makes network namespaces"; exit 1; }

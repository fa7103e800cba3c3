# Every target calls one thing; what is longer is in scripts/.
.PHONY: all build build-arm64 test test-short test-race lint demo demo-nasa bench interop differential features mutate clean-room check-static check-reproducible licenses install-deps man clean

all: build

build: install-deps
	scripts/build.sh

build-arm64:
	scripts/install-deps.sh arm64
	scripts/build.sh arm64 bin/mstage-arm64

test: install-deps
	scripts/test.sh

test-short: install-deps
	scripts/test.sh --short

test-race: install-deps
	scripts/test.sh --race

lint: install-deps
	scripts/lint.sh

demo: install-deps
	scripts/demo.sh
	scripts/demo-nasa.sh

demo-nasa: install-deps
	scripts/demo-nasa.sh

bench: install-deps
	scripts/bench.sh

# Root only: docker and skopeo read what an unprivileged build wrote.
interop: build
	scripts/interop.sh

# Root only: the same Dockerfiles with mstage and with BuildKit.
differential: build
	scripts/install-deps.sh differential
	scripts/differential.sh

# How many cases of the above there are of each feature.
features: install-deps
	scripts/differential.sh -features

# Breaks rules of the engine one by one; their cases have to notice.
mutate: install-deps
	scripts/mutate.sh

# Root only: make demo and make test in a Debian 12 that has neither Go nor a compiler.
clean-room: install-deps
	scripts/clean-room.sh

check-static: build
	scripts/check-static.sh

check-reproducible: install-deps
	scripts/check-reproducible.sh

licenses: install-deps
	scripts/third-party-licenses.sh

install-deps:
	@scripts/install-deps.sh

# Manual pages in bin/man; SOURCE_DATE_EPOCH is their date.
man: build
	bin/mstage man bin/man

clean:
	rm -rf bin

#!/usr/bin/env bash
# build.sh [GOARCH [FILE]]: builds the static binary, bin/mstage by default. The
# result depends on the sources, the Go version and the C library only.
set -euo pipefail
. "$(dirname "$0")/env.sh"

arch=${1:-}
out=${2:-$ROOT/bin/mstage}
need_go
cd "$ROOT"
host=$(go env GOHOSTARCH)
arch=${arch:-$host}

cc=${CC:-gcc}
if [ "$arch" != "$host" ]; then
	case $arch in
	arm64) cc=aarch64-linux-gnu-gcc ;;
	amd64) cc=x86_64-linux-gnu-gcc ;;
	*) die "no cross compiler is known for $arch" ;;
	esac
fi
command -v "$cc" >/dev/null || die "$cc is needed: run 'make install-deps'"

# MSTAGE_VERSION, else the file VERSION (releases as tarballs have one), else git.
version=${MSTAGE_VERSION:-}
if [ -z "$version" ] && [ -f VERSION ]; then
	version=$(head -n 1 VERSION)
fi
if [ -z "$version" ]; then
	version=$(git describe --tags --always --dirty 2>/dev/null || true)
fi
version=$(printf '%s' "${version:-dev}" | tr -cd 'A-Za-z0-9.+_-')

mkdir -p "$(dirname "$out")"
GOOS=linux GOARCH=$arch CC=$cc CGO_CFLAGS="-O2 -g0" GOFLAGS="" \
	go build -trimpath -buildvcs=false -tags "$TAGS" \
	-ldflags "-s -w -buildid= -X main.version=$version -linkmode external -extldflags \"-static -Wl,--build-id=none\"" \
	-o "$out" ./cmd/mstage

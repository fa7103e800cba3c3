#!/usr/bin/env bash
# lint.sh [PACKAGE…]: golangci-lint at the version of tools/go.mod, shellcheck
# when there is one, and what must be up to date.
set -euo pipefail
. "$(dirname "$0")/env.sh"

need_go
cd "$ROOT"
linter=$ROOT/bin/tools/golangci-lint
want=$(sed -n 's|^[[:space:]]*github.com/golangci/golangci-lint/v2 \(v[^ ]*\).*|\1|p' tools/go.mod)
stamp=$linter.$want.$(go env GOVERSION)
if [ ! -x "$linter" ] || [ ! -e "$stamp" ]; then
	say "build golangci-lint $want"
	mkdir -p bin/tools
	rm -f "$linter".*
	(cd tools && CGO_ENABLED=0 GOFLAGS="" go build -trimpath -buildvcs=false -o "$linter" github.com/golangci/golangci-lint/v2/cmd/golangci-lint)
	touch "$stamp"
fi
say "golangci-lint $want"
"$linter" run "${@:-./...}"
[ $# -eq 0 ] || exit 0
say "go mod tidy, go mod verify"
go mod tidy -diff
for arch in amd64 arm64; do
	grep -q "^golang.org/toolchain v0.0.1-go$(wanted_go).linux-$arch h1:" scripts/toolchain.sum ||
		die "scripts/toolchain.sum has no line for Go $(wanted_go) on $arch: 'go mod download -json' prints both sums"
done
if command -v shellcheck >/dev/null; then
	say "shellcheck"
	shellcheck -x -P scripts scripts/*.sh .ci/run
fi
say "licences of linked modules"
scripts/third-party-licenses.sh --check

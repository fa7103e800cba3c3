#!/usr/bin/env bash
# buildkit.sh: builds bin/tools/buildkitd and buildctl, with which mstage is
# compared, at the version whose parser mstage has. In a module of their own: their
# go.mod excludes versions, which "go install" refuses, and tools/go.mod would mix
# their dependencies with the linter's.
set -euo pipefail
. "$(dirname "$0")/env.sh"

need_go
cd "$ROOT"
package=github.com/moby/buildkit/cmd
version=$(go list -m -f '{{.Version}}' github.com/moby/buildkit)
stamp=$ROOT/bin/tools/buildkit.$version
if [ -x bin/tools/buildkitd ] && [ -x bin/tools/buildctl ] && [ -e "$stamp" ]; then
	exit
fi
say "build BuildKit $version"
mkdir -p bin/tools
rm -f bin/tools/buildkit.*
dir=$(mktemp -d "$ROOT/bin/tools/.buildkit.XXXXXX")
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export CGO_ENABLED=0 GOFLAGS=""
go mod init buildkit
go get -tool "$package/buildkitd@$version" "$package/buildctl@$version"
go build -trimpath -buildvcs=false -o "$ROOT/bin/tools/" "$package/buildkitd" "$package/buildctl"
touch "$stamp"

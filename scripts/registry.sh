#!/usr/bin/env bash
# registry.sh: builds bin/tools/registry, the distribution registry at the version
# of tools/registry/go.mod, against which pull, push and FROM are tested.
set -euo pipefail
. "$(dirname "$0")/env.sh"

need_go
cd "$ROOT"
registry=$ROOT/bin/tools/registry
want=$(sed -n 's|^[[:space:]]*github.com/distribution/distribution/v3 \(v[^ ]*\).*|\1|p' tools/registry/go.mod)
stamp=$registry.$want.$(go env GOVERSION)
if [ -x "$registry" ] && [ -e "$stamp" ]; then
	exit
fi
say "build distribution $want"
mkdir -p bin/tools
rm -f "$registry".*
(cd tools/registry && CGO_ENABLED=0 GOFLAGS="" go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$registry" github.com/distribution/distribution/v3/cmd/registry)
touch "$stamp"

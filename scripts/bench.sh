#!/usr/bin/env bash
# bench.sh [PACKAGE…]: runs every benchmark a few times; compare with benchstat.
set -euo pipefail
. "$(dirname "$0")/env.sh"

need_go
cd "$ROOT"
go test -tags "$TAGS" -run '^$' -bench . -benchmem -count "${COUNT:-3}" "${@:-./...}"

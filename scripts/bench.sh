#!/usr/bin/env bash
# bench.sh [PACKAGE…]: without a package the figures of scripts/figures.sh first;
# then every benchmark a few times; compare with benchstat.
set -euo pipefail
. "$(dirname "$0")/env.sh"

need_go
cd "$ROOT"
[ $# -gt 0 ] || scripts/figures.sh
go test -tags "$TAGS" -run '^$' -bench . -benchmem -count "${COUNT:-3}" "${@:-./...}"

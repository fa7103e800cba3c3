#!/usr/bin/env bash
# third-party-licenses.sh [--check]: writes THIRD_PARTY_LICENSES, the licences of
# everything that the binary is linked from, or checks that it is up to date.
set -euo pipefail
. "$(dirname "$0")/env.sh"

need_go
cd "$ROOT"
out=THIRD_PARTY_LICENSES
if [ "${1:-}" = --check ]; then
	out=$(mktemp)
	trap 'rm -f "$out"' EXIT
fi
for arch in amd64 arm64; do
	GOOS=linux GOARCH=$arch go list -deps -tags "$TAGS" -json=Dir,Standard,Module ./cmd/mstage
done | (cd tools && go run ./licenses "$(go env GOROOT)") >"$out"
if [ "${1:-}" = --check ] && ! cmp -s "$out" THIRD_PARTY_LICENSES; then
	diff THIRD_PARTY_LICENSES "$out" | grep '^[<>] - ' >&2 || true
	die "THIRD_PARTY_LICENSES is out of date: run scripts/third-party-licenses.sh"
fi

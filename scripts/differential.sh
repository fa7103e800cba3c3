#!/usr/bin/env bash
# differential.sh [FLAG…]: builds the cases of integration/testdata/differential
# with mstage, without privileges, and with BuildKit, and compares the images.
# Flags are those of integration/differential: -only REGEXP, -v, -layers, -cached,
# and -update, which writes the goldens that 'make test' compares mstage with.
# -features prints what the cases are about, and needs nothing of what follows.
# Root only: it starts a buildkitd with directories and a socket of its own. Ends
# with one line, and with 1 when a case differs and has no :known line.
set -euo pipefail
. "$(dirname "$0")/env.sh"

# start_buildkitd sets daemon and waits until it answers. It gets nothing of the
# environment: it hands proxies to what it runs.
start_buildkitd() {
	env -i PATH="$PATH" HOME="$state" "$ROOT/bin/tools/buildkitd" --config /dev/null --addr "$address" --root "$state/buildkit" \
		--otel-socket-path "$state/otel.sock" --containerd-worker=false --oci-worker=true --oci-worker-gc=false \
		--oci-worker-binary="$(command -v runc)" --oci-worker-net=host >"$state/log" 2>&1 &
	daemon=$!
	for _ in $(seq 300); do
		if "$ROOT/bin/tools/buildctl" --addr "$address" debug workers >/dev/null 2>&1; then
			return
		fi
		kill -0 "$daemon" 2>/dev/null || break
		sleep 0.1
	done
	tail -n 30 "$state/log" >&2
	die "buildkitd does not answer"
}

if [ "${1:-}" = -features ]; then
	need_go
	cd "$ROOT"
	exec go run ./integration/differential -features integration/testdata/differential/*.txt
fi
[ "$(id -u)" = 0 ] || die "root is needed: buildkitd runs as root"
PATH=$PATH:/usr/sbin:/sbin
for program in runc setfattr zstd busybox; do
	command -v "$program" >/dev/null || die "$program is needed: run 'scripts/install-deps.sh differential'"
done
need_go
cd "$ROOT"
[ -x bin/mstage ] || scripts/build.sh
"$ROOT/scripts/buildkit.sh"

need_test_user
make_home_dir
state=$(mktemp -d)
address=unix://$state/buildkit.sock
daemon=
# Only what was started here is ended, and only what was made here removed.
clean_up() {
	if [ -n "$daemon" ]; then
		kill "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
	fi
	rm -rf "$HOME_DIR" "$state"
}
trap clean_up EXIT

say "buildkitd"
start_buildkitd
install -m 0755 bin/mstage "$HOME_DIR/mstage"
go build -trimpath -buildvcs=false -tags "$TAGS" -o "$state/differential" ./integration/differential

say "compare, as $TEST_USER and with BuildKit"
"$state/differential" -mstage "$HOME_DIR/mstage" -buildctl "$ROOT/bin/tools/buildctl" -addr "$address" \
	-work "$HOME_DIR" "$@" integration/testdata/differential/*.txt

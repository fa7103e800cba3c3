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

# build_buildkit builds bin/tools/buildkitd and buildctl at the version whose
# parser mstage has. In a module of their own: their go.mod excludes versions, which
# "go install" refuses, and tools/go.mod would mix their dependencies with the linter's.
build_buildkit() {
	local version stamp dir package=github.com/moby/buildkit/cmd
	version=$(go list -m -f '{{.Version}}' github.com/moby/buildkit)
	stamp=$ROOT/bin/tools/buildkit.$version
	if [ -x "$ROOT/bin/tools/buildkitd" ] && [ -x "$ROOT/bin/tools/buildctl" ] && [ -e "$stamp" ]; then
		return
	fi
	say "build BuildKit $version"
	mkdir -p "$ROOT/bin/tools"
	rm -f "$ROOT"/bin/tools/buildkit.*
	dir=$(mktemp -d "$ROOT/bin/tools/.buildkit.XXXXXX")
	(
		trap 'rm -rf "$dir"' EXIT
		cd "$dir"
		export CGO_ENABLED=0 GOFLAGS=""
		go mod init buildkit
		go get -tool "$package/buildkitd@$version" "$package/buildctl@$version"
		go build -trimpath -buildvcs=false -o "$ROOT/bin/tools/" "$package/buildkitd" "$package/buildctl"
	) >&2
	touch "$stamp"
}

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
build_buildkit

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

#!/usr/bin/env bash
# check-reproducible.sh: builds the sources in two directories, as two users when
# root may choose, and compares the results bit by bit.
set -euo pipefail
. "$(dirname "$0")/env.sh"

need_go
cd "$ROOT"
MSTAGE_VERSION=${MSTAGE_VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}
export MSTAGE_VERSION
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
chmod 0755 "$work"
goroot=$(go env GOROOT)

# copy_to DIR copies the sources, without what builds left behind.
copy_to() {
	mkdir -p "$1"
	tar -C "$ROOT" --exclude=./bin --exclude=./.git -cf - . | tar -C "$1" -xf -
}

copy_to "$work/one"
"$work/one/scripts/build.sh" "" "$work/one.out"

other="$work/another/and longer/directory"
copy_to "$other"
if [ "$(id -u)" = 0 ]; then
	need_test_user
	make_home_dir
	trap 'chmod -R u+w "$work" "$HOME_DIR"; rm -rf "$work" "$HOME_DIR"' EXIT
	if ! as_test_user test -x "$goroot/bin/go"; then
		cp -R "$goroot" "$HOME_DIR/go"
		goroot=$HOME_DIR/go
	fi
	mkdir "$HOME_DIR/modules"
	# Modules come from the cache that is there, compiled code from nowhere.
	(cd "$other" && GOPROXY=file://$(go env GOMODCACHE)/cache/download GOMODCACHE=$HOME_DIR/modules GOFLAGS=-modcacherw \
		go list -deps -tags "$TAGS" ./cmd/mstage >/dev/null)
	chown -R "$TEST_USER:" "$work/another" "$HOME_DIR/modules"
	as_test_user env PATH="$goroot/bin:/usr/bin:/bin" GOTOOLCHAIN=local GOPROXY=off GOMODCACHE="$HOME_DIR/modules" \
		MSTAGE_VERSION="$MSTAGE_VERSION" "$other/scripts/build.sh" "" "$work/another/out"
else
	GOCACHE=$work/cache "$other/scripts/build.sh" "" "$work/another/out"
fi

cmp "$work/one.out" "$work/another/out" || die "two builds differ"
echo "reproducible: sha256:$(sha256sum <"$work/one.out" | cut -d' ' -f1)"

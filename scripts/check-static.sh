#!/usr/bin/env bash
# check-static.sh [FILE]: bin/mstage needs no file beside itself: it names no
# interpreter and no shared library, and runs in a root that holds nothing else.
set -euo pipefail
. "$(dirname "$0")/env.sh"

bin=${1:-$ROOT/bin/mstage}
headers=$(readelf -lW "$bin")
if grep -Eq '^ +(INTERP|DYNAMIC) ' <<<"$headers"; then
	printf '%s\n' "$headers" >&2
	die "$bin is not static"
fi
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
cp "$bin" "$empty/mstage"
chmod a+rx "$empty" "$empty/mstage"
if [ "$(id -u)" = 0 ]; then
	version=$(env -i PATH="$PATH" chroot "$empty" /mstage version)
else
	version=$(env -i PATH="$PATH" unshare --user --map-root-user chroot "$empty" /mstage version)
fi
echo "static: $version, $(stat -c %s "$bin") bytes"

#!/usr/bin/env bash
# install-deps.sh [arm64|differential|interop]: installs what is missing to build and
# test mstage on Debian. Nothing is missing: nothing is done and no network is used.
# With arm64 also the cross compiler, else what the script of that name needs.
set -euo pipefail
. "$(dirname "$0")/env.sh"

# needed lists a file or program for each Debian package.
needed() {
	cat <<-'EOF'
		gcc gcc
		ar binutils
		newuidmap uidmap
		unshare util-linux
		runuser util-linux
		useradd passwd
		tar tar
		xz xz-utils
		bzip2 bzip2
		zstd zstd
		strace strace
		/usr/include/stdlib.h libc6-dev
		/usr/share/doc/busybox-static busybox-static
		skopeo skopeo
		/etc/ssl/certs/ca-certificates.crt ca-certificates
		mmdebstrap mmdebstrap
		/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
		openssl openssl
		setfattr attr
		bzip2 bzip2
		zstd zstd
	EOF
	if [ "${1:-}" = arm64 ] && [ "$(uname -m)" != aarch64 ]; then
		echo "aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu"
		echo "/usr/aarch64-linux-gnu/include/stdlib.h libc6-dev-arm64-cross"
	fi
	if [ "${1:-}" = differential ]; then
		echo "runc runc"
	fi
	if [ "${1:-}" = interop ]; then
		echo "dockerd docker.io"
	fi
}

# missing prints the packages whose file or program is not there.
missing() {
	needed "$@" | while read -r what package; do
		case $what in
		/*) [ -e "$what" ] || echo "$package" ;;
		*) PATH=$PATH:/usr/sbin:/sbin command -v "$what" >/dev/null || echo "$package" ;;
		esac
	done | sort -u
}

# as_root CMD…: as root, or with a word about what root has to run.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
		sudo -n "$@"
	elif command -v sudo >/dev/null && [ -t 0 ]; then
		sudo "$@"
	else
		die "these packages are missing; as root run:
  apt-get update && apt-get install -y --no-install-recommends ${packages[*]}"
	fi
}

# install_packages installs what missing printed.
install_packages() {
	command -v apt-get >/dev/null || die "not a Debian system: install what these packages hold: ${packages[*]}"
	say "install ${packages[*]}"
	as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}"
}

# fetch_go installs the toolchain that go.mod names into bin/tools/go. It is a
# module, so any Go downloads it through the module proxy. toolchain.sum is the
# go.sum of that download: Go compares with it and needs no checksum data base,
# which a Go before 1.21 passes over when it is off. Go 1.21 and later switch to
# the toolchain by themselves, with the data base; Debian's may be older.
fetch_go() (
	version=$(wanted_go)
	arch=$(dpkg --print-architecture)
	module=golang.org/toolchain@v0.0.1-go$version.linux-$arch
	grep -q "^${module/@/ } h1:" "$ROOT/scripts/toolchain.sum" || die "scripts/toolchain.sum has no line for $module"
	say "fetch Go $version as a module"
	mkdir -p "$ROOT/bin/tools"
	tmp=$(mktemp -d "$ROOT/bin/tools/.go.XXXXXX")
	trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT
	mkdir "$tmp/pin"
	echo "module pin" >"$tmp/pin/go.mod"
	cp "$ROOT/scripts/toolchain.sum" "$tmp/pin/go.sum"
	(cd "$tmp/pin" && GO111MODULE=on GOWORK=off GOFLAGS="" GOTOOLCHAIN=local GOMODCACHE="$tmp/modules" go mod download "$module")
	dir=$tmp/modules/$module
	chmod -R u+w "$tmp/modules"
	# Module archives keep neither executable bits nor a go.mod below their root.
	chmod -R a+x "$dir/bin" "$dir/pkg/tool"
	find "$dir" -name _go.mod -execdir mv {} go.mod \;
	rm -rf "$OWN_GO"
	mv "$dir" "$OWN_GO"
)

mapfile -t packages < <(missing "$@")
if ! use_go && ! command -v go >/dev/null; then
	packages+=(golang-go)
fi
if [ ${#packages[@]} -gt 0 ]; then
	install_packages
fi
use_go || fetch_go
need_go
echo "all there: $(cd "$ROOT" && go version)" >&2

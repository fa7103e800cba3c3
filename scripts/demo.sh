#!/usr/bin/env bash
# demo.sh: pulls busybox, or where no registry answers imports a root made of
# Debian's, builds and runs examples/hello, all as a user without privileges. Root
# gives way to the user mstage-test.
set -euo pipefail
. "$(dirname "$0")/env.sh"

expected="hello by name: made in stage greet
hello by index: made in stage greet"

# demo DIR runs in DIR as whoever calls; everything it makes is below DIR.
demo() {
	cd "$1"
	export MSTAGE_ROOT=$1/store PATH=$1:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	if ! pull_answered busybox; then
		say "mstage import rootfs.tar busybox"
		mstage import rootfs.tar busybox
	fi
	say "mstage build -t hello examples/hello"
	mstage build -t hello hello
	say "mstage run hello"
	mstage run hello | tee output
	[ "$(cat output)" = "$expected" ] || die "expected: $expected"
	say "mstage images"
	mstage images
	mstage prune -a -f
}

if [ "${1:-}" = --inside ]; then
	demo "$2"
	exit
fi

make_demo_dir demo.sh hello
make_rootfs "$HOME_DIR/rootfs.tar"
chmod a+r "$HOME_DIR/rootfs.tar"
in_demo_dir "$HOME_DIR/scripts/demo.sh" --inside "$HOME_DIR"

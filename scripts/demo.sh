#!/usr/bin/env bash
# demo.sh: imports a busybox root and builds and runs examples/hello, all as a
# user without privileges. Root gives way to the user mstage-test.
set -euo pipefail
. "$(dirname "$0")/env.sh"

expected="hello by name: made in stage greet
hello by index: made in stage greet"

# make_rootfs FILE writes a tar of a small root file system: busybox and a link
# for each of its applets.
make_rootfs() {
	local root applet
	root=$(mktemp -d)
	mkdir -p "$root"/{bin,etc,root,tmp,var,proc,sys,dev}
	cp /bin/busybox "$root/bin/busybox"
	for applet in $(/bin/busybox --list); do
		[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
	done
	echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
	echo 'root:x:0:' >"$root/etc/group"
	chmod 1777 "$root/tmp"
	chmod 0755 "$root"
	tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$1" .
	rm -rf "$root"
}

# demo DIR runs in DIR as whoever calls; everything it makes is below DIR.
demo() {
	cd "$1"
	export MSTAGE_ROOT=$1/store PATH=$1:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	say "as $(id -un): mstage import rootfs.tar busybox"
	mstage import rootfs.tar busybox
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

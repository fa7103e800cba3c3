#!/usr/bin/env bash
# differential.sh [FLAG…]: builds the cases of integration/testdata/differential
# with mstage, without privileges, and with BuildKit, and compares the images.
# Flags are those of integration/differential: -only REGEXP, -v, -layers, -cached.
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

# make_base FILE writes a tar of the base image's root file system: busybox on a
# merged /usr, accounts, setuid and setgid, sticky, capabilities, attributes, a
# fifo, hard and symbolic links.
make_base() (
	root=$(mktemp -d "$state/base.XXXXXX")
	cd "$root"
	umask 022
	chmod 755 .
	mkdir -p usr/bin usr/lib etc home/builder root tmp var/log var/lib/data opt/dir/sub opt/links srv/setgid proc sys dev run
	ln -s usr/bin bin
	ln -s bin usr/sbin
	ln -s usr/sbin sbin
	ln -s usr/lib lib
	cp /bin/busybox usr/bin/busybox
	for applet in $(/bin/busybox --list); do
		[ "$applet" = busybox ] || ln -s busybox "usr/bin/$applet"
	done
	cat >etc/passwd <<-'PASSWD'
		root:x:0:0:root:/root:/bin/sh
		daemon:x:1:1:daemon:/usr/sbin:/bin/sh
		builder:x:1000:1000:Builder:/home/builder:/bin/sh
		nohome:x:1002:1002:No::/bin/sh
		1500:x:1501:1501:Numeric:/home/num:/bin/sh
	PASSWD
	cat >etc/group <<-'GROUP'
		root:x:0:
		daemon:x:1:
		builder:x:1000:
		docs:x:2000:builder,daemon
		empty:x:2001:
		1500:x:1502:
	GROUP
	make_base_files
	find . -exec touch -h -d '2019-01-01 00:00:00 UTC' {} +
	tar --xattrs --xattrs-include='*' --sort=name --numeric-owner --format=posix -cf "$1" .
)

# make_base_files makes what cases find in the base, in the current directory.
make_base_files() {
	echo hello >opt/dir/file
	echo sub >opt/dir/sub/file
	setfattr -n user.note -v keep opt/dir/file
	mkfifo opt/fifo
	echo x >opt/links/a
	ln opt/links/a opt/links/b
	ln -s ../dir opt/links/todir
	ln -s /opt/dir opt/links/absdir
	ln -s /nowhere/x opt/links/dangling
	ln -s ../dir/file opt/links/tofile
	ln -s loop opt/links/loop
	echo suid >usr/bin/suid
	chmod 4755 usr/bin/suid
	echo sgid >usr/bin/sgid
	chmod 2755 usr/bin/sgid
	echo cap >usr/bin/captool
	setcap cap_net_raw+ep usr/bin/captool
	chmod 1777 tmp
	chmod 700 root
	chown 0:2000 srv/setgid
	chmod 2775 srv/setgid
	echo p >home/builder/.profile
	chown -R 1000:1000 home/builder
	echo secret >var/lib/data/f
	chown 1:1 var/lib/data/f
	chmod 600 var/lib/data/f
	chown 1:2000 var/lib/data
	chmod 750 var/lib/data
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

[ "$(id -u)" = 0 ] || die "root is needed: buildkitd runs as root"
PATH=$PATH:/usr/sbin:/sbin
for program in runc setcap setfattr setpriv busybox; do
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
make_base "$state/base.tar"
install -m 0644 "$state/base.tar" "$HOME_DIR/base.tar"
install -m 0755 bin/mstage "$HOME_DIR/mstage"
go build -trimpath -buildvcs=false -tags "$TAGS" -o "$state/differential" ./integration/differential

say "compare, as $TEST_USER and with BuildKit"
"$state/differential" -mstage "$HOME_DIR/mstage" -buildctl "$ROOT/bin/tools/buildctl" -addr "$address" \
	-rootfs "$HOME_DIR/base.tar" -work "$HOME_DIR" "$@" integration/testdata/differential/*.txt

# Sourced by the scripts beside it: what every build and test of mstage shares.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck disable=SC2034 # used by the scripts that source this
TAGS="netgo osusergo runc_nocriu exclude_graphdriver_btrfs exclude_graphdriver_zfs"
TEST_USER=mstage-test
# The Go that install-deps.sh puts there when the host has none that is new enough.
OWN_GO=$ROOT/bin/tools/go
export CGO_ENABLED=1

# say prints a step's title; die ends the script.
say() { printf '\n==> %s\n' "$*" >&2; }
die() {
	printf '%s: %s\n' "$(basename "$0")" "$*" >&2
	exit 1
}

# wanted_go prints the version that go.mod asks for, like 1.26.8.
wanted_go() { sed -n 's/^go //p' "$ROOT/go.mod"; }

# at_least A B: version A is B or later.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# go_is_enough GO: that program is new enough, or fetches one that is.
go_is_enough() {
	local version
	version=$(cd "$ROOT" && "$1" version 2>/dev/null) || return 1
	version=${version#go version go}
	at_least "${version%% *}" "$(wanted_go)"
}

# use_go puts a Go that is new enough first in PATH, or fails.
use_go() {
	if command -v go >/dev/null && go_is_enough go; then
		return
	fi
	[ -x "$OWN_GO/bin/go" ] && go_is_enough "$OWN_GO/bin/go" || return 1
	PATH=$OWN_GO/bin:$PATH
	export PATH GOROOT=$OWN_GO GOTOOLCHAIN=local
}

# need_go is use_go with a way out.
need_go() { use_go || die "Go $(wanted_go) or later is needed: run 'make install-deps'"; }

# need_test_user makes the user that tests and the demo run as. Root only.
need_test_user() {
	if ! id "$TEST_USER" >/dev/null 2>&1; then
		say "add user $TEST_USER"
		useradd --create-home --shell /bin/sh "$TEST_USER"
	fi
	grep -q "^$TEST_USER:" /etc/subuid || usermod --add-subuids "$(free_range /etc/subuid)" "$TEST_USER"
	grep -q "^$TEST_USER:" /etc/subgid || usermod --add-subgids "$(free_range /etc/subgid)" "$TEST_USER"
}

# free_range FILE prints the 65536 ids after the last ones given out.
free_range() {
	awk -F: 'BEGIN { next_id = 100000 } $2 + $3 > next_id { next_id = $2 + $3 }
		END { printf "%d-%d\n", next_id, next_id + 65535 }' "$1"
}

# as_test_user CMD…: as that user, with nothing of root's environment. HOME_DIR
# is where it works.
as_test_user() {
	runuser -u "$TEST_USER" -- env -i HOME="$HOME_DIR" TMPDIR="$HOME_DIR/tmp" USER="$TEST_USER" LOGNAME="$TEST_USER" \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 CI="${CI:-}" "$@"
}

# make_home_dir sets HOME_DIR to a new directory of the test user.
make_home_dir() {
	local home
	home=$(getent passwd "$TEST_USER" | cut -d: -f6)
	HOME_DIR=$(runuser -u "$TEST_USER" -- mktemp -d "$home/mstage.XXXXXX")
	runuser -u "$TEST_USER" -- mkdir "$HOME_DIR/tmp"
}

# make_demo_dir SCRIPT EXAMPLE builds mstage and sets HOME_DIR to a directory,
# gone when the script ends, that has what SCRIPT needs to run EXAMPLE in it.
make_demo_dir() {
	"$ROOT/scripts/build.sh"
	if [ "$(id -u)" = 0 ]; then
		need_test_user
		make_home_dir
	else
		HOME_DIR=$(mktemp -d)
		mkdir "$HOME_DIR/tmp"
	fi
	trap 'chmod -R u+w "$HOME_DIR" || true; rm -rf "$HOME_DIR"' EXIT
	cp "$ROOT/bin/mstage" "$HOME_DIR/mstage"
	cp -R "$ROOT/examples/$2" "$HOME_DIR/$2"
	mkdir "$HOME_DIR/scripts"
	cp "$ROOT/scripts/$1" "$ROOT/scripts/env.sh" "$HOME_DIR/scripts/"
	chmod -R a+rX "$HOME_DIR"
}

# network_env lists the caller's variables that say how the network is reached.
network_env() {
	local name
	for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY CONTAINERS_REGISTRIES_CONF; do
		[ -z "${!name:-}" ] || printf '%s\n' "$name=${!name}"
	done
}

# in_demo_dir CMD…: as the caller, or for root as the test user.
in_demo_dir() {
	local network
	mapfile -t network < <(network_env)
	if [ "$(id -u)" = 0 ]; then
		as_test_user env "${network[@]}" "$@"
	else
		env TMPDIR="$HOME_DIR/tmp" "$@"
	fi
}

# now prints microseconds.
now() { echo "${EPOCHREALTIME/./}"; }

# figure NAME MICROSECONDS [WORDS] prints one line of a measurement.
figure() { printf '%-46s %8d.%d ms  %s\n' "$1" $(($2 / 1000)) $(($2 % 1000 / 100)) "${3:-}"; }

# pull_answered IMAGE [FLAG…]: pulls an image when a registry answers within 5 s;
# the download may take longer. Whether there is a network is not known before.
pull_answered() {
	local pid i
	mstage pull --progress plain "$@" >pulled 2>pull.log &
	pid=$!
	for i in $(seq 50); do
		if grep -qs '^#1 ' pull.log || ! kill -0 "$pid" 2>/dev/null; then break; fi
		[ "$i" != 50 ] || kill "$pid"
		sleep 0.1
	done
	if wait "$pid"; then
		say "as $(id -un): a registry answers; mstage pull $1"
		cat pulled
	else
		say "as $(id -un): no registry answers ($(head -n 1 pull.log))"
		return 1
	fi
}

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

# host_sources SCHEME prints this host's sources of Debian 12 with that scheme, an
# extended regular expression, so that a mirror that it is set to serves a new root
# file system too; nothing where it has none.
host_sources() {
	command -v apt-get >/dev/null || return 0
	# shellcheck disable=SC2016 # apt-get expands
	apt-get indextargets --format '$(LABEL) $(CODENAME) deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
		awk -v scheme="^($1):" '$1 ~ /^Debian/ && $2 ~ /^bookworm/ && $4 ~ scheme && $6 == "main" { print $3, $4, $5, $6 }'
}

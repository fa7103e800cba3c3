#!/usr/bin/env bash
# clean-room.sh [--demo-only] [--keep]: README's two commands in a new Debian 12
# that has git, make and certificates: clones HEAD into it, runs `make demo` and
# `make test` there as root and says how long each took. CLEAN_ROOM_TEST names
# another target for the second. Root only. The host lends its kernel, network and
# what it takes to reach Debian's packages and the module proxy (sources, proxies,
# certificates), no program and no cache.
# clean-room.sh --in DIR [CMD…]: CMD or a shell in the directory that --keep left.
set -euo pipefail
. "$(dirname "$0")/env.sh"

include=git,make,ca-certificates
bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}

# apt_options prints how this host's apt downloads: proxies, time-outs, dates.
apt_options() {
	command -v apt-config >/dev/null || return 0
	# shellcheck disable=SC1083 # apt-config's format
	apt-config dump --no-empty --format '%F "%v";%n' Acquire |
		grep -E '^Acquire::(https?::|Check-|Max-ValidTime|Min-ValidTime|Retries|ForceIPv)' |
		grep -vE '::Proxy-Auto-?Detect' || true
}

# make_base FILE writes the tar of the Debian to begin with. One less than a week
# old serves again when it comes from the same sources.
make_base() {
	local sources=() aptopts=()
	host_sources 'https?' >"$dir/sources"
	apt_options >"$dir/aptopts"
	[ ! -s "$dir/aptopts" ] || aptopts=(--aptopt="$dir/aptopts")
	! grep -q ' bookworm main$' "$dir/sources" || sources=(-)
	sha256sum <(echo "$include") "$dir/sources" "$dir/aptopts" | cut -d' ' -f1 >"$dir/key"
	if [ -n "$(find "$1" -mtime -7 2>/dev/null)" ] && cmp -s "$dir/key" "$1.key"; then
		return
	fi
	say "mmdebstrap makes a Debian 12 with $include"
	mkdir -p "$(dirname "$1")"
	TMPDIR=/var/tmp mmdebstrap --quiet --mode=root --variant=minbase --include="$include" "${aptopts[@]}" \
		bookworm "$dir/base.tar" "${sources[@]}" <"$dir/sources"
	mv "$dir/base.tar" "$1"
	mv "$dir/key" "$1.key"
}

# furnish ROOT: what only this host knows, and the repository.
furnish() {
	cp -L /etc/resolv.conf /etc/hosts "$1/etc/"
	if [ -d /usr/local/share/ca-certificates ]; then
		cp -RL /usr/local/share/ca-certificates "$1/usr/local/share/"
	fi
	[ ! -e "$bundle" ] || cat "$bundle" >"$1/etc/ssl/certs/ca-certificates.crt"
	# The network is the host's: no package may start a service in it.
	printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
	chmod 0755 "$1/usr/sbin/policy-rc.d"
	git clone -q --no-local "$ROOT" "$1/root/mstage"
}

# lent prints the settings that the room gets from this host, one NAME=VALUE a line.
lent() {
	local name value
	for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
		[ -z "${!name:-}" ] || printf '%s=%s\n' "$name" "${!name}"
	done
	use_go || return 0
	for name in GOPROXY GONOPROXY GOSUMDB GONOSUMDB GOPRIVATE GOINSECURE; do
		value=$(go env "$name")
		[ -z "$value" ] || printf '%s=%s\n' "$name" "$value"
	done
}

# make_dev DIR: the devices that every Debian has, and this host's tun.
make_dev() {
	mount -t tmpfs -o mode=755,nosuid dev "$1"
	mkdir "$1"/{pts,shm,net}
	cp -a /dev/{null,zero,full,random,urandom,tty} "$1/"
	[ ! -e /dev/net/tun ] || cp -a /dev/net/tun "$1/net/"
	mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$1/pts"
	mount -t tmpfs -o mode=1777,nosuid,nodev shm "$1/shm"
	ln -s pts/ptmx "$1/ptmx"
	ln -s /proc/self/fd "$1/fd"
	ln -s fd/0 "$1/stdin"
	ln -s fd/1 "$1/stdout"
	ln -s fd/2 "$1/stderr"
}

# enter ROOT CMD…, the first process of new namespaces: makes ROOT the root and runs
# CMD in it. Not with chroot(2): nothing below one may make a user namespace.
enter() {
	local root=$1 settings
	shift
	mapfile -t settings < <(lent)
	mount --bind "$root" "$root"
	mount -o remount,bind,suid,dev,exec "$root"
	mount -t proc proc "$root/proc"
	mount -t sysfs sysfs "$root/sys"
	mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
	make_dev "$root/dev"
	cd "$root"
	pivot_root . mnt
	umount -l /mnt
	mount --make-rshared / # as an init does
	cd /root
	# CI: nothing may be left out for want of a package.
	exec env -i HOME=/root USER=root CI=true LANG=C.UTF-8 TERM="${TERM:-dumb}" \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${settings[@]}" "$@"
}

# in_room ROOT CMD… becomes CMD in ROOT, with namespaces of its own. It ends with
# its parent, however that ends, and so does all that it started.
in_room() {
	exec env --default-signal setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --uts --ipc -- \
		"$0" --enter "$@"
}

# step TARGET, in the room: one target of the Makefile and a line about it in /times.
step() {
	local begin=$SECONDS
	say "make $1"
	make "$1" || die "make $1 failed after $((SECONDS - begin)) s"
	printf 'make %s %d s\n' "$1" $((SECONDS - begin)) >>/times
}

case ${1:-} in
--enter)
	shift
	enter "$@"
	;;
--inside)
	cd "$ROOT"
	shift
	for target in "$@"; do
		step "$target"
	done
	exit
	;;
esac

[ "$(id -u)" = 0 ] || die "root is needed: only root makes a root file system of root's and mounts it"
if [ "${1:-}" = --in ]; then
	dir=$2
	shift 2
	[ $# -gt 0 ] || set -- bash
	in_room "$dir/root" "$@"
fi

keep=
targets=(demo "${CLEAN_ROOM_TEST:-test}")
while [ $# -gt 0 ]; do
	case $1 in
	--demo-only) targets=(demo) ;;
	--keep) keep=1 ;;
	*) die "no such option: $1" ;;
	esac
	shift
done

dir=$(mktemp -d /var/tmp/mstage-clean-room.XXXXXX)
child=
# Only what was started here is ended; its mounts end with it.
clean_up() {
	if [ -n "$child" ]; then
		kill -KILL "$child" 2>/dev/null || true
		wait "$child" 2>/dev/null || true
	fi
	if [ -n "$keep" ]; then
		say "kept: scripts/clean-room.sh --in $dir"
	else
		rm -rf --one-file-system "$dir"
	fi
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

begin=$SECONDS
make_base "$ROOT/bin/clean-room/base.tar"
mkdir "$dir/root"
tar -C "$dir/root" --numeric-owner -xpf "$ROOT/bin/clean-room/base.tar"
furnish "$dir/root"
if [ -n "$(git -C "$ROOT" status --porcelain)" ]; then
	say "left out: what is not committed"
fi
echo "the room $((SECONDS - begin)) s" >"$dir/root/times"
in_room "$dir/root" /root/mstage/scripts/clean-room.sh --inside "${targets[@]}" </dev/null &
child=$!
wait "$child" || die "${targets[*]}: see above"
child=
printf '\nclean room: %s\n' "$(paste -sd, "$dir/root/times" | sed 's/,/, /g')"

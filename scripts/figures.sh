#!/usr/bin/env bash
# figures.sh: measures what mstage promises, as a user without privileges, and
# prints the least of RUNS (5) runs in milliseconds: COPY --from against cp -a on
# the same data and file system, parallel stages, RUN true, unchanged builds.
set -euo pipefail
. "$(dirname "$0")/env.sh"

RUNS=${RUNS:-5}
files=${FILES:-50000}

# least COMMAND… sets LEAST to its quickest run's microseconds. before, when it
# is a function, runs ahead of each run and is not measured; nothing is dirty then.
least() {
	local i begin took
	LEAST=
	for i in $(seq "$RUNS"); do
		before "$i"
		sync -f .
		begin=$(now)
		"$@" >/dev/null 2>last.log || { cat last.log >&2; die "$* failed"; }
		took=$(($(now) - begin))
		if [ -z "$LEAST" ] || [ "$took" -lt "$LEAST" ]; then LEAST=$took; fi
	done
}
before() { :; }

# make_data writes files of 20971 bytes, a gigabyte for 50000, 500 to a directory.
make_data() {
	local d
	for d in $(seq $((files / 500))); do
		mkdir -p "data/$d"
		head -c $((500 * 20971)) /dev/urandom | split -b 20971 -a 3 -d - "data/$d/f"
	done
	mkdir large
	cat data/*/* >large/file
}

# step_time prints the microseconds that the step named so took, of last.log.
step_time() {
	local vertex
	vertex=$(sed -n 's/.*"step-started".*"vertex":\([0-9]*\),"name":"[^"]*'"$1"'.*/\1/p' last.log | head -n 1)
	sed -n 's/.*"step-done".*"vertex":'"$vertex"'[,}].*"duration":\([0-9]*\)[0-9]\{3\}[,}].*/\1/p' last.log | head -n 1
}

# compare_copies DIR measures COPY --from of an image made of DIR, each time to
# another place so that nothing is cached, and cp -a of DIR.
compare_copies() {
	local build=0 step=0 copy i took
	tar --owner=0 --group=0 -cf - "$1" | mstage import - source >/dev/null
	mkdir -p copies
	for i in $(seq "$RUNS"); do
		printf 'FROM source AS source\nFROM busybox\nCOPY --from=source /%s /to%s-%s\n' "$1" "$i" "$1" >copies/Dockerfile
		sync -f .
		took=$(now)
		mstage build --progress json copies >/dev/null 2>last.log || { cat last.log >&2; die "build failed"; }
		took=$(($(now) - took))
		if [ "$build" = 0 ] || [ "$took" -lt "$build" ]; then build=$took; fi
		took=$(step_time "COPY --from")
		if [ "$step" = 0 ] || [ "$took" -lt "$step" ]; then step=$took; fi
	done
	copy=
	for i in $(seq "$RUNS"); do
		rm -rf copied
		sync -f .
		took=$(now)
		cp -a "$1" copied
		took=$(($(now) - took))
		if [ -z "$copy" ] || [ "$took" -lt "$copy" ]; then copy=$took; fi
	done
	rm -rf copied
	figure "cp -a of $2" "$copy"
	figure "  build with COPY --from of it, all in all" "$build" "$((build * 1000 / copy)) ‰ of cp -a"
	figure "  its COPY step alone" "$step" "$((step * 1000 / copy)) ‰ of cp -a"
}

# stages writes 8 stages that sleep 2 s each.
stages() {
	local i
	for i in 1 2 3 4 5 6 7 8; do printf 'FROM busybox AS s%s\nRUN sleep 2 && echo >/f%s\n' "$i" "$i"; done
	printf 'FROM busybox\n'
	for i in 1 2 3 4 5 6 7 8; do printf 'COPY --from=s%s /f%s /\n' "$i" "$i"; done
}

# many COUNT LINE writes a Dockerfile of so many instructions.
many() {
	local i
	printf 'FROM busybox\nARG SALT\n'
	for i in $(seq "$1"); do printf '%s\n' "${2//@/$i}"; done
}

measure() {
	cd "$1"
	export MSTAGE_ROOT=$1/store PATH=$1:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	mstage import rootfs.tar busybox >/dev/null
	mkdir parallel fifty unchanged
	stages >parallel/Dockerfile
	many 50 'RUN true' >fifty/Dockerfile
	many 49 'RUN echo @ >/f@' >unchanged/Dockerfile
	least mstage version
	figure "mstage version" "$LEAST"
	RUNS=1 least mstage build parallel
	figure "8 stages that sleep 2 s" "$LEAST"
	before() { sed -i "2s/.*/ARG SALT=$1/" fifty/Dockerfile; }
	least mstage build fifty
	figure "50 × RUN true, each" $((LEAST / 50))
	before() { :; }
	mstage build unchanged >/dev/null 2>&1
	least mstage build unchanged
	figure "unchanged build of 50 instructions" "$LEAST"
	make_data
	compare_copies data "$files files of 20971 bytes"
	compare_copies large "one file of $(stat -c %s large/file) bytes"
	mstage prune -a -f >/dev/null
}

if [ "${1:-}" = --inside ]; then
	measure "$2"
	exit
fi

"$ROOT/scripts/build.sh"
if [ "$(id -u)" = 0 ]; then
	need_test_user
	make_home_dir
else
	HOME_DIR=$(mktemp -d)
	mkdir "$HOME_DIR/tmp"
fi
trap 'chmod -R u+rwX "$HOME_DIR" || true; rm -rf "$HOME_DIR"' EXIT
cp "$ROOT/bin/mstage" "$HOME_DIR/mstage"
mkdir "$HOME_DIR/scripts"
cp "$ROOT"/scripts/{figures,env}.sh "$HOME_DIR/scripts/"
make_rootfs "$HOME_DIR/rootfs.tar"
chmod -R a+rX "$HOME_DIR"/{mstage,scripts,rootfs.tar}
say "figures: the least of $RUNS runs; $(nproc) CPUs, load $(cut -d' ' -f1 /proc/loadavg)"
in_demo_dir env RUNS="$RUNS" FILES="$files" "$HOME_DIR/scripts/figures.sh" --inside "$HOME_DIR"

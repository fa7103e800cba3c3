#!/usr/bin/env bash
# pull-figures.sh: how long mstage, as a user without privileges, and BuildKit, as
# root, take for FROM an image of 20 layers and a gigabyte and one RUN, from the
# same registry on loopback, into an empty store each time, in turns. Prints the
# least of RUNS (3) runs in milliseconds. Root only: buildkitd needs it. Nothing is
# removed before the end, because ext4 makes new files more slowly for a while after
# many were removed; that takes 3 GB for each run.
set -euo pipefail
. "$(dirname "$0")/env.sh"

RUNS=${RUNS:-3}
LAYERS=20
layer_bytes=$((52 << 20))

# make_context DIR writes a Dockerfile with LAYERS layers of real files: the Go
# toolchain and the modules that mstage is built of.
make_context() {
	local i
	mkdir -p "$1"
	{
		echo "FROM busybox"
		for i in $(seq "$LAYERS"); do echo "ADD $i.tar /$i/"; done
	} >"$1/Dockerfile"
	# Files under a megabyte or so, in the order of their names, as many as fit.
	find "$(go env GOROOT)" "$(go env GOMODCACHE)" -type f -size -2000k -printf '%s %P\t%p\n' 2>/dev/null | LC_ALL=C sort -k 2 |
		awk -F '\t' -v limit="$layer_bytes" -v layers="$LAYERS" -v dir="$1" '
			BEGIN { n = 1 }
			n <= layers { split($1, size, " "); sum += size[1]; print $2 >dir "/" n ".list"; if (sum > limit) { sum = 0; n++ } }
			END { exit n <= layers }' || die "there are not enough files for $LAYERS layers"
	for i in $(seq "$LAYERS"); do
		tar -cPf "$1/$i.tar" --transform 's|^/||' -T "$1/$i.list"
		rm "$1/$i.list"
	done
}

# Inside: as the test user in the directory $2.
if [ "${1:-}" = --inside ]; then
	cd "$2"
	"$2/mstage" --root "$2/$3" build -q "${@:4}"
	exit
fi

[ "$(id -u)" = 0 ] || die "root is needed: buildkitd runs as root"
need_go
"$ROOT/scripts/build.sh"
"$ROOT/scripts/registry.sh"
"$ROOT/scripts/buildkit.sh"
need_test_user
make_home_dir
state=$(mktemp -d)
services=()
# clean_up ends what was started and removes what was made.
clean_up() {
	kill "${services[@]}" 2>/dev/null || true
	wait "${services[@]}" 2>/dev/null || true
	for store in "$HOME_DIR"/made "$HOME_DIR"/store*; do
		as_test_user "$HOME_DIR/mstage" --root "$store" prune -a -f >/dev/null || true
	done
	chmod -R u+rwX "$HOME_DIR" || true
	rm -rf "$HOME_DIR" "$state"
}
trap clean_up EXIT

say "registry"
port=$((20000 + RANDOM % 10000))
image=127.0.0.1:$port/big:1
cat >"$state/registry.yml" <<EOF2
version: 0.1
storage: {filesystem: {rootdirectory: $state/registry}}
http: {addr: "127.0.0.1:$port"}
log: {level: error, accesslog: {disabled: true}}
EOF2
OTEL_TRACES_EXPORTER=none "$ROOT/bin/tools/registry" serve "$state/registry.yml" >"$state/registry.log" 2>&1 &
services+=($!)

say "image of $LAYERS layers"
cp "$ROOT/bin/mstage" "$HOME_DIR/mstage"
mkdir "$HOME_DIR/scripts"
cp "$ROOT"/scripts/{pull-figures,env}.sh "$HOME_DIR/scripts/"
make_rootfs "$HOME_DIR/rootfs.tar"
make_context "$HOME_DIR/context"
mkdir "$HOME_DIR/use"
printf 'FROM %s\nRUN true\n' "$image" >"$HOME_DIR/use/Dockerfile"
chmod -R a+rX "$HOME_DIR"/{mstage,scripts,rootfs.tar,context,use}
as_test_user "$HOME_DIR/mstage" --root "$HOME_DIR/made" import "$HOME_DIR/rootfs.tar" busybox >/dev/null
as_test_user "$HOME_DIR/scripts/pull-figures.sh" --inside "$HOME_DIR" made -t "$image" --push context >/dev/null

# with_mstage N builds with mstage into an empty store and prints microseconds.
with_mstage() {
	local begin
	sync
	begin=$(now)
	as_test_user "$HOME_DIR/scripts/pull-figures.sh" --inside "$HOME_DIR" "store$1" use >/dev/null
	echo $(($(now) - begin))
}

# with_buildkit N does the same with a new buildkitd; its start is not counted.
with_buildkit() {
	local begin daemon dir=$state/buildkit$1 address=unix://$state/buildkit$1.sock
	printf '[registry."127.0.0.1:%s"]\nhttp = true\n' "$port" >"$state/buildkitd.toml"
	env -i PATH="$PATH" HOME="$state" "$ROOT/bin/tools/buildkitd" --config "$state/buildkitd.toml" --addr "$address" --root "$dir" \
		--otel-socket-path "$dir.otel" --containerd-worker=false --oci-worker=true --oci-worker-gc=false \
		--oci-worker-binary="$(command -v runc)" --oci-worker-net=host >"$dir.log" 2>&1 &
	daemon=$!
	for _ in $(seq 300); do
		! "$ROOT/bin/tools/buildctl" --addr "$address" debug workers >/dev/null 2>&1 || break
		sleep 0.1
	done
	sync
	begin=$(now)
	"$ROOT/bin/tools/buildctl" --addr "$address" build --progress plain --frontend dockerfile.v0 \
		--local context="$HOME_DIR/use" --local dockerfile="$HOME_DIR/use" >"$dir.out" 2>&1 || { tail "$dir.out" >&2; die "buildctl failed"; }
	echo $(($(now) - begin))
	kill "$daemon"
	wait "$daemon" 2>/dev/null || true
}

least_mstage='' least_buildkit=''
for i in $(seq "$RUNS"); do
	took=$(with_mstage "$i")
	if [ -z "$least_mstage" ] || [ "$took" -lt "$least_mstage" ]; then least_mstage=$took; fi
	took=$(with_buildkit "$i")
	if [ -z "$least_buildkit" ] || [ "$took" -lt "$least_buildkit" ]; then least_buildkit=$took; fi
done
blobs=$(du -sm "$state/registry" | cut -f1)
what="FROM $LAYERS layers, $blobs MB, and RUN true"
figure "$what" "$least_mstage"
figure "  the same with BuildKit $(go list -m -f '{{.Version}}' github.com/moby/buildkit)" "$least_buildkit"

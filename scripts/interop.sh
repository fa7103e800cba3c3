#!/usr/bin/env bash
# interop.sh: a user without privileges builds integration/testdata/interop to
# every output; docker and skopeo read them. Root only: it starts a dockerd with
# directories and a socket of its own and without touching the host's network.
set -euo pipefail
. "$(dirname "$0")/env.sh"

expected="hello made replaced gone 7:8 2"

# build DIR writes the outputs into DIR, as whoever calls.
build() {
	cd "$1"
	export MSTAGE_ROOT=$1/store
	./mstage import rootfs.tar busybox
	./mstage build -q -t interop:1 -o type=docker,dest=docker.tar -o type=oci,dest=oci.tar \
		-o type=oci,dest=oci,tar=false -o type=tar,dest=rootfs-out.tar -o type=image interop
	./mstage tag interop:1 interop:saved
	./mstage save -o saved.tar interop:1 busybox interop:saved
	./mstage inspect -f '{{.Mstage.ConfigDigest}}' interop:1 >saved.id
	./mstage prune -a -f
}

# load DIR loads what docker and skopeo wrote, runs it and compares IDs.
load() {
	local archive id name
	cd "$1"
	export MSTAGE_ROOT=$1/store
	for archive in from-docker.tar from-docker.tar.gz from-skopeo-oci.tar from-skopeo-docker.tar from-skopeo-dir ${PODMAN:+from-podman.tar}; do
		if [ -d "$archive" ]; then
			./mstage load -q "$archive"
		else
			./mstage load -q <"$archive"
		fi | sed "s|^|$archive: |"
		name=interop:1
		[ "$archive" != from-podman.tar ] || name=localhost/interop:1 # how podman reads a name without a host
		id=$(./mstage images -q --no-trunc "$name")
		[ "$id" = "$(cat docker.id)" ] || die "$archive: the image is $id and not $(cat docker.id)"
		got=$(./mstage run --network none "$name")
		./mstage tag "$name" interop:1
		[ "$got" = "$expected" ] || die "mstage run of $archive prints '$got', want '$expected'"
		# What came in goes out with the same ID.
		./mstage save -o "again-$(basename "$archive")" interop:1
		./mstage prune -a -f >/dev/null
	done
}

if [ "${1:-}" = --inside ]; then
	"$2" "$3"
	exit
fi

[ "$(id -u)" = 0 ] || die "root is needed: dockerd runs the images"
command -v dockerd >/dev/null || die "dockerd is needed: apt-get install docker.io"
command -v skopeo >/dev/null || die "skopeo is needed: apt-get install skopeo"
[ -x "$ROOT/bin/mstage" ] || "$ROOT/scripts/build.sh"

need_test_user
make_home_dir
state=$(mktemp -d)
daemon=
services=()
# Only what was started here is ended, and only what was made here removed.
clean_up() {
	if [ ${#services[@]} -gt 0 ]; then
		kill "${services[@]}" 2>/dev/null || true
		wait "${services[@]}" 2>/dev/null || true
	fi
	if [ -n "$daemon" ]; then
		kill "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
		# A mount of its own where that of / is private: dockerd leaves it behind.
		umount "$state/data" 2>/dev/null || true
	fi
	chmod -R u+rwX "$HOME_DIR" || true
	rm -rf "$HOME_DIR" "$state"
}
trap clean_up EXIT

say "build as $TEST_USER"
cp "$ROOT/bin/mstage" "$HOME_DIR/mstage"
cp -R "$ROOT/integration/testdata/interop" "$HOME_DIR/interop"
mkdir "$HOME_DIR/scripts"
cp "$ROOT"/scripts/{interop,env}.sh "$HOME_DIR/scripts/"
make_rootfs "$HOME_DIR/rootfs.tar"
chmod -R a+rX "$HOME_DIR"/{mstage,interop,scripts,rootfs.tar}
as_test_user "$HOME_DIR/scripts/interop.sh" --inside build "$HOME_DIR"

say "dockerd"
export DOCKER_HOST=unix://$state/docker.sock DOCKER_CONFIG=$state/config
dockerd --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs --data-root="$state/data" \
	--exec-root="$state/exec" --pidfile="$state/pid" -H "$DOCKER_HOST" >"$state/log" 2>&1 &
daemon=$!
for _ in $(seq 300); do
	if docker version >/dev/null 2>&1; then
		break
	fi
	kill -0 "$daemon" 2>/dev/null || break
	sleep 0.1
done
docker version >/dev/null 2>&1 || {
	tail -n 30 "$state/log" >&2
	die "dockerd does not answer"
}

# check IMAGE runs an image with docker and compares what it prints.
check() {
	local got
	got=$(docker run --rm --network none "$@")
	[ "$got" = "$expected" ] || die "docker run $1 prints '$got', want '$expected'"
	echo "docker run $1: $got"
}

cd "$HOME_DIR"
say "docker load of the docker archive"
docker load -i docker.tar
check interop:1
[ "$(docker image inspect -f '{{.Config.StopSignal}} {{.Config.Labels.a}}' interop:1)" = "SIGQUIT b" ] || die "docker image inspect differs"
say "the OCI outputs, through skopeo"
for from in oci-archive:oci.tar oci:oci docker-archive:docker.tar; do
	skopeo inspect "$from" >/dev/null || die "skopeo can't inspect $from"
	skopeo --insecure-policy copy -q "$from" "docker-daemon:interop:skopeo" --dest-daemon-host "$DOCKER_HOST"
	check interop:skopeo
	docker rmi -f interop:skopeo >/dev/null
done
say "docker import of the root file system"
docker import -c 'USER 7:8' -c 'WORKDIR /opt/app' -c 'ENV GREETING=hello' rootfs-out.tar interop:rootfs >/dev/null
# shellcheck disable=SC2016 # the container's shell expands
check interop:rootfs sh -c 'echo $GREETING $(cat file) $(cat /home/file) $(test -e /etc/group || echo gone) $(id -u):$(id -g) $(stat -c %h hard)'

say "docker load of mstage save"
docker rmi -f interop:1 >/dev/null
docker load -q -i saved.tar | sort
check interop:saved
check interop:1
docker image inspect busybox >/dev/null
[ "$(docker image inspect -f '{{.Id}}' interop:1)" = "$(cat saved.id)" ] || die "docker has another ID than mstage"

say "mstage load of docker save, skopeo copy and podman save"
docker image inspect -f '{{.Id}}' interop:1 >docker.id
docker save interop:1 interop:rootfs busybox >from-docker.tar
gzip -k from-docker.tar
# skopeo writes the config anew when it turns docker into OCI: this is OCI all the way.
skopeo copy -q oci-archive:saved.tar:1 oci-archive:from-skopeo-oci.tar:interop:1
skopeo copy -q docker-archive:saved.tar:interop:1 docker-archive:from-skopeo-docker.tar:interop:1
skopeo copy -q oci-archive:saved.tar:1 oci:from-skopeo-dir:interop:1
if command -v podman >/dev/null; then
	podman --root "$state/podman" --runroot "$state/podman-run" --storage-driver vfs load -q -i saved.tar >/dev/null
	podman --root "$state/podman" --runroot "$state/podman-run" --storage-driver vfs save -q -o from-podman.tar interop:1
	export PODMAN=1
fi
chmod -R a+rX .
runuser -u "$TEST_USER" -- env PODMAN="${PODMAN:-}" HOME="$HOME_DIR" TMPDIR="$HOME_DIR/tmp" "$HOME_DIR/scripts/interop.sh" --inside load "$HOME_DIR"
for again in again-*; do
	docker rmi -f interop:1 >/dev/null
	docker load -q -i "$again"
	[ "$(docker image inspect -f '{{.Id}}' interop:1)" = "$(cat docker.id)" ] || die "docker has another ID after $again"
	check interop:1
done
# in_container ARG…: builds inside a container that docker starts with ARGs, as
# docs/ci.md says, from what is in HOME_DIR.
in_container() {
	# shellcheck disable=SC2016 # the container's shell expands
	docker run --rm --network none --security-opt seccomp=unconfined --security-opt systempaths=unconfined \
		-v "$HOME_DIR:/in:ro" -e HOME=/tmp -e MSTAGE_ROOT=/tmp/store "$@" interop:rootfs \
		sh -c 'cd /in && ./mstage import rootfs.tar busybox >/dev/null && ./mstage build -q -t x interop >/dev/null && ./mstage run x'
}
say "mstage in a container, as its root: every owner"
got=$(in_container -u 0:0)
# The last number counts hard links; in the store other layers have the file, too.
[ "${got% *}" = "${expected% *}" ] || die "mstage in a container prints '$got', want '$expected'"
echo "mstage run in docker run: $got"
say "--load into dockerd, as $TEST_USER"
chmod 711 "$state"
chmod 666 "$state/docker.sock"
docker rmi -f interop:1 >/dev/null
# load_into HOST: builds and hands the image to a daemon.
load_into() {
	# shellcheck disable=SC2016 # the inner shell expands
	as_test_user sh -c 'cd "$HOME" && exec env DOCKER_HOST="$1" ./mstage --root loaded build -q -t interop:1 -t localhost/interop:1 --load interop' sh "$1" >/dev/null
}
# The base was pruned with the first store.
as_test_user "$HOME_DIR/mstage" --root "$HOME_DIR/loaded" import "$HOME_DIR/rootfs.tar" busybox >/dev/null
load_into "$DOCKER_HOST"
check interop:1
if command -v podman >/dev/null; then
	say "--load into podman's service"
	podman --storage-driver vfs --root "$state/podman" --runroot "$state/podman-run" system service -t 0 "unix://$state/podman.sock" 2>"$state/podman.log" &
	services+=($!)
	for _ in $(seq 100); do
		[ ! -S "$state/podman.sock" ] || break
		sleep 0.1
	done
	chmod 666 "$state/podman.sock"
	load_into "unix://$state/podman.sock"
	got=$(podman --url "unix://$state/podman.sock" image inspect -f '{{.Id}} {{.Config.StopSignal}}' localhost/interop:1)
	[ "$got" = "$(docker image inspect -f '{{.Id}}' interop:1 | cut -d: -f2) SIGQUIT" ] || die "podman has '$got'"
	echo "podman image inspect: $got"
fi
say "a registry: mstage pushes, all pull, and back"
"$ROOT/scripts/registry.sh"
cat >"$state/registry.yml" <<-EOF
	version: 0.1
	storage: {filesystem: {rootdirectory: $state/registry}}
	http: {addr: "127.0.0.1:0", relativeurls: true}
EOF
"$ROOT/bin/tools/registry" serve "$state/registry.yml" >"$state/registry.log" 2>&1 &
services+=($!)
registry=
for _ in $(seq 100); do
	registry=$(sed -nE 's/.*listening on (127\.0\.0\.1:[0-9]+).*/\1/p' "$state/registry.log")
	[ -z "$registry" ] || break
	sleep 0.1
done
[ -n "$registry" ] || die "the registry does not listen"
# in_store ARG…: mstage in the store that --load was built in.
in_store() { as_test_user "$HOME_DIR/mstage" --root "$HOME_DIR/loaded" "$@"; }
in_store build -q -t "$registry/interop:1" -o type=image --push "$HOME_DIR/interop" >/dev/null
digest=$(in_store push -q "$registry/interop:1")
# same WHO DIGEST: everybody has to see the digest that was pushed.
same() {
	[ "$2" = "$digest" ] || die "$1 has the digest '$2', pushed was '$digest'"
	echo "$1: $2"
}
docker pull -q "$registry/interop:1" >/dev/null
check "$registry/interop:1"
same docker "$(docker image inspect -f '{{range .RepoDigests}}{{println .}}{{end}}' "$registry/interop:1" | sed -n "s|^$registry/interop@||p")"
same skopeo "$(skopeo inspect --tls-verify=false -f '{{.Digest}}' "docker://$registry/interop:1")"
skopeo --insecure-policy copy -q --src-tls-verify=false "docker://$registry/interop:1" oci:pulled
if command -v podman >/dev/null; then
	mkdir -p "$DOCKER_CONFIG" # podman wants the file that docker does without
	[ -e "$DOCKER_CONFIG/config.json" ] || echo '{}' >"$DOCKER_CONFIG/config.json"
	# A store of its own: an image that came by an archive before keeps that digest.
	fresh=(--root "$state/podman2" --runroot "$state/podman2-run" --storage-driver vfs)
	podman "${fresh[@]}" pull -q --tls-verify=false "$registry/interop:1" >/dev/null
	same podman "$(podman "${fresh[@]}" image inspect -f '{{.Digest}}' "$registry/interop:1")"
fi
docker tag interop:rootfs "$registry/docker:1"
digest=$(docker push "$registry/docker:1" | sed -nE 's/.*digest: (sha256:[0-9a-f]+).*/\1/p')
in_store pull -q "$registry/docker:1" >/dev/null
same "mstage, of what docker pushed" "$(in_store push -q "$registry/docker:1" "$registry/again:1")"
same "docker, of what mstage pushed again" "$(docker pull "$registry/again:1" | sed -n 's/^Digest: //p')"
echo "interop: docker and skopeo read every output, and mstage theirs; a registry carries images between all of them"

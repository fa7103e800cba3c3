#!/usr/bin/env bash
# demo-nasa.sh: pulls a Debian base, or where no registry answers makes one from
# packages and imports it, builds and runs examples/nasa on it and says what each
# stage weighs, all as a user without privileges. Root gives way to the user
# mstage-test. Debian's packages and the npm registry have to be in reach; NASA
# needs not.
set -euo pipefail
. "$(dirname "$0")/env.sh"

# make_base FILE writes the tar of a small Debian 12. It grows in /var/tmp: the
# IDs that the caller may use don't get into a private home directory. Its sources
# are plain http ones only: it has no certificates, and packages are signed.
make_base() {
	local sources=()
	host_sources http >sources
	! grep -q ' bookworm main$' sources || sources=(-)
	TMPDIR=/var/tmp mmdebstrap --quiet --mode=unshare --variant=minbase bookworm "$1" "${sources[@]}" <sources
}

# build ARG…: `mstage build` with the steps on standard error and all the output
# in build.log, whose end is shown when the build fails.
build() {
	mstage build --progress plain --ca-bundle ca.pem "$@" 2>&1 | tee build.log |
		{ grep --line-buffered -E '^#[0-9]+ (\[|CACHED|DONE|ERROR)' || true; } >&2 ||
		die "$(tail -n 60 build.log)"
}

# show WANTED CMD…: runs and shows an image whose last line must match WANTED.
show() {
	local wanted=$1
	shift
	"$@" | tee output
	tail -n 1 output | grep -qE "$wanted" || die "the last line should match: $wanted"
}

# check_ca_bundle: a RUN finds the bundle in every variable, byte by byte, and
# nothing in the store has the certificate that was made for this run.
check_ca_bundle() {
	local sum
	sum=$(sha256sum <ca.pem)
	mstage build -q --ca-bundle ca.pem - >/dev/null <<-EOF
		FROM debian:12
		RUN for file in "\$SSL_CERT_FILE" "\$NODE_EXTRA_CA_CERTS" "\$PIP_CERT" "\$REQUESTS_CA_BUNDLE" \
		    "\$CURL_CA_BUNDLE" "\$GIT_SSL_CAINFO"; do echo "${sum%% *}  \$file"; done | sha256sum --check
	EOF
	# Layers in the store are plain files. Owners of other IDs may keep them to
	# themselves, hence unshare.
	if mstage unshare grep -rlF -- "$(sed -n 4p own-ca.pem)" "$MSTAGE_ROOT"; then
		die "the CA bundle is in the store"
	fi
	echo "every RUN had it; no layer has it, nor anything else in the store"
}

# layers IMAGE prints size in bytes and instruction of each layer, the first one
# first.
layers() {
	mstage history --human=false --no-trunc --format '{{.Size}} {{.CreatedBy}}' "$1" | tac | awk '$1 > 0'
}

# total sums the first column.
total() { awk '{ sum += $1 } END { printf "%d\n", sum }'; }

# above_base IMAGE prints the layers that it has on the base.
above_base() { layers "$1" | tail -n +$(($(layers debian:12 | wc -l) + 1)); }

# row BYTES TEXT prints one line of the report.
row() { awk -v kilobytes="$(($1 / 1000))" -v text="$2" 'BEGIN { printf "%11.3f MB  %s\n", kilobytes / 1000, text }'; }

# report says what the stages weigh. The image took one file from the stage, so
# the rest of what the stage has on the base was left behind.
report() {
	local base builder taken file size instruction
	base=$(layers debian:12 | total)
	builder=$(above_base nasa-builder | total)
	taken=$(above_base nasa | total)
	file=$(mstage run nasa stat -c %s /usr/local/bin/nasa)
	[ "$taken" = "$file" ] || die "history says $taken bytes on the base, the file has $file"
	row "$base" "base debian:12"
	row "$((base + builder))" "stage builder: the base and"
	above_base nasa-builder | while read -r size instruction; do
		instruction=${instruction/"/bin/sh -c "/}
		row "$size" "  $(tr -s ' ' <<<"${instruction% # buildkit}" | cut -c 1-60)"
	done
	row "$((base + taken))" "image nasa, the result: the base and"
	row "$taken" "  /usr/local/bin/nasa, from stage builder"
	row "$((builder - taken))" "left behind in stage builder"
}

# demo DIR runs in DIR as whoever calls; everything it makes is below DIR.
demo() {
	cd "$1"
	export MSTAGE_ROOT=$1/store PATH=$1:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	trap 'mstage prune -a -f >/dev/null' EXIT
	if ! pull_answered debian:12 --ca-bundle ca.pem; then
		say "mmdebstrap makes a Debian 12 base from packages"
		make_base debian.tar
		say "mstage import debian.tar debian:12"
		mstage import debian.tar debian:12
	fi
	say "mstage build -t nasa --ca-bundle ca.pem examples/nasa"
	build -t nasa nasa
	say "mstage run nasa"
	show '^Source: (api\.nasa\.gov|the bundled sample)' \
		mstage run -v "$1/ca.pem:/ca.pem:ro" -e NODE_EXTRA_CA_CERTS=/ca.pem nasa
	say "mstage run --network none nasa"
	show '^Source: the bundled sample' mstage run --network none nasa
	say "mstage build -t second --build-arg NASA_ID=… -f Dockerfile.second: from the image's tag and its ID"
	build -t second --build-arg "NASA_ID=$(mstage images -q nasa)" -f nasa/Dockerfile.second nasa
	show '^Source: the bundled sample' mstage run --network none second
	say "where is the CA bundle?"
	check_ca_bundle
	say "sizes, from mstage history (what each layer's files add up to)"
	build -q --target builder -t nasa-builder nasa
	report
}

if [ "${1:-}" = --inside ]; then
	demo "$2"
	exit
fi

make_demo_dir demo-nasa.sh nasa
# The caller's certificates, and one made now that nothing else can have.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj "/CN=demo of mstage" \
	-keyout /dev/null -out "$HOME_DIR/own-ca.pem" 2>/dev/null
cat "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$HOME_DIR/own-ca.pem" >"$HOME_DIR/ca.pem"
chmod a+r "$HOME_DIR"/*.pem
in_demo_dir "$HOME_DIR/scripts/demo-nasa.sh" --inside "$HOME_DIR"

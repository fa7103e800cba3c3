#!/usr/bin/env bash
# test.sh [--short|--race] [PACKAGE…]: vets, compiles every package's tests and
# runs them without privileges: as the caller, or for root as the user
# mstage-test, on copies of the sources that it can read. Ends with one line.
set -euo pipefail
. "$(dirname "$0")/env.sh"

# Static, as the product is: a sandbox's first program is this one, executed
# inside the image.
build_flags=(-tags "$TAGS" -ldflags '-linkmode external -extldflags "-static"')
run_flags=(-test.v -test.timeout=10m -test.shuffle=on)
short=
case ${1:-} in
--short)
	short=1
	run_flags+=(-test.short)
	shift
	;;
--race)
	build_flags+=(-race)
	shift
	;;
esac

# own_namespace lists packages whose tests expect to be root of a new user, mount
# and pid namespace and don't enter one by themselves.
own_namespace() {
	case $1 in
	storage/overlay | storage/layertar | storage/chainfs | engine/copy | engine/executor | engine/fetch) return 0 ;;
	*) return 1 ;;
	esac
}

# runs_go lists packages whose tests run Go, and so are the caller's even when that
# is root: the test user may have no way to the toolchain, nor to modules.
runs_go() { [ "$1" = sandbox/runc/internal/seccompgen ]; }

# run_tests NAME: one package's binary, in the package's directory, output to
# NAME.log. The directory has the sources: tests read testdata and more.
run_tests() {
	local enter=() as=("${runner[@]}")
	if runs_go "$1"; then
		as=()
	fi
	if own_namespace "$1" && ! grep -q . <<<"$(own_entry "$1")"; then
		enter=(unshare --map-auto --map-root-user --mount --pid --fork --mount-proc)
	fi
	# shellcheck disable=SC2016 # the inner shell expands
	"${as[@]}" env MSTAGE_BINARY="$HOME_DIR/mstage" MSTAGE_EMBEDDER="$HOME_DIR/embedder" MSTAGE_REGISTRY="$HOME_DIR/registry" sh -c 'cd "$1" && shift && exec "$@"' sh "$HOME_DIR/src/$1" \
		"${enter[@]}" "$HOME_DIR/bin/${1//\//_}.test" "${run_flags[@]}" </dev/null >"$HOME_DIR/log/${1//\//_}.log" 2>&1
}

# own_entry prints the names of test files that enter a namespace themselves.
own_entry() { grep -lE '^func TestMain\(' "$ROOT/$1"/*_test.go 2>/dev/null || true; }

# of_failed FILE prints a log without what belongs to tests that passed: of integration
# that is 200,000 lines. What a crash prints has no test's name and stays.
of_failed() {
	awk 'NR == FNR { if (/^ *--- FAIL: /) failed[$3]; next }
		/^=== (RUN|PAUSE|CONT|NAME) / { name = $3; next }
		/^ *--- (PASS|SKIP): / { name = ""; next }
		/^(panic|fatal error|SIG[A-Z]+): / { crashed = 1 }
		crashed || name == "" || name in failed' "$1" "$1"
}

# count WORD prints how many tests and subtests ended that way.
count() { cat "$HOME_DIR"/log/*.log | grep -cE "^ *--- $1: " || true; }

# unexpected_skips prints the skips that scripts/allowed-skips.txt does not name.
unexpected_skips() {
	local log name
	for log in "$HOME_DIR"/log/*.log; do
		name=$(basename "$log" .log)
		sed -nE 's/^ *--- SKIP: ([^ ]+) .*/\1/p' "$log" | sed "s|^|${name//_/\/} |"
	done | grep -vxEf <(sed -E '/^ *(#|$)/d; s/ *#.*//' "$ROOT/scripts/allowed-skips.txt") || true
}

need_go
cd "$ROOT"
mapfile -t packages < <(go list -tags "$TAGS" -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' "${@:-./...}" |
	sed -E 's|^github.com/mstage/mstage/?||')
[ ${#packages[@]} -gt 0 ] || die "no package has tests"

# Images go to docker too, which takes root; a run of some packages is not about
# that. CI has to have a dockerd, nobody else gets one without asking for it.
interop=
if [ $# -eq 0 ] && [ -z "$short" ] && [ "$(id -u)" = 0 ]; then
	interop=1
	[ "${CI:-}" != true ] || "$ROOT/scripts/install-deps.sh" interop
fi

say "go vet"
go vet -tags "$TAGS" "${@:-./...}"
"$ROOT/scripts/build.sh"
# The integration tests start registries.
with_registry=
case " ${packages[*]} " in
*" integration "*)
	with_registry=1
	"$ROOT/scripts/registry.sh"
	;;
esac

if [ "$(id -u)" = 0 ]; then
	need_test_user
	make_home_dir
	runner=(as_test_user)
else
	HOME_DIR=$(mktemp -d)
	mkdir "$HOME_DIR/tmp"
	runner=(env TMPDIR="$HOME_DIR/tmp")
fi
# What tests left behind in namespaces may belong to mapped ids: root removes it,
# anybody else needs the namespace again.
clean_up() {
	chmod -R u+rwX "$HOME_DIR" 2>/dev/null || true
	rm -rf "$HOME_DIR" 2>/dev/null || unshare --map-auto --map-root-user rm -rf "$HOME_DIR"
}
trap clean_up EXIT

say "compile the tests of ${#packages[@]} packages"
mkdir "$HOME_DIR"/{src,bin,log}
tar --exclude=./bin --exclude=./.git -cf - . | tar -C "$HOME_DIR/src" -xf -
cp bin/mstage "$HOME_DIR/mstage"
for p in "${packages[@]}"; do
	go test -c "${build_flags[@]}" -o "$HOME_DIR/bin/${p//\//_}.test" "./$p"
done
# A program of the integration tests; who runs them may have no Go.
go build -tags "$TAGS" -ldflags '-s -w -linkmode external -extldflags "-static"' -o "$HOME_DIR/embedder" ./integration/testdata/embedder
if [ -n "$with_registry" ]; then
	cp bin/tools/registry "$HOME_DIR/registry"
	chmod a+rX "$HOME_DIR/registry"
fi
chmod -R a+rX "$HOME_DIR"/{src,bin,mstage,embedder}
if [ "$(id -u)" = 0 ]; then
	chown -R "$TEST_USER:" "$HOME_DIR/src"
fi

say "run"
failed=()
for p in "${packages[@]}"; do
	begin=$SECONDS
	if run_tests "$p"; then
		printf 'ok    %-28s %4d s\n' "$p" $((SECONDS - begin))
	else
		failed+=("$p")
		printf 'FAIL  %s\n' "$p"
		of_failed "$HOME_DIR/log/${p//\//_}.log" | sed 's/^/      /'
	fi
done

if [ -n "$interop" ]; then
	if ! command -v dockerd >/dev/null; then
		echo "not run: scripts/interop.sh, for want of dockerd (apt-get install docker.io)"
	elif ! "$ROOT/scripts/interop.sh" >"$HOME_DIR/log-interop" 2>&1; then
		failed+=(scripts/interop.sh)
		sed 's/^/      /' "$HOME_DIR/log-interop"
	else
		tail -n 1 "$HOME_DIR/log-interop"
	fi
fi

skipped=$(unexpected_skips)
printf '\n%d packages%s\n' ${#packages[@]} "${failed[*]:+; failed: ${failed[*]}}"
printf '%d passed, %d failed, %d skipped\n' "$(count PASS)" "$(count FAIL)" "$(count SKIP)"
if [ -n "$skipped" ]; then
	printf 'skipped, but not in scripts/allowed-skips.txt:\n%s\n' "$skipped"
	[ "${CI:-}" != true ] || exit 1
fi
[ ${#failed[@]} -eq 0 ]

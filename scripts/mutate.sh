#!/usr/bin/env bash
# mutate.sh [REGEXP]: breaks one rule of the engine after the other, as
# mutations.txt says, and wants the cases that are about it to differ from their
# goldens while others don't. A case that stays green, a text that is not in its
# file exactly once and a program that does not compile are failures. It works on
# a copy of the sources, of mutations that match REGEXP, and ends with one line.
set -euo pipefail
. "$(dirname "$0")/env.sh"

# unaffected is a case that no mutation may break: else it breaks everything, and
# a red case says nothing about its rule.
unaffected="base alone"
export MSTAGE_VERSION=mutant

# mutation NAME FILE OLD NEW CASE…: one of them, from copy to verdict.
mutation() {
	local name=$1 file=$2 old=$3 new=$4 count failed
	shift 4
	if ! grep -qE -- "$only" <<<"$name"; then
		return
	fi
	total=$((total + 1))
	count=$(OLD=$old perl -0777 -ne 'my $n = () = /\Q$ENV{OLD}\E/g; print $n' "$copy/$file")
	if [ "$count" != 1 ]; then
		verdict "$name" "the text is in $file $count times, not once"
		return
	fi
	OLD=$old NEW=$new perl -0777 -pi -e 's/\Q$ENV{OLD}\E/$ENV{NEW}/' "$copy/$file"
	if "$copy/scripts/build.sh" "" "$HOME_DIR/mutant" >"$log" 2>&1; then
		chmod 0755 "$HOME_DIR/mutant"
		failed=$(red_cases "$HOME_DIR/mutant" "$unaffected" "$@")
		judge "$name" "$failed" "$@"
	else
		verdict "$name" "does not compile: $(tail -n 3 "$log")"
	fi
	cp "$ROOT/$file" "$copy/$file"
}

# red_cases BINARY CASE…: prints those that differ from their goldens. All of them
# have to run.
red_cases() {
	local binary=$1 pattern
	shift
	pattern=$(printf '%s\n' "$@" | tr ' ' '_' | sed 's/[][().*+?^$|\\]/\\&/g' | paste -sd '|')
	# shellcheck disable=SC2016 # the inner shell expands
	"${runner[@]}" env MSTAGE_BINARY="$binary" sh -c 'cd "$1" && shift && exec "$@"' sh "$HOME_DIR/src/integration/differential" \
		"$HOME_DIR/differential.test" -test.v -test.run "^TestCasesMatchTheirGoldens\$/^($pattern)\$" </dev/null >"$log" 2>&1 || true
	[ "$(grep -cE '^ +--- (PASS|FAIL): TestCases' "$log")" = $# ] || die "not all of $* ran:
$(tail -n 20 "$log")"
	sed -nE 's|^ +--- FAIL: TestCasesMatchTheirGoldens/(.*) \([0-9.]+s\)$|\1|p' "$log" | tr '_' ' '
}

# judge NAME RED CASE…: wants all cases in the list RED, and no other.
judge() {
	local name=$1 red=$2 want
	shift 2
	if grep -qxF -- "$unaffected" <<<"$red"; then
		verdict "$name" "breaks everything"
		return
	fi
	for want in "$@"; do
		if ! grep -qxF -- "$want" <<<"$red"; then
			verdict "$name" "nothing notices in: $want"
			return
		fi
	done
	verdict "$name" "" "$(printf '%s\n' "$@" | paste -sd ';' | sed 's/;/; /g')"
}

# verdict NAME WHY RED prints a line of the table. WHY is empty when all is well.
verdict() {
	if [ -n "$2" ]; then
		survived=$((survived + 1))
		printf 'FAIL   %s: %s\n' "$1" "$2"
	else
		printf 'caught %-52s %s\n' "$1" "$3"
	fi
}

# each_mutation calls mutation for every section of the list.
each_mutation() {
	local line name="" file="" old="" new="" cases=()
	while IFS= read -r line || [ -n "$line" ]; do
		case $line in
		"=== "*) name=${line#=== } cases=() ;;
		"file "*) file=${line#file } ;;
		"- "*) old=${line#- } ;;
		"+ "*) new=${line#+ } ;;
		"case "*) cases+=("${line#case }") ;;
		"#"*) ;;
		"")
			[ -z "$name" ] || mutation "$name" "$file" "$old" "$new" "${cases[@]}"
			name=
			;;
		*) die "mutations.txt: $line" ;;
		esac
	done
	[ -z "$name" ] || mutation "$name" "$file" "$old" "$new" "${cases[@]}"
}

only=${1:-.}
need_go
cd "$ROOT"
if [ "$(id -u)" = 0 ]; then
	need_test_user
	make_home_dir
	runner=(as_test_user)
else
	HOME_DIR=$(mktemp -d)
	mkdir "$HOME_DIR/tmp"
	runner=(env TMPDIR="$HOME_DIR/tmp")
fi
copy=$(mktemp -d)
log=$copy/.log
trap 'rm -rf "$copy" "$HOME_DIR"' EXIT

say "a copy, and its tests"
tar --exclude=./bin --exclude=./.git -cf - . | tar -C "$copy" -xf -
mkdir "$HOME_DIR/src"
tar -cf - integration/differential integration/testdata/differential | tar -C "$HOME_DIR/src" -xf -
go test -c -tags "$TAGS" -o "$HOME_DIR/differential.test" ./integration/differential
"$copy/scripts/build.sh" "" "$HOME_DIR/mutant"
chmod -R a+rX "$HOME_DIR/src" "$HOME_DIR/differential.test" "$HOME_DIR/mutant"

say "no mutation"
mapfile -t named < <(sed -n 's/^case //p' scripts/mutations.txt | sort -u)
red=$(red_cases "$HOME_DIR/mutant" "$unaffected" "${named[@]}")
[ -z "$red" ] || die "these fail without any mutation: $red"

say "mutations"
total=0 survived=0
each_mutation <scripts/mutations.txt
printf '%d mutations: %d caught, %d not\n' "$total" $((total - survived)) "$survived"
[ "$total" -gt 0 ] && [ "$survived" = 0 ]

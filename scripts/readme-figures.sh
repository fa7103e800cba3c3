#!/usr/bin/env bash
# readme-figures.sh: measures, and writes the table of sizes and times in README.md
# between its two marks. Root only, because BuildKit is measured too; on a machine
# that does nothing else.
set -euo pipefail
. "$(dirname "$0")/env.sh"

# rows measures everything.
rows() {
	"$ROOT/scripts/figures.sh"
	"$ROOT/scripts/pull-figures.sh"
}

[ "$(id -u)" = 0 ] || die "root is needed: BuildKit is measured too"
cd "$ROOT"
"$ROOT/scripts/build.sh"
figures=$(mktemp)
trap 'rm -f "$figures"' EXIT
{
	printf 'Measured on %s with %d CPUs, Linux %s: the least of a few runs, by make figures.\n\n' "$(date +%F)" "$(nproc)" "$(uname -r | cut -d. -f1,2)"
	printf '| what | time | |\n|---|---|---|\n'
	printf '| the binary, static, with everything | %s MB | |\n' "$(($(stat -c %s bin/mstage) / 1000000))"
	rows | sed -nE 's/^( *)(.*[^ ]) +([0-9]+\.[0-9]) ms *(.*)$/|\1 \2 | \3 ms | \4 |/p' | sed -E 's/^\|  +/| … /'
} >"$figures"
awk -v table="$figures" '
	/^<!-- figures -->/ { print; while ((getline line <table) > 0) print line; skip = 1; next }
	/^<!-- \/figures -->/ { skip = 0 }
	!skip' README.md >README.md.new
mv README.md.new README.md
sed -n '/^<!-- figures -->/,/^<!-- .figures -->/p' README.md

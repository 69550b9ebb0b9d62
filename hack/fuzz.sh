#!/usr/bin/env bash
# Runs every fuzz target, one after the other, on a real server.
#
#	hack/fuzz.sh          ten minutes each
#	hack/fuzz.sh 30s      each for this time, in Go's notation; 1000x for so many inputs
#
# An input that fails is kept in testdata/fuzz of its package, and from then on every go test runs it. The variables of
# hack/test.sh choose the server.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

time=${1:-10m}
need_go
if [ -z "${MYSQLLOCK_TEST_DSN:-}" ]; then
	need_server "the targets start private ones and delete them again" \
		"set MYSQLLOCK_TEST_DSN to a server that you have, for an account that may create databases"
fi

# A person's own database has no part in this.
for variable in ${!MYSQL_@}; do unset "$variable"; done

# fuzz PACKAGE TARGET: one worker, as each starts a server of its own. Inputs are made smaller for a second only: with a
# server it takes long, and finds nothing.
fuzz() { go test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 1s -parallel 1 "$1"; }

targets=$(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9]*' mysqllock | sed -E 's|^(.*)/[^/]*:func (.*)$|\1 \2|' | sort)
[ -n "$targets" ] || fail "there is no fuzz target in the folder mysqllock."
while read -r folder target; do
	step "$target for $time" fuzz "./$folder" "$target" </dev/null
done <<<"$targets"
summary

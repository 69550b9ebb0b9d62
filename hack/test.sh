#!/usr/bin/env bash
# Runs the tests of the library and the examples on a real server, some five minutes on two cores, once hack/demo.sh has
# compiled client-go.
#
#	hack/test.sh                               these
#	hack/test.sh -all                          every test of every module with the race detector, and the elector's with
#	                                           the newest client-go as well; some twenty minutes
#	hack/test.sh -run TestElector -count=20    with these flags of go test; also after -all
#
# MYSQLLOCK_TEST_SERVER names another server program to start, MYSQLLOCK_TEST_DSN an existing server (see the package
# mysqllock/mysqltest); with the latter nothing is installed.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

all=''
if [ "${1:-}" = -all ]; then
	all=yes
	shift
fi

need_go
if [ -n "$all" ]; then need_race; fi
need_program ps "tests look by it for server processes that were left over" procps
if [ -n "${MYSQLLOCK_TEST_DSN:-}" ]; then
	say "MYSQLLOCK_TEST_DSN is set: tests that need any server use that one, and no server is installed"
	if [ -z "${MYSQLLOCK_TEST_SERVER:-}" ] && [ -z "$(find_server)" ]; then
		say "NOTE: tests that crash or freeze a server start one of their own, and will fail: no mariadbd or mysqld is here"
	fi
else
	need_server "the tests start private ones and delete them again" \
		"set MYSQLLOCK_TEST_DSN to a server that you have, for an account that may create databases and accounts (tests that crash a server will fail)"
fi

# A person's own database has no part in this.
for variable in ${!MYSQL_@}; do unset "$variable"; done

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

# report runs a verbose go test, tells now and then how far it is, and prints of its output what is not about tests that
# pass, without the logs of electors.
report() {
	local log status=0
	log=$(mktemp "$temporary/XXXXXX.log")
	"$@" 2>&1 | tee "$log" | awk '/^--- PASS/ && ++n % 50 == 0 { printf "    %d tests have passed\n", n; fflush() }' || status=$?
	if [ "$status" = 0 ]; then grep -E '^(ok|\?) ' "$log"; else grep -vE '^ *--- PASS|^=== |^PASS$|^[IWE][0-9]{4} ' "$log"; fi
	return "$status"
}

# slowest prints the ten tests that took longest.
slowest() {
	sed -nE 's/^--- [A-Z]+: ([^ ]+) \(([0-9.]+)s\)$/\2 s  \1/p' "$temporary"/*.log | sort -rn | sed -n 1,10p
}

if [ -z "$all" ]; then
	# Eight at a time, as most tests wait for leases.
	step "compile and test the library (about four minutes)${1:+ ($*)}" \
		report go test -shuffle=on -parallel 8 -timeout 20m -v "$@" ./...
	test_examples() { cd examples && report go test -shuffle=on -timeout 20m -v "$@" ./...; }
	step "compile and test the examples (about a minute)${1:+ ($*)}" test_examples "$@"
	step "the ten slowest tests" slowest
	summary
fi

# The race detector is for all but hack/bench, of whose etcd it would take many minutes to compile.
race_of() { [ "$1" = ./hack/bench ] || printf -- '-race\n'; }

vet_and_test() {
	local dir=$1 race
	shift
	race=$(race_of "$dir")
	# -race for vet as well, so that it uses what is compiled for the tests.
	(cd "$dir" && go vet $race ./... && report go test $race -shuffle=on -timeout 20m -v "$@" ./...)
}

# -o: one main package alone would be written to where its folder is.
compile() {
	local race
	race=$(race_of "$1")
	(cd "$1" && go build $race -o /dev/null ./...)
}

# test_newest runs the tests of the elector against the client-go of the examples.
test_newest() {
	newest_client_go "$temporary" || return
	go test -modfile="$temporary/go.mod" -race -shuffle=on -run '^TestElect' ./mysqllock
}

for dir in $(modules); do
	step "compile $dir (client-go is large: some minutes the first time)" compile "$dir"
	step "go vet and go test in $dir${1:+ ($*)}" vet_and_test "$dir" "$@"
done
if [ $# -eq 0 ]; then
	step "the tests of the elector with the newest client-go" test_newest
else
	say "given flags of its own, it leaves out the newest client-go in the root module"
fi
step "the ten slowest tests" slowest
summary

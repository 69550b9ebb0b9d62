#!/usr/bin/env bash
# Runs the conformance suite and the tests of safety on every kind of server, the latter also with a Batch, and prints a
# table of what passed, in seconds.
#
#	hack/matrix.sh                          MariaDB 10.5, 10.11 and 11.8, and MySQL 9.x (some minutes)
#	hack/matrix.sh mysql-8.4 mariadb-11.8   these: hack/servers/get.sh has the names, and gets what is not installed
#
# With MYSQLLOCK_TEST_DSN the only server is that one, and nothing is installed; see the package mysqllock/mysqltest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_go
for variable in ${!MYSQL_@}; do unset "$variable"; done # a person's own database has no part in this

suites='conformance safety safety-batched'
# A test's name begins with its rule.
safety='^Test(CAS|Elector|Guard|Hazard|Late|Ledger|Linearizability|Name|Prepared|Readiness|Release|ServerClock|Session|StepDown|Token|Transact)'
batched='^Test(Elector|Hazard|Ledger|Linearizability|Namesake|Transact)'
# Not where a test counts packets: the Locks that share a Batch with those of the test would count, too. Nor where its Locks
# have options or databases that one Batch can't serve.
uncounted='HazardOfATakeover|HazardOfALateSuccess|AnotherDefaultDatabase'
# With MYSQLLOCK_TEST_DSN, not those that start a server of their own: there may be no program for it.
own=${MYSQLLOCK_TEST_DSN:+BeforeARestart|PreparesNoMore}
logs=$(mktemp -d)
keep_logs=
trap '[ -n "$keep_logs" ] || rm -rf "$logs"' EXIT

compile() { go test -c -o "$logs/conformance.test" ./mysqllock/mysqllocktest && go test -c -o "$logs/safety.test" ./mysqllock; }

# suite NAME runs a suite on the server that the environment names. Most tests wait most of the time.
suite() {
	case $1 in
	conformance) (cd mysqllock/mysqllocktest && "$logs/conformance.test" -test.v -test.run '^TestThisServerConforms$') ;;
	safety) (cd mysqllock && "$logs/safety.test" -test.v -test.timeout 15m -test.parallel 4 -test.run "$safety" -test.skip "${own:-^$}") ;;
	safety-batched) (cd mysqllock && MYSQLLOCK_TEST_BATCH=1 "$logs/safety.test" -test.v -test.timeout 15m -test.run "$batched" -test.skip "$uncounted") ;;
	esac
}

rows=()

# row NAME runs all suites on one server and adds its row to the table.
row() {
	local name=$1 suite log began passed row ok=0
	row=$(printf '| %-14s |' "$name")
	for suite in $suites; do
		log=$logs/$name-$suite.log
		began=$SECONDS
		suite "$suite" >"$log" 2>"$log.stderr" && passed=$(grep -cE '^ *--- PASS' "$log") || passed=0
		if [ "$passed" -gt 0 ]; then
			row+=$(printf ' %5d passed, %4d s |' "$passed" $((SECONDS - began)))
		else
			ok=1 keep_logs=yes
			row+=$(printf ' FAILED after %4d s |' $((SECONDS - began)))
			grep -A 10 -E '^ *--- FAIL|^panic' "$log" | head -n 60 || tail -n 20 "$log" "$log.stderr"
			say "all that it printed is in $log and $log.stderr"
		fi
	done
	rows+=("$row")
	return "$ok"
}

on() {
	local program
	program=$(hack/servers/get.sh "$1") || return
	say "$1 is $program"
	# A function that step runs is not in a subshell, so that the row stays.
	MYSQLLOCK_TEST_SERVER=$program row "$1"
}

step "compile the tests" compile
if [ -n "${MYSQLLOCK_TEST_DSN:-}" ]; then
	step "the server of MYSQLLOCK_TEST_DSN" row given
else
	if [ $# = 0 ]; then set -- mariadb-10.5 mariadb-10.11 mariadb-11.8 mysql-9; fi
	for name in "$@"; do step "$name" on "$name"; done
fi
printf '\n| %-14s | %-19s | %-19s | %-19s |\n| --- | --- | --- | --- |\n' server conformance safety 'safety with a Batch'
if [ ${#rows[@]} -gt 0 ]; then printf '%s\n' "${rows[@]}"; fi
summary

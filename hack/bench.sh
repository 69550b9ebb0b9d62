#!/usr/bin/env bash
# Measures what a lock costs, on a private server with durable settings, and writes hack/bench/RESULTS.md and
# hack/bench/plots: of a part and a server anew, the rest stays.
#
#	hack/bench.sh all                     everything (about eight minutes)
#	hack/bench.sh parts                   round trips, bytes; poll and renewal against the bare statements
#	hack/bench.sh rivals                  against v0's statement, GET_LOCK and an embedded etcd
#	hack/bench.sh transact                guarded transactions and fenced statements against bare ones
#	hack/bench.sh failover                crash, SIGTERM and cold start with three sets of timings
#	hack/bench.sh cluster                 on three nodes of Galera, or on two of Group Replication for a MySQL (not in all)
#	hack/bench.sh -rounds 9 parts rivals  more rounds (flags: -help)
#
# MYSQLLOCK_TEST_SERVER names another server program. Let the machine do nothing else meanwhile, and mind the lines
# "again" of the results: they show how far that succeeded.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ $# -eq 0 ]; then fail "say what to measure" "hack/bench.sh parts|rivals|transact|failover|cluster|all"; fi
need_go
need_server "the measurements start a private one and delete it again" "measure on a machine that has one"

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
say "compiles hack/bench, with an etcd in it (some minutes the first time)"
(cd hack/bench && go build -o "$temporary/bench" .)
for argument; do
	if [ "$argument" = cluster ] && [ -z "${MYSQLLOCK_TEST_GALERA:-}" ] && "$MYSQLLOCK_TEST_SERVER" --no-defaults --version 2>/dev/null | grep -q MariaDB; then
		MYSQLLOCK_TEST_GALERA=$(hack/servers/get.sh galera)
		export MYSQLLOCK_TEST_GALERA
	fi
done
"$temporary/bench" -folder hack/bench "$@"
say "the results are in hack/bench/RESULTS.md"

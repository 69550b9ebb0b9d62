#!/usr/bin/env bash
# Measures what a lock costs, on a private server with durable settings, and writes hack/bench/RESULTS.md and
# hack/bench/plots: of a part and a server anew, the rest stays.
#
#	hack/bench.sh all                     everything (about eight minutes)
#	hack/bench.sh parts                   round trips, bytes; poll and renewal against the bare statements
#	hack/bench.sh rivals                  against v0's statement, GET_LOCK and an embedded etcd
#	hack/bench.sh transact                guarded transactions and fenced statements against bare ones
#	hack/bench.sh failover                crash, SIGTERM and cold start with three sets of timings
#	hack/bench.sh lease -kubeconfig FILE  beside client-go's LeaseLock on your own API server (not in all)
#	hack/bench.sh cluster                 on three nodes of Galera, or on two of Group Replication for a MySQL (not in all)
#	hack/bench.sh -rounds 9 parts rivals  more rounds (flags: -help)
#
# MYSQLLOCK_TEST_SERVER names another server program. lease uses the database that MYSQL_USER, MYSQL_PASSWORD, MYSQL_HOST
# and MYSQL_DBNAME name, if one of them is set, and deletes its rows and its Leases (-namespace default) afterwards. Let
# the machine do nothing else meanwhile, and mind the lines "again" of the results: they show how far that succeeded.
set -euo pipefail
caller=$PWD # relative to which its file names are
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ $# -eq 0 ]; then fail "say what to measure" "hack/bench.sh parts|rivals|lease|transact|failover|cluster|all"; fi
need_go
database=''
if [ "$1" = lease ]; then database=${MYSQL_USER+set}${MYSQL_PASSWORD+set}${MYSQL_HOST+set}${MYSQL_DBNAME+set}; fi
if [ -z "$database" ]; then
	need_server "the measurements start a private one and delete it again" "measure on a machine that has one"
fi

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
say "compiles hack/bench, with an etcd in it (some minutes the first time)"
(cd hack/bench && go build -o "$temporary/bench" .)
for argument; do
	if [ "$argument" = cluster ] && [ -z "${MYSQLLOCK_TEST_GALERA:-}" ] && "${MYSQLLOCK_TEST_SERVER:-false}" --no-defaults --version 2>/dev/null | grep -q MariaDB; then
		MYSQLLOCK_TEST_GALERA=$(hack/servers/get.sh galera)
		export MYSQLLOCK_TEST_GALERA
	fi
done
cd "$caller"
"$temporary/bench" -folder "$root/hack/bench" "$@"
say "the results are in hack/bench/RESULTS.md"

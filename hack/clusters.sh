#!/usr/bin/env bash
# Shows on real clusters, and across promotions of replicas, what a lease and a fence are worth there.
#
#	hack/clusters.sh                     all of it (some six minutes)
#	hack/clusters.sh galera              one of: galera, group-replication, mariadb-replica, mysql-replica, and, for tables
#	                                     that pt-online-schema-change changes meanwhile, mariadb-pt-osc, mysql-pt-osc
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_go

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

compile() { (cd hack && go test -c -tags clusters -o "$temporary/clusters" ./servers); }

# tests VARIABLE SERVER TEST runs a test with the program of that server.
tests() {
	local program
	program=$(hack/servers/get.sh "$2") || return
	say "$2 is $program"
	env "$1=$program" "$temporary/clusters" -test.v -test.timeout 20m -test.run "^($3)\$"
}

# changes SERVER runs the test that needs pt-online-schema-change.
changes() {
	have pt-online-schema-change || install_packages percona-toolkit || true
	hash -r
	if ! have pt-online-schema-change; then
		printf 'pt-online-schema-change is not in PATH: install percona-toolkit\n' >&2
		return 1
	fi
	tests MYSQLLOCK_TEST_SERVER "$1" TestElectionsGoOnWhileTheirTablesAreChangedOnline
}

one() {
	case $1 in
	galera) step "three nodes of Galera" tests MYSQLLOCK_TEST_GALERA galera 'TestGaleraLetsOneWinAndNoStaleLeaderCommit|TestGaleraNodeThatRefusesQueriesCostsNoLease' ;;
	group-replication) step "two nodes of Group Replication" tests MYSQLLOCK_TEST_SERVER mysql-9 TestGroupReplicationLetsOneWinAndNoStaleLeaderCommit ;;
	mariadb-replica) step "promotions of replicas of MariaDB" tests MYSQLLOCK_TEST_SERVER mariadb-10.11 'TestAPromotionThatLosesWritesLetsNoStaleLeaderCommit|TestASwitchOverCostsNoLease' ;;
	mysql-replica) step "promotions of replicas of MySQL" tests MYSQLLOCK_TEST_SERVER mysql-9 'TestAPromotionThatLosesWritesLetsNoStaleLeaderCommit|TestASwitchOverCostsNoLease' ;;
	mariadb-pt-osc) step "online changes of MariaDB's tables" changes mariadb-10.11 ;;
	mysql-pt-osc) step "online changes of MySQL's tables" changes mysql-9 ;;
	*) fail "there is no test of the name $1 (the first lines of this script have them all)." ;;
	esac
}

step "compile (client-go is large: some minutes the first time)" compile
if [ $# = 0 ]; then set -- galera group-replication mariadb-replica mysql-replica mariadb-pt-osc mysql-pt-osc; fi
for name in "$@"; do one "$name"; done
summary

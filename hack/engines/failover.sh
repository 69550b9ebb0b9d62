#!/usr/bin/env bash
# Ends the first server of the chain that hack/engines.sh has made behind a proxy, and makes its replica the primary. With
# only the last one left it does nothing.
#
#	hack/engines/failover.sh CLIENT FOLDER PORT    a program mariadb or mysql; where the servers are; where the proxy listens
set -euo pipefail
client=$1 folder=$2 port=$3

first=1
while [ ! -e "$folder/mysql-$first/pid" ]; do first=$((first + 1)); done
next=$((first + 1))
[ -e "$folder/mysql-$next/pid" ] || exit 0

kill -9 "$(cat "$folder/mysql-$first/pid")"
rm "$folder/mysql-$first/pid"
ask() { "$client" --no-defaults -uroot -S "$folder/mysql-$next/mysql.sock" -Ne "$1"; }
# What a client was told is in what the replica has received.
late=$(ask "STOP REPLICA IO_THREAD;
	SELECT WAIT_FOR_EXECUTED_GTID_SET((SELECT received_transaction_set FROM performance_schema.replication_connection_status), 30)")
if [ "$late" != 0 ]; then
	echo "server $next has not applied within 30 s what it received of server $first" >&2
	exit 1
fi
ask "STOP REPLICA; RESET REPLICA ALL; SET GLOBAL super_read_only = OFF; SET GLOBAL read_only = OFF"
for _ in $(seq 100); do
	if timeout 5 "$client" --no-defaults -h127.0.0.1 -P"$port" -ufailover \
		-e 'CREATE TABLE IF NOT EXISTS test.failovers (n INT); INSERT INTO test.failovers VALUES (1)' 2>/dev/null; then exit 0; fi
	sleep 0.1
done
echo "nothing can be written through the proxy, ten seconds after server $next has become the primary" >&2
exit 1

#!/usr/bin/env bash
# Lets candidates compete while everything around them fails, and checks that nothing happened that must not.
#
#	hack/chaos.sh                           a minute
#	hack/chaos.sh -duration 10m -seed 7     ten minutes by this schedule of faults
#	hack/chaos.sh -servers pair             a primary and a replica, which is promoted now and then; galera: three nodes
#	hack/chaos.sh -triggers                 with audit triggers on the lock's tables
#	hack/chaos.sh -break guard -stop        with a rule of the lock broken: the checker must notice; cas, guard or release
#	hack/chaos.sh -help
#
# MYSQLLOCK_TEST_SERVER names another server program to start. See hack/chaos/RESULTS.md for what was found.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_go
need_server "the candidates need one that can be killed, and it is deleted again" "run this on a machine that has one"

# A person's own database has no part in this.
for variable in ${!MYSQL_@}; do unset "$variable"; done

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
say "compiles the harness (client-go is large: some minutes the first time)"
(cd hack && go build -o "$temporary/chaos" ./chaos)

servers=single
previous=
for argument; do
	case $previous/$argument in
	*/-servers=* | */--servers=*) servers=${argument#*=} ;;
	-servers/* | --servers/*) servers=$argument ;;
	esac
	previous=$argument
done
if [ "$servers" = galera ]; then
	MYSQLLOCK_TEST_GALERA=${MYSQLLOCK_TEST_GALERA:-$(hack/servers/get.sh galera)}
	export MYSQLLOCK_TEST_GALERA
fi

# The server's disk is filled up by a fault, so it gets a small one of its own, in memory, in a name space of this run:
# it vanishes with the last process in it, however that ends.
disk=$temporary/disk
mkdir "$disk"
own=()
if [ "$servers" = single ] && [ "$(uname -s)" = Linux ] && have unshare; then
	if [ "$(id -u)" = 0 ]; then own=(unshare --mount); else own=(unshare --mount --map-root-user); fi
	"${own[@]}" mount -t tmpfs -o size=600m chaos "$disk" 2>/dev/null || own=()
fi
if [ ${#own[@]} -eq 0 ]; then
	"$temporary/chaos" "$@"
	exit
fi
# shellcheck disable=SC2016 # the inner shell's
"${own[@]}" sh -c '
	disk=$1 program=$2 && shift 2 && mount -t tmpfs -o size=600m chaos "$disk" && exec "$program" -disk "$disk" "$@"
' sh "$disk" "$temporary/chaos" "$@"

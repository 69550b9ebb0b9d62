#!/bin/sh
# What "get.sh galera" makes its program of, after two lines that set $program and $library: a MariaDB server that is a
# node of a Galera cluster as soon as there is a file with its options, "galera", beside its data directory.
# shellcheck disable=SC2154 # they are set there
for argument; do
	case $argument in --datadir=*) data=${argument#*=} ;; esac
done
if [ ! -f "${data:-}/../galera" ]; then exec "$program" "$@"; fi
here=$(dirname "$0")
PATH=$here:$PATH # for the program of --wsrep-sst-method
# shellcheck disable=SC2046 # the options have no spaces
set -- "$@" --wsrep-on=ON "--wsrep-provider=$library" --wsrep-sst-method=mysqllock $(cat "$data/../galera")
# After a crash only InnoDB knows which transactions the node has, and says so to who asks.
if grep -q '^seqno: *-1$' "$data/grastate.dat" 2>/dev/null; then
	position=$("$program" "$@" --wsrep-recover 2>&1 | sed -n 's/.*WSREP: Recovered position: *//p' | tail -n 1)
fi
exec "$program" "$@" ${position:+"--wsrep-start-position=$position"}

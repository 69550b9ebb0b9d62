#!/usr/bin/env bash
# Shows on a real two-node Galera cluster that a stale leader's transaction is not committed there, even on a node that
# has not yet applied the takeover. Takes about a minute.
#
# MYSQLLOCK_TEST_SERVER names another mariadbd, MYSQLLOCK_TEST_GALERA another libgalera_smm.so.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

find_galera() { ls /usr/lib/galera/libgalera_smm.so /usr/lib/galera-4/libgalera_smm.so /usr/lib64/galera*/libgalera_smm.so 2>/dev/null | head -n 1; }

need_go
need_server "the test starts two private ones and deletes them again" "run this on Linux, where MariaDB comes with Galera"
library=${MYSQLLOCK_TEST_GALERA:-$(find_galera || true)}
if [ -z "$library" ]; then
	say "the library libgalera_smm.so, by which MariaDB forms a cluster, is not installed"
	case $(package_manager) in
	apt-get) install_packages galera-4 || true ;;
	dnf) install_packages galera || true ;;
	esac
	library=$(find_galera || true)
fi
[ -n "$library" ] || fail "there is no libgalera_smm.so." "Install it (Debian, Ubuntu: galera-4; Fedora: galera), or set MYSQLLOCK_TEST_GALERA to its path."
say "the cluster is made by $library"
export MYSQLLOCK_TEST_GALERA=$library
cd hack
go test -tags galera -count=1 -v "$@" ./galera

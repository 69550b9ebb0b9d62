#!/usr/bin/env bash
# Measures what many elections cost one server, and what becomes of their leases under faults. hack/load.sh -help lists
# the flags; hack/load/RESULTS.md has results. Needs an idle machine, and leaves nothing behind.
#
#	hack/load.sh -elections 100,1000 -processes 1,10                   four runs, about seven minutes
#	hack/load.sh -faults -elections 2000 -processes 6 -window 10m      a quiet minute, and then ten with faults
#
# MYSQLLOCK_TEST_SERVER names another server program to start. Progress goes to stderr, Markdown to stdout.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_go >&2
need_server "each run starts a private one and deletes it again" "run this where MariaDB or MySQL can be installed" >&2
ulimit -n "$(ulimit -H -n)" 2>/dev/null || true # two descriptors for each connection that goes through a proxy
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
say "compiles hack/load" >&2
(cd hack && go build -o "$temporary/load" ./load)
"$temporary/load" "$@"

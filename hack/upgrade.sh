#!/usr/bin/env bash
# Checks a rolling upgrade: client-go's elector of an earlier commit, beside that of this checkout, on one table. Leadership
# passes to and fro by releases and by crashes; first on tables that the earlier version made, then on this one's.
#
#	hack/upgrade.sh                beside the newest release before this commit; as long as there is none, beside the
#	                               first commit whose tables have every column of version 1
#	hack/upgrade.sh REVISION       beside that one
#
# It needs git and the earlier commit; where a checkout has no history, it says how to get it, and exits with 3.
# MYSQLLOCK_TEST_SERVER and MYSQLLOCK_TEST_DSN choose the server (see the package mysqllock/mysqltest).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

first=00981ec3d63ff26268db4707f316b01fbfea5c0e
# v0 elects otherwise, and must be stopped before.
revision=${1:-$(git describe --tags --match 'v[1-9]*' --abbrev=0 HEAD^ 2>/dev/null || printf '%s\n' "$first")}

need_go
need_program git "the earlier version is taken out of the history by it" git
if ! git rev-parse --quiet --verify "$revision^{commit}" >/dev/null; then
	printf '%s: NOT CHECKED: this checkout has no commit %s.\n' "${0##*/}" "$revision" >&2
	if [ "$(git rev-parse --is-shallow-repository)" = true ]; then
		printf '    Its history was cut off. Get it (git fetch --unshallow --tags; in GitHub Actions fetch-depth: 0), and run this again.\n' >&2
	else
		printf '    Get it (git fetch --tags origin), or name another (%s REVISION).\n' "${0##*/}" >&2
	fi
	exit 3
fi
if [ -z "${MYSQLLOCK_TEST_DSN:-}" ]; then
	need_server "the candidates need one, and it is deleted again" "set MYSQLLOCK_TEST_DSN to an existing server"
fi
for variable in ${!MYSQL_@}; do unset "$variable"; done # a person's own database has no part in this

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
say "compiles both versions: $(git log -1 --format='%h of %cs' "$revision"), and this checkout (client-go is large: some minutes the first time)"
mkdir "$temporary/tree"
git archive "$revision" | tar -x -C "$temporary/tree"
(cd "$temporary/tree/examples" && go build -o "$temporary/earlier" ./client-go)
(cd examples && go build -o "$temporary/current" ./client-go)
(cd hack && go build -o "$temporary/upgrade" ./upgrade)
say "runs them beside each other (about a minute)"
"$temporary/upgrade" "$temporary/earlier" "$temporary/current"
say "they elected one leader at a time"

#!/usr/bin/env bash
# Shows an election on a real database server: handover, failover, an outage, and a stale leader that is refused. Takes
# half a minute, once compiled.
#
#	hack/demo.sh          on a throwaway server, started for it and deleted afterwards
#	hack/demo.sh -v       with the logs of client-go
#
# If MYSQL_USER, MYSQL_PASSWORD, MYSQL_HOST and MYSQL_DBNAME are set, here or in the file .env of this repository, it
# runs in that database; nothing is installed then.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_go

named=
for variable in MYSQL_USER MYSQL_PASSWORD MYSQL_HOST MYSQL_DBNAME; do
	if [ -n "${!variable+set}" ] || { [ -f .env ] && grep -Eq "^[[:space:]]*(export[[:space:]]+)?${variable}[[:space:]]*[=:]" .env; }; then
		named=$variable
		break
	fi
done
if [ -n "$named" ]; then
	say "$named is set, so the demo runs in the database that the MYSQL_* variables name"
else
	need_server "the demo starts a private one, which it deletes at its end" \
		"set MYSQL_USER, MYSQL_PASSWORD, MYSQL_HOST and MYSQL_DBNAME to use a database that you have"
fi

say "compiles the demo (client-go is large: some minutes the first time, seconds from then on)"
(cd examples && go build -o ../bin/quickstart ./quickstart)

say "runs it"
exec bin/quickstart "$@"

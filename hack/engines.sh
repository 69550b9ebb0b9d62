#!/usr/bin/env bash
# Builds or gets Vitess, TiDB, MySQL Router and HAProxy, starts them one after the other, and runs on each the suite of
# mysqllocktest in three pools, the tests of hack/engines and a chaos, behind proxies with failovers. See
# hack/RESULTS-engines.md for what was found.
#
#	hack/engines.sh                          all
#	hack/engines.sh vitess tidb              some of: mysql (to compare with), tidb, haproxy, router, vitess
#	CHAOS=10m hack/engines.sh tidb           with a chaos of ten minutes (default: 4m; 0: none)
#
# Linux on amd64, and for all but TiDB Debian. Vitess and TiDB are compiled from source, once: some ten minutes each on
# two cores, and 3 GB of Go's caches. All listens on 127.0.0.1 (ports from 17000), and ends with the script.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_go
have mariadb || have mysql || fail "there is no program mariadb or mysql, by which Vitess's servers are set up." "Install a client (the package mariadb-client)."
client=$(command -v mariadb || command -v mysql)
for variable in ${!MYSQL_@}; do unset "$variable"; done # a person's own database has no part in this
cache=${XDG_CACHE_HOME:-$HOME/.cache}/go-leaderelection-mysql/engines
temporary=$(mktemp -d)
chmod 755 "$temporary" # Vitess refuses to run as root
chaos=${CHAOS:-4m}
rows=()

# --- processes ---

started=()

# start LOG COMMAND... runs it in the background, to be ended by end.
start() {
	local log=$temporary/$1.log
	shift
	setsid "$@" >>"$log" 2>&1 </dev/null &
	started+=($!)
	disown $! # else bash tells of each that a failover kills
}

# end ends all that were started, the last first.
end() {
	local i pid
	for ((i = ${#started[@]} - 1; i >= 0; i--)); do
		pid=${started[i]}
		kill "$pid" 2>/dev/null || continue
		for _ in $(seq 150); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
		kill -9 "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	started=()
}
trap 'end; rm -rf "$temporary"' EXIT

# listens PORT waits until something does.
listens() {
	local _
	for _ in $(seq 600); do
		(exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
		sleep 0.1
	done
	printf 'nothing listens on port %s; the logs are in %s\n' "$1" "$temporary" >&2
	return 1
}

# --- programs ---

# module NAME COMMAND... runs it in the folder of an otherwise empty module of that name.
module() {
	mkdir -p "$cache/$1"
	(cd "$cache/$1" && { [ -f go.mod ] || go mod init "engines-$1"; } && "${@:2}")
}

get_tidb() {
	[ -x "$cache/tidb/tidb-server" ] || module tidb compile_tidb
}
compile_tidb() { # an alpha, which is the newest version that is a Go module
	local v=20241125141335-ec8b81b98edc replacement
	# A module's own replacements are not inherited.
	for replacement in "github.com/pingcap/tidb/pkg/parser=github.com/pingcap/tidb/pkg/parser@v0.0.0-$v" \
		github.com/go-ldap/ldap/v3=github.com/YangKeao/ldap/v3@v3.4.5-0.20230421065457-369a3bab1117 \
		sourcegraph.com/sourcegraph/appdash=github.com/sourcegraph/appdash@v0.0.0-20190731080439-ebfcffb1b5c0 \
		sourcegraph.com/sourcegraph/appdash-data=github.com/sourcegraph/appdash-data@v0.0.0-20151005221446-73f23eafcf67; do
		go mod edit -replace "$replacement" || return
	done
	go get "github.com/pingcap/tidb@v1.1.0-beta.0.$v" &&
		go build -mod=mod -ldflags=-checklinkname=0 -o tidb-server github.com/pingcap/tidb/cmd/tidb-server
}

get_vitess() {
	[ -x "$cache/vitess/vttablet" ] || module vitess compile_vitess
}
compile_vitess() {
	local program
	go get vitess.io/vitess@v0.24.4 || return
	for program in vtgate vtctldclient vttablet; do
		go build -mod=mod -o "$program" "vitess.io/vitess/go/cmd/$program" || return
	done
	cp "$(go list -mod=mod -m -f '{{.Dir}}' vitess.io/vitess)/config/init_db.sql" . && chmod u+w init_db.sql
}

# --- servers ---

# mysqld NAME PORT OPTION... starts a MySQL; FIRST is what it does when its data directory is made.
mysqld() {
	local name=$1 port=$2 d=$temporary/$1 as=()
	shift 2
	[ "$(id -u)" != 0 ] || as=(--user=root)
	rm -rf "$d" # of an engine before
	mkdir -p "$d/tmp"
	printf '%s\n' "${FIRST:-}" >"$d/first.sql"
	local o=("$mysql" --no-defaults "${as[@]}" --datadir="$d/data" --tmpdir="$d/tmp" --secure-file-priv=NULL --mysqlx=OFF)
	"${o[@]}" --initialize-insecure --init-file="$d/first.sql" >>"$temporary/$name.log" 2>&1 || return
	start "$name" "${o[@]}" --bind-address=127.0.0.1 --port="$port" --socket="$d/mysql.sock" --pid-file="$d/pid" --skip-name-resolve \
		--server-id="$port" --gtid-mode=ON --enforce-gtid-consistency --report-host=127.0.0.1 --innodb-buffer-pool-size=64M "$@"
	listens "$port"
}

# chain N starts so many servers, on the ports from 17001. Each is the semi-synchronous replica of the one before it: an
# answer to a client means that the replica has it. hack/engines/failover.sh ends the first.
chain() {
	local n last=$1
	mysql=$(hack/servers/get.sh mysql-9) || return
	for n in $(seq $last); do
		FIRST="CREATE DATABASE test; CREATE USER app@'%' IDENTIFIED BY 'app'; GRANT ALL ON *.* TO app@'%';
			CREATE USER failover@'%'; GRANT CREATE, INSERT ON test.failovers TO failover@'%';" \
			mysqld "mysql-$n" $((17000 + n)) --plugin-load-add=semisync_source.so --plugin-load-add=semisync_replica.so \
			--rpl-semi-sync-replica-enabled=ON --rpl-semi-sync-source-timeout=3600000 \
			"--rpl-semi-sync-source-enabled=$([ "$n" = $last ] && echo OFF || echo ON)" || return
		[ "$n" = 1 ] || "$client" --no-defaults -uroot -S "$temporary/mysql-$n/mysql.sock" -e "SET GLOBAL super_read_only = ON;
			CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = $((16999 + n)), SOURCE_USER = 'app', SOURCE_PASSWORD = 'app',
			SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1, SOURCE_CONNECT_RETRY = 1; START REPLICA" || return
	done
}

# failover PORT is the command for what listens there.
failover() { printf '%q %q %q %q' "$root/hack/engines/failover.sh" "$client" "$temporary" "$1"; }

start_tidb() {
	get_tidb || return
	printf '[log]\nlevel = "warn"\nslow-query-file = "%s/tidb-slow.log"\n[security]\nauto-tls = false\n' "$temporary" >"$temporary/tidb.toml"
	mkdir -p "$temporary/tidb-tmp"
	start tidb "$cache/tidb/tidb-server" -config "$temporary/tidb.toml" -store unistore -path "$temporary/tidb" -host 127.0.0.1 -P 17100 \
		-socket '' -status-host 127.0.0.1 -status 17101 -temp-dir "$temporary/tidb-tmp"
	listens 17100 && "$client" --no-defaults -h127.0.0.1 -P17100 -uroot -e 'CREATE DATABASE test1'
}

start_haproxy() {
	local program
	program=$(hack/servers/get.sh haproxy) && chain 6 || return
	cat >"$temporary/haproxy.cfg" <<-END
		defaults
		  mode tcp
		  timeout connect 1s
		  timeout client 1h
		  timeout server 1h
		listen mysql
		  bind 127.0.0.1:17200
		  default-server check inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions
		  server mysql-1 127.0.0.1:17001
		$(for n in 2 3 4 5 6; do echo "  server mysql-$n 127.0.0.1:1700$n backup"; done)
	END
	start haproxy "$program" -db -f "$temporary/haproxy.cfg"
	listens 17200
}

start_router() {
	local program d=$temporary/router
	program=$(hack/servers/get.sh mysql-router) && chain 6 || return
	mkdir -p "$d/run" "$d/data"
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -keyout "$d/key.pem" -out "$d/cert.pem" 2>/dev/null || return
	cat >"$d/router.conf" <<-END
		[DEFAULT]
		$([ "$(id -u)" != 0 ] || echo user=root)
		logging_folder=
		runtime_folder=$d/run
		data_folder=$d/data
		plugin_folder=$(dirname "$program")/usr/lib/mysqlrouter/plugin
		[logger]
		destination=consolelog
		[connection_pool]
		idle_timeout=30
		max_idle_server_connections=20
		[routing:share]
		bind_address=127.0.0.1
		bind_port=17301
		destinations=127.0.0.1:17001,127.0.0.1:17002,127.0.0.1:17003,127.0.0.1:17004,127.0.0.1:17005,127.0.0.1:17006
		routing_strategy=first-available
		protocol=classic
		client_ssl_mode=PREFERRED
		client_ssl_cert=$d/cert.pem
		client_ssl_key=$d/key.pem
		server_ssl_mode=PREFERRED
		connection_sharing=1
		connection_sharing_delay=0.0
		[routing:plain]
		bind_address=127.0.0.1
		bind_port=17302
		destinations=127.0.0.1:17001,127.0.0.1:17002,127.0.0.1:17003,127.0.0.1:17004,127.0.0.1:17005,127.0.0.1:17006
		routing_strategy=first-available
		protocol=classic
		client_ssl_mode=PASSTHROUGH
		server_ssl_mode=AS_CLIENT
	END
	start router "$program" -c "$d/router.conf"
	listens 17301 && listens 17302
}

. hack/engines/vitess.sh

# --- suites ---

compile() {
	go test -c -o "$temporary/kit.test" ./mysqllock/mysqllocktest &&
		(cd hack && go test -tags engines -c -o "$temporary/engines.test" ./engines && go build -o "$temporary/chaos" ./chaos)
}

# of_others NAME prints which of the tests are for other engines.
of_others() {
	case $1 in
	tidb) echo WouldSpanShards ;;
	vitess-sharded) echo TiDBsSettings ;;
	*) echo 'WouldSpanShards|TiDBsSettings' ;;
	esac
}

# run NAME ENGINE DATABASE DSN PARAMETERS CHAOS [FAULT] runs all suites, and adds a row to the table. FAULT is a command that
# the chaos runs now and then.
run() {
	local name=$1 engine=$2 database=$3 dsn=$4 parameters=$5 pool log ok=0 row
	row="| $name |"
	for pool in open defaults interpolated; do
		log=$temporary/$name-$pool.txt
		local more='' kind=''
		case $pool in
		open) kind=open ;;
		interpolated) more='&interpolateParams=true' ;;
		esac
		(cd mysqllock/mysqllocktest && MYSQLLOCKTEST_POOL=$kind MYSQLLOCKTEST_DATABASE=$database MYSQLLOCK_TEST_DSN="$dsn/?$parameters$more" \
			"$temporary/kit.test" -test.v -test.run '^TestThisServerConforms$') >"$log" 2>&1 || failed "$log"
		row+=" $(grep -c '^    --- PASS' "$log")/$(grep -cE '^    --- (PASS|FAIL|SKIP)' "$log") |"
	done
	log=$temporary/$name-tests.txt
	(cd hack/engines && MYSQLLOCK_TEST_ENGINE=$engine MYSQLLOCK_TEST_SHARDS=$([ "$name" = vitess-unsharded ] && echo 1 || echo 2) \
		MYSQLLOCK_TEST_DSN="$dsn/$database?$parameters" "$temporary/engines.test" -test.v -test.skip "$(of_others "$name")") >"$log" 2>&1 || failed "$log"
	grep -E '^    [a-z]+_test.go:[0-9]+: (after|takeover|poll|renewal|Transact|said)' "$log" | sed "s/^ *[^ ]* /    $name: /"
	row+=" $(grep -c '^--- PASS' "$log")/$(grep -cE '^--- (PASS|FAIL)' "$log") |"
	if [ "$6" = chaos ] && [ "$chaos" != 0 ]; then
		log=$temporary/$name-chaos.txt
		MYSQLLOCK_TEST_DSN="$dsn/$database?$parameters" "$temporary/chaos" -servers given -fault "${7:-}" -duration "$chaos" -seed 16 >"$log" 2>&1 || failed "$log"
		grep -E 'terms; ledger|the given command|FAILED|control without|a leader worked|violations|VIOLATIONS' "$log" | sed "s/^/    $name: /"
		row+=" $(grep -oE '[0-9]+ (violations|VIOLATIONS)' "$log" || echo failed) |"
	else
		row+=" - |"
	fi
	rows+=("$row")
	return "$ok"
}

# failed LOG shows what failed; it sets the ok of run.
failed() {
	ok=1
	grep -A 8 -E '^ *--- FAIL|^panic|VIOLATIONS' "$1" | head -n 40 || tail -n 20 "$1"
}

one() {
	case $1 in
	mysql) chain 1 && run mysql MySQL test 'app:app@tcp(127.0.0.1:17001)' '' - ;;
	tidb) start_tidb && run tidb TiDB test1 'root@tcp(127.0.0.1:17100)' '' chaos ;;
	haproxy) start_haproxy && run haproxy MySQL test 'app:app@tcp(127.0.0.1:17200)' '' chaos "$(failover 17200)" ;;
	router) start_router && run router-sharing MySQL test 'app:app@tcp(127.0.0.1:17301)' 'tls=skip-verify' - &&
		run router MySQL test 'app:app@tcp(127.0.0.1:17302)' '' chaos "$(failover 17302)" ;;
	vitess) start_vitess && run vitess-unsharded Vitess uns 'root@tcp(127.0.0.1:17400)' '' chaos &&
		run vitess-sharded Vitess shd 'root@tcp(127.0.0.1:17400)' '' - ;;
	*) fail "there is no engine of the name $1 (the first lines of this script have them all)." ;;
	esac
}

step "compile (client-go is large: some minutes the first time)" compile
if [ $# = 0 ]; then set -- mysql tidb haproxy router vitess; fi
for name in "$@"; do
	step "$name" one "$name"
	end
done
printf '\n| | Open | defaults | interpolateParams | tests | chaos of %s |\n| --- | --- | --- | --- | --- | --- |\n' "$chaos"
if [ ${#rows[@]} -gt 0 ]; then printf '%s\n' "${rows[@]}"; fi
summary

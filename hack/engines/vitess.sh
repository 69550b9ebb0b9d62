# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # the variables of hack/engines.sh
# A small Vitess for hack/engines.sh, which sources this: etcd, three mysqld with a vttablet each, and a vtgate on 17400.
# Keyspaces: shd with two shards, uns with one.

start_vitess() {
	local etcd
	get_vitess && mysql=$(hack/servers/get.sh mysql-9) && etcd=$(hack/servers/get.sh etcd) || return
	mkdir -p "$temporary/vt/tmp"
	chmod -R a+rwX "$temporary/vt"
	start etcd "$etcd" --data-dir "$temporary/etcd" --listen-client-urls http://127.0.0.1:17401 --advertise-client-urls http://127.0.0.1:17401 \
		--listen-peer-urls http://127.0.0.1:17402 --initial-advertise-peer-urls http://127.0.0.1:17402 --initial-cluster default=http://127.0.0.1:17402
	listens 17401 &&
		vtctl AddCellInfo --root /vitess/zone1 --server-address 127.0.0.1:17401 zone1 &&
		vtctl CreateKeyspace --durability-policy=none shd && vtctl CreateKeyspace --durability-policy=none uns &&
		tablet 100 shd -80 && tablet 200 shd 80- && tablet 300 uns 0 &&
		# Each is the primary of its shard, and has no other.
		primary 100 shd/-80 && primary 200 shd/80- && primary 300 uns/0 &&
		vtctl ApplyVSchema --vschema-file hack/engines/vschema.json shd &&
		vtctl ApplyVSchema --vschema '{"sharded": false, "tables": {}}' uns || return
	start vtgate "${vitess[@]}" "$cache/vitess/vtgate" "${topology[@]}" --cell zone1 --cells-to-watch zone1 --bind-address 127.0.0.1 --grpc-bind-address 127.0.0.1 \
		--port 17403 --grpc-port 17404 --mysql-server-bind-address 127.0.0.1 --mysql-server-port 17400 --mysql-auth-server-impl none \
		--tablet-types-to-wait PRIMARY --service-map grpc-vtgateservice
	listens 17400
}

# Vitess refuses to run as root.
vitess=(env "VTDATAROOT=$temporary/vt" "HOME=$temporary/vt/tmp")
[ "$(id -u)" != 0 ] || vitess+=(setpriv --reuid=65534 --regid=65534 --clear-groups)
topology=(--topo-implementation etcd2 --topo-global-server-address 127.0.0.1:17401 --topo-global-root /vitess/global)

vtctl() { "${vitess[@]}" "$cache/vitess/vtctldclient" --server internal "${topology[@]}" "$@" >>"$temporary/vtctl.log" 2>&1; }

primary() { vtctl PlannedReparentShard --new-primary "zone1-0000000$1" "$2"; }

# tablet NUMBER KEYSPACE SHARD
tablet() {
	local n=$1 d=$temporary/mysqld-$1 port=$((17500 + $1))
	mysqld "mysqld-$n" "$port" --log-bin="$d/binlog" --relay-log="$d/relay" --skip-replica-start || return
	{
		grep -vE '^#|super_read_only' "$cache/vitess/init_db.sql"
		echo "RESET BINARY LOGS AND GTIDS; SET GLOBAL super_read_only = ON;"
	} | "$client" --no-defaults -uroot -S "$d/mysql.sock" || return
	chmod -R a+rwX "$d" # its socket
	cat >"$d/my.cnf" <<-END
		server-id = $port
		port = $port
		datadir = $d/data
		socket = $d/mysql.sock
		pid-file = $d/pid
		tmpdir = $d/tmp
	END
	start "vttablet-$n" "${vitess[@]}" "$cache/vitess/vttablet" "${topology[@]}" --tablet-path "zone1-0000000$n" --tablet-hostname 127.0.0.1 \
		--init-keyspace "$2" --init-shard "$3" --init-tablet-type replica --bind-address 127.0.0.1 --grpc-bind-address 127.0.0.1 \
		--port $((18500 + n)) --grpc-port $((19500 + n)) --mycnf-file "$d/my.cnf" --service-map grpc-queryservice,grpc-tabletmanager,grpc-updatestream
	listens $((19500 + n))
}

package mysqllock

import (
	"strings"
)

// What Preflight finds in the settings of a server.

// engine says what the server is, and what of this library is other there.
func (p *preflight) engine() {
	on := engineOf(p.variables)
	find := func(problem, remedy string) { p.add(SeverityInfo, "engine", on.String()+": "+problem, remedy) }
	const writes = "Guard and Transact write to the fence row, as locks are known to one node only; guarded transactions of one election wait for each other; FenceCondition is refused"
	switch on {
	case unknownEngine:
		p.add(SeverityWarning, "engine", "it is not known what "+p.variables["version"]+" is: Guard and Transact write to the fence row, FenceCondition is refused, and WithServerClock has no effect", "run the suite of package mysqllocktest there, and let SHOW VARIABLES through to the server")
	case mySQL, mariaDB:
		find("all of this library can be used", "nothing is to be done")
	case galera:
		find(writes, "expect error 1213 at a commit, and try again")
	case groupReplication:
		find(writes, "expect error 1213 or 3101 at a commit, and try again")
	case vitess:
		find("Guard and Transact write to the fence row, so that guarded transactions of one election wait for each other; a guarded transaction writes to the shard of the election's rows alone, Guard is refused where transactions may span shards, FenceCondition is refused, WithServerClock has no effect, and a client that is cut off after its guard holds takeovers off for the tablets' transaction timeout (30 s by default)",
			"for Guard set transaction_mode to 'single' in the DSN")
	case tiDB:
		find("Guard and Transact write to the fence row, so that guarded transactions of one election wait for each other; a takeover that meets one waits for it as long as an operation may take; FenceCondition is refused, and so is SERIALIZABLE",
			"expect error 9007 at a commit, and try again")
		if p.is("tidb_disable_txn_auto_retry", "OFF", "0") && !p.is("tidb_txn_mode", "PESSIMISTIC") {
			p.add(SeverityError, "tidb_disable_txn_auto_retry", "it is OFF, and transactions are optimistic: before version 8.0 TiDB repeats a guarded transaction whose guard no longer matches, and commits it", "set tidb_disable_txn_auto_retry to ON, or tidb_txn_mode to pessimistic")
		}
	}
}

func (p *preflight) server() {
	if name := p.readOnlyServer(); name != "" {
		p.add(SeverityError, name, "the server is read-only, perhaps a replica", "connect to the primary")
	}
	if p.readOnlySession() {
		p.add(SeverityError, "transaction_read_only", "the session's transactions are read-only", "remove it from the DSN, the server's configuration or init_connect")
	}
	if p.options.serverClock && p.is("binlog_format", "STATEMENT") {
		p.add(SeverityWarning, "binlog_format", "it is STATEMENT, with which a replica writes its own name where WithServerClock looks for the primary's", "set binlog_format to ROW or MIXED, or leave WithServerClock out")
	}
}

// readOnlyServer is the variable that makes the server read-only, empty if none does.
func (p *preflight) readOnlyServer() string {
	for _, name := range []string{"super_read_only", "read_only", "innodb_read_only"} {
		if p.isOn(name) {
			return name
		}
	}
	return ""
}

func (p *preflight) readOnlySession() bool {
	return p.is("transaction_read_only", "ON", "1") || p.is("tx_read_only", "ON", "1")
}

func (p *preflight) durability() {
	const vanish = "a power failure can undo a term that was acknowledged, and its fencing token with it"
	if value := p.variables["innodb_flush_log_at_trx_commit"]; value != "1" && value != "" {
		p.add(SeverityWarning, "innodb_flush_log_at_trx_commit", "it is "+value+": "+vanish, "set it to 1")
	}
	if value := p.variables["sync_binlog"]; p.is("log_bin", "ON", "1") && value != "1" && value != "" {
		p.add(SeverityWarning, "sync_binlog", "it is "+value+": "+vanish+", as what is not in the binary log is rolled back when the server recovers", "set it to 1")
	}
	if p.is("innodb_doublewrite", "OFF", "0") {
		p.add(SeverityWarning, "innodb_doublewrite", "it is off: a power failure can leave half a page", "set it to ON, unless the file system writes whole pages")
	}
}

func (p *preflight) replication() {
	switch on := engineOf(p.variables); {
	case on == galera, on == groupReplication:
	case !p.isOn("read_only") && p.isReplica():
		p.add(SeverityWarning, "replication", "the server takes writes, but is a replica of another one: candidates at both would elect two", "connect to the primary, and set read_only on its replicas; on one that was promoted RESET REPLICA ALL")
	case p.is("log_bin", "ON", "1"):
		p.add(SeverityInfo, "log_bin", "the binary log is on; if an asynchronous replica is promoted, it may lack the last term and its token", "promote only a replica that has everything, as semi-synchronous replication makes likely")
	}
}

// isReplica recognises a MariaDB that replicates now, and, if the account may know it, any.
func (p *preflight) isReplica() bool {
	replica := p.isOn("slaves_running")
	// What it may not look at is left out. MySQL before 8.0.22 has the second alone.
	for _, statement := range []string{`SHOW REPLICA STATUS`, `SHOW SLAVE STATUS`} {
		err := each(p.ctx, p.conn, statement, nil, func(scanner) error {
			replica = true
			return nil
		})
		if err == nil {
			break
		}
	}
	return replica
}

func (p *preflight) encryption() {
	var name, cipher, user string
	if p.conn.QueryRowContext(p.ctx, `SHOW SESSION STATUS LIKE 'Ssl_cipher'`).Scan(&name, &cipher) != nil ||
		p.conn.QueryRowContext(p.ctx, `SELECT USER()`).Scan(&user) != nil {
		return // what it may not look at is left out
	}
	host := user[strings.LastIndex(user, "@")+1:]
	if cipher == "" && host != "localhost" && !strings.HasPrefix(host, "127.") && host != "::1" {
		p.add(SeverityWarning, "TLS", "the connection is not encrypted, and comes from "+host, "set MYSQL_TLS=true, or tls in the DSN")
	}
}

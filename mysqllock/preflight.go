package mysqllock

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Severity is how much a Finding matters.
type Severity string

// The severities.
const (
	SeverityError   Severity = "error"   // elections fail, or elect two
	SeverityWarning Severity = "warning" // they work, with a risk or a cost
	SeverityInfo    Severity = "info"    // worth knowing
)

// Finding is one thing that Preflight found.
type Finding struct {
	Severity Severity
	Subject  string // what it is about, such as "grants" or a server variable
	Problem  string
	Remedy   string
}

// String returns "severity: subject: problem; remedy".
func (f Finding) String() string {
	return fmt.Sprintf("%s: %s: %s; %s", f.Severity, f.Subject, f.Problem, f.Remedy)
}

// Preflight finds out what is wrong with a database as a place for locks, before production does.
// It says what the server is, and what of this library does not work there. It looks at the tables
// and their definition, at triggers on them, the account's grants (too few or far too many), a
// read-only or too old server, the session's settings, durability settings that can lose an
// acknowledged term, replication, encryption, and the round-trip time against the deadline of an
// operation. It changes nothing.
//
// Give it the account, the pool and the options that the lock will have. It needs no privileges
// beyond the lock's own, and leaves out what it may not see: on MySQL, triggers (that takes
// TRIGGER), and whether a server that takes writes is also a replica (that takes REPLICATION
// CLIENT). Without a finding of [SeverityError] elections will work now. Whether the server's
// software runs the statements rightly is another question, for package mysqllocktest.
//
// An error is returned only if the database can't be asked at all.
func Preflight(ctx context.Context, db *sql.DB, opts ...Option) ([]Finding, error) {
	if db == nil {
		return nil, wrap("preflight", "", errNoPool, nil)
	}
	o, err := applyOptions(opts)
	if err != nil {
		return nil, wrap("preflight", "", err, nil)
	}
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, wrap("preflight", "", err, db)
	}
	defer func() { _ = conn.Close() }() // back to the pool; nothing to lose
	p := &preflight{ctx: ctx, conn: conn, options: o, variables: map[string]string{}}
	restore, err := p.liftSelectLimit()
	if err != nil {
		return nil, wrap("preflight", "", err, db)
	}
	defer restore()
	if err := p.readVariables(); err != nil {
		return nil, wrap("preflight", "", err, db)
	}
	if p.outsideCluster() {
		return p.findings, nil // the node refuses whatever else could be asked
	}
	p.engine()
	p.session()
	if p.tables() {
		p.grants()
		p.triggers()
	}
	p.server()
	if engineOf(p.variables) != tiDB { // it has these variables for show
		p.durability()
		p.replication()
	}
	p.encryption()
	p.latency()
	if db.Stats().MaxOpenConnections == 1 {
		p.add(SeverityWarning, "MaxOpenConns", "the pool has one connection, so that a transaction keeps renewals waiting", "allow more connections, and give the work a pool of its own")
	}
	if err := cmp.Or(ctx.Err(), p.broken); err != nil {
		return nil, wrap("preflight", "", err, db)
	}
	return p.findings, nil
}

type preflight struct {
	ctx       context.Context
	conn      *sql.Conn
	options   options
	variables map[string]string // the server's, as this session sees them, and of its status
	database  string            // of the tables
	findings  []Finding
	// selectsNothing is whether sql_select_limit is 0, which is vtgate's way to say that there is none.
	selectsNothing bool
	broken         error           // what ended the session meanwhile, if anything did
	refusals       map[uint16]bool // the numbers that there are findings about
}

func (p *preflight) add(severity Severity, subject, problem, remedy string) {
	p.findings = append(p.findings, Finding{severity, subject, problem, remedy})
}

// refused adds what the server has against something that a lock does. An error that is said of all
// that follows is found once.
func (p *preflight) refused(what string, err error) {
	n := number(err)
	switch {
	case n == 0:
		p.broken = cmp.Or(p.broken, err) // no answer, so that nothing is known of it
		return
	case p.refusals[n]:
		return
	case p.refusals == nil:
		p.refusals = map[uint16]bool{}
	}
	p.refusals[n] = true
	p.add(SeverityError, "server", what+" is refused: "+oneLine(publicText(err)), cmp.Or(remedy("preflight", err, nil), "look the error up in the server's manual"))
}

const (
	// selectLimitSQL reads what cuts the answers to SHOW, too; no row if it is 0. A node of Galera
	// that is not part of its cluster answers to SHOW alone.
	selectLimitSQL = `SHOW VARIABLES LIKE 'sql_select_limit'`
	// minSelectLimit is more than anything here has rows.
	minSelectLimit = 10_000

	// variablesSQL reads settings that differ between servers and versions: what isn't known has no
	// row.
	variablesSQL = `SHOW VARIABLES WHERE Variable_name IN ('version', 'autocommit', 'character_set_client', 'character_set_connection',` +
		` 'character_set_results', 'read_only', 'super_read_only', 'transaction_read_only', 'tx_read_only', 'innodb_read_only', 'innodb_flush_log_at_trx_commit',` +
		` 'log_bin', 'sync_binlog', 'binlog_format', 'innodb_doublewrite', 'wsrep_on', 'group_replication_group_name',` +
		` 'version_comment', 'innodb_page_size', 'tidb_txn_mode', 'tidb_disable_txn_auto_retry')`
	// statusSQL does the same with its status.
	statusSQL = `SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_ready', 'wsrep_cluster_status', 'Slaves_running')`

	// absentElection is a name that no election can have, as it ends in a space.
	absentElection = "mysqllock preflight "
)

// liftSelectLimit makes the session return whole answers for as long as Preflight asks; restore
// ends that. What a lock reads has limits of its own.
func (p *preflight) liftSelectLimit() (restore func(), err error) {
	var name string
	var limit uint64
	err = p.conn.QueryRowContext(p.ctx, selectLimitSQL).Scan(&name, &limit)
	if err != nil && !errors.Is(err, sql.ErrNoRows) || limit >= minSelectLimit {
		return func() {}, err
	}
	p.selectsNothing = limit == 0
	const set = `SET SESSION sql_select_limit = %d`
	_, err = p.conn.ExecContext(p.ctx, fmt.Sprintf(set, uint64(math.MaxInt64)))
	return func() {
		if _, err := p.conn.ExecContext(p.ctx, fmt.Sprintf(set, limit)); err != nil {
			discard(p.conn)
		}
	}, err
}

func (p *preflight) readVariables() error {
	for _, query := range []string{variablesSQL, statusSQL} {
		if err := each(p.ctx, p.conn, query, nil, func(scan scanner) error {
			var name, value string
			err := scan(&name, &value)
			p.variables[strings.ToLower(name)] = strings.ToUpper(value)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (p *preflight) is(variable string, values ...string) bool {
	return slices.Contains(values, p.variables[variable])
}

// isOn also knows values of newer servers, such as read_only=NO_LOCK.
func (p *preflight) isOn(variable string) bool { return !p.is(variable, "", "OFF", "0") }

func (p *preflight) outsideCluster() bool {
	outside := p.isOn("wsrep_on") && (!p.isOn("wsrep_ready") || !p.is("wsrep_cluster_status", "PRIMARY"))
	if outside {
		p.add(SeverityError, "wsrep_ready", "this node of Galera is not part of its cluster, and refuses all statements; wsrep_cluster_status is "+p.variables["wsrep_cluster_status"], "connect to a node that is")
	}
	return outside
}

func (p *preflight) session() {
	if p.selectsNothing && engineOf(p.variables) != vitess {
		p.add(SeverityError, "sql_select_limit", "it is 0, so that no poll finds a row", "remove it from the DSN, the server's configuration or init_connect")
	}
	if p.is("autocommit", "OFF", "0") {
		p.add(SeverityError, "autocommit", "it is off, so that no renewal would ever be committed; the lock refuses such sessions", "remove autocommit=0 from the DSN, the server's configuration or init_connect")
	}
	for _, name := range []string{"character_set_client", "character_set_connection", "character_set_results"} {
		if !p.is(name, "UTF8MB4") {
			p.add(SeverityWarning, name, "it is "+strings.ToLower(p.variables[name])+", so that non-ASCII names are refused", "set charset=utf8mb4 in the DSN")
		}
	}
}

// tables reports whether there are tables to try grants on.
func (p *preflight) tables() bool {
	p.database = p.options.database
	if p.database == "" {
		var name sql.NullString
		if err := p.conn.QueryRowContext(p.ctx, `SELECT DATABASE()`).Scan(&name); err != nil {
			p.refused("reading the database's name", err)
			return false
		}
		p.database = name.String
	}
	if p.database == "" {
		p.add(SeverityError, "database", "the connection has none", "name one in the DSN (MYSQL_DBNAME) or by WithDatabase")
		return false
	}
	there := true
	for _, want := range []*table{recordsTable, fencesTable} {
		have, err := find(p.ctx, p.conn, p.options.database, want)
		var other otherTableError
		switch {
		case errors.As(err, &other):
			p.add(SeverityError, want.name, err.Error(), "drop or rename the table, or alter it by hand to what mysqllock.Schema says")
		case err != nil:
			there = false
			p.refused("reading the definition of "+want.name, err)
		case have == nil:
			there = false
			p.add(SeverityError, want.name, "there is no such table in the database "+p.database+", or none that the account has a privilege on", "run mysqllock.Migrate or apply mysqllock.Schema, and grant SELECT, INSERT and UPDATE")
		case have.lacksColumns():
			there = false
			p.add(SeverityError, want.name, "it is of an earlier version, without the columns ready and step_down_uid", "run mysqllock.Migrate, or the ALTER TABLE that mysqllock.Schema begins with")
		case have.isV0():
			there = false
			p.add(SeverityError, want.name, "it is the table of the earlier go-leaderelection-mysql", "stop its candidates, and run mysqllock.Migrate, which upgrades it")
		}
	}
	return there
}

func (p *preflight) latency() {
	limit := p.options.operationTimeout
	if limit == 0 && p.options.timings != (timings{}) {
		limit = p.options.timings.operationTimeout()
	}
	if limit == 0 {
		limit = maxOperationTimeout
	}
	var times []time.Duration
	var difference time.Duration
	for range 5 {
		var now int64
		began := time.Now()
		if err := p.conn.QueryRowContext(p.ctx, `SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))`).Scan(&now); err != nil {
			p.refused("reading the time", err)
			return
		}
		took := time.Since(began)
		times = append(times, took)
		difference = time.UnixMicro(now).Sub(began.Add(took / 2))
	}
	slices.Sort(times)
	median := times[len(times)/2]
	const remedy = "bring database and candidates together, or give WithTimings a longer LeaseDuration"
	switch text := fmt.Sprintf("a round trip takes %v, and an operation has %v", median.Round(10*time.Microsecond), limit); {
	case median > limit/2:
		p.add(SeverityError, "round-trip time", text, remedy)
	case median > limit/10:
		p.add(SeverityWarning, "round-trip time", text, remedy)
	}
	if difference.Abs() > time.Second {
		p.add(SeverityInfo, "clock", fmt.Sprintf("the server's differs by %v from this machine's; elections don't mind, as they compare no clocks, but who reads the tables may", difference.Round(time.Second)), "synchronise both by NTP")
	}
}

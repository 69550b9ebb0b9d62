package mysqllock

import (
	"context"
	"strings"
)

// engine is what a server is, or what stands before it: what the rules go by that are not the same
// everywhere. A term keeps the one that it began on, for its fences; what is asked in between is
// asked once a Lock.
type engine int

const (
	// unknownEngine did not say what it is, or is none of those below. It gets the strictest form of
	// each rule.
	unknownEngine engine = iota
	mySQL
	mariaDB
	galera           // whatever speaks wsrep
	groupReplication // in whatever mode, as modes change while a primary fails over
	vitess           // vtgate, before one shard or many
	tiDB
)

// String is what people call it.
func (e engine) String() string {
	return [...]string{"unknown", "MySQL", "MariaDB", "Galera", "Group Replication", "Vitess", "TiDB"}[e]
}

// guardsByWrite reports whether guards must be writes: a read lock is known to one node alone
// (Galera, Group Replication), there are settings by which it locks nothing (TiDB), or it does not
// count when a transaction is to keep to one shard (Vitess).
func (e engine) guardsByWrite() bool { return e != mySQL && e != mariaDB }

// isSharded reports whether the statements of one transaction may run on several servers, each of
// which commits by itself.
func (e engine) isSharded() bool { return e == vitess }

// hasOneClock reports whether the uptime that a session reads is that of the server whose clock and
// name its statements read. Behind vtgate any shard's server answers.
func (e engine) hasOneClock() bool { return e != vitess && e != unknownEngine }

// engineSQL asks for the variables by which engines differ. SHOW gives those that the server has; to
// select one that it lacks would be an error.
const engineSQL = `SHOW VARIABLES WHERE Variable_name IN ('wsrep_on', 'group_replication_group_name', 'version', 'version_comment', 'innodb_page_size', 'tidb_txn_mode')`

// askEngine asks the server. One that refuses to answer, or that has no such statement, must not
// keep everybody from leading: it is unknown.
func (s *session) askEngine(ctx context.Context) (engine, error) {
	variables := map[string]string{}
	err := s.query(ctx, statement{text: engineSQL}, func(scan scanner) error {
		var name, value string
		err := scan(&name, &value)
		variables[strings.ToLower(name)] = value
		return err
	})
	if number(err) != 0 && !isUnfit(err) && !wasInterrupted(err) {
		return unknownEngine, nil
	}
	return engineOf(variables), err
}

// engineOf knows engines by what only they have, and only then by what they call themselves, which
// their settings may change. Others that speak the protocol say that they are some MySQL, but have
// no pages of InnoDB.
func engineOf(variables map[string]string) engine {
	version, comment := strings.ToLower(variables["version"]), strings.ToLower(variables["version_comment"])
	_, hasTiDB := variables["tidb_txn_mode"]
	switch product := version + " " + comment; {
	case hasTiDB, strings.Contains(product, "tidb"):
		return tiDB
	case strings.Contains(product, "vitess"), strings.Contains(comment, "git revision"): // vtgate's comment is how it was built
		return vitess
	case strings.EqualFold(variables["wsrep_on"], "ON"):
		return galera
	case variables["group_replication_group_name"] != "":
		return groupReplication
	case version == "", variables["innodb_page_size"] == "":
		return unknownEngine
	case strings.Contains(product, "mariadb"):
		return mariaDB
	}
	return mySQL
}

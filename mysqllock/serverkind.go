package mysqllock

import (
	"context"
	"strings"
)

// serverKind is what a lock on a row is worth on the server of a term: what Guard, Transact and
// FenceCondition go by. It is learned when a term begins, and not again in that term.
type serverKind int

const (
	// unknownServer did not say. Guards are writes there, which fence on every kind.
	unknownServer serverKind = iota
	// singleWriter: a read lock keeps others from taking over.
	singleWriter
	// multiWriter: a read lock is not enough, a write is.
	multiWriter
	// sharded: a read lock is enough within the shard that has the election's rows.
	sharded
)

// serverKindSQL asks for the variables by which servers differ. SHOW gives those that the server
// has; to select one that it lacks would be an error.
const serverKindSQL = `SHOW VARIABLES WHERE Variable_name IN ('wsrep_on', 'group_replication_group_name', 'version', 'version_comment')`

// serverKind asks the server. One that refuses to answer, or that has no such statement, must not
// keep everybody from leading: it is unknown.
func (s *session) serverKind(ctx context.Context) (serverKind, error) {
	variables := map[string]string{}
	err := s.query(ctx, statement{text: serverKindSQL}, func(scan scanner) error {
		var name, value string
		err := scan(&name, &value)
		variables[name] = value
		return err
	})
	if number(err) != 0 && !isUnfit(err) && !wasInterrupted(err) {
		return unknownServer, nil
	}
	return serverKindOf(variables), err
}

// serverKindOf knows Galera (wsrep_on is ON) and Group Replication (it has a group's name), in
// whatever mode, as modes change while a primary fails over; TiDB, whose LOCK IN SHARE MODE may
// lock nothing; and Vitess.
func serverKindOf(variables map[string]string) serverKind {
	product := variables["version"] + " " + variables["version_comment"]
	switch {
	case variables["wsrep_on"] == "ON", variables["group_replication_group_name"] != "", strings.Contains(product, "TiDB"):
		return multiWriter
	case strings.Contains(product, "Vitess"):
		return sharded
	case variables["version"] == "":
		return unknownServer
	}
	return singleWriter
}

// guardsByWrite reports whether guards must be writes.
func (k serverKind) guardsByWrite() bool { return k == multiWriter || k == unknownServer }

//go:build clusters

package servers

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

func TestGaleraLetsOneWinAndNoStaleLeaderCommit(t *testing.T) {
	cluster, err := StartGalera(t.Context(), 3)
	closeAfter(t, cluster, err)
	testMultiWriter(t, cluster.Nodes)
	wantFinding(t, openOn(t, cluster.Nodes[0], database), mysqllock.SeverityInfo, "engine")
	t.Run("a node that was killed gets what it missed", func(t *testing.T) { testAbsence(t, cluster, cluster.Nodes[0], (*mysqltest.Server).Kill) })
	t.Run("a node that is cut off refuses statements and gets what it missed", func(t *testing.T) {
		away := cluster.Nodes[1]
		testAbsence(t, cluster, away, func(*mysqltest.Server) error { return cluster.Isolate(t.Context(), away, true) })
	})
}

func TestGroupReplicationLetsOneWinAndNoStaleLeaderCommit(t *testing.T) {
	group, err := StartGroupReplication(t.Context(), 2)
	closeAfter(t, group, err)
	testMultiWriter(t, group.Nodes)
	wantFinding(t, openOn(t, group.Nodes[0], database), mysqllock.SeverityInfo, "engine")
}

// testMultiWriter is what must hold where several nodes take writes.
func testMultiWriter(t *testing.T, nodes []*mysqltest.Server) {
	t.Helper()
	exec(t, openOn(t, nodes[0], ""), "CREATE DATABASE "+database)
	var dbs []*sql.DB
	for _, node := range nodes {
		dbs = append(dbs, openOn(t, node, database))
	}
	exec(t, dbs[0], ledgerSQL)
	exec(t, dbs[0], `CREATE TABLE hold (id INT AUTO_INCREMENT PRIMARY KEY) ENGINE=InnoDB`)
	if err := mysqllock.Migrate(t.Context(), dbs[0]); err != nil {
		t.Fatal(err)
	}
	t.Run("of candidates that race on several nodes one wins", func(t *testing.T) { testRaces(t, dbs, true) })
	// The first node with several sessions, the second with one.
	t.Run("a stale leader on a node that is behind commits nothing", func(t *testing.T) { testStaleLeader(t, dbs[0], dbs[1]) })
}

// certification are the errors by which a cluster refuses a transaction: 1213, and of MySQL 3101 and 1180 as well.
var certification = []uint16{1213, 3101, 1180}

// everywhere waits until all nodes have the same newest term.
func everywhere(t *testing.T, dbs []*sql.DB, leader *mysqllock.Lock) {
	t.Helper()
	for i, db := range dbs {
		eventually(t, fmt.Sprintf("node %d has %s's term", i, leader.Identity()), func() bool {
			var n int64
			return db.QueryRowContext(t.Context(), tokenSQL).Scan(&n) == nil && n == token(t, leader)
		})
	}
}

// All candidates see the same row, and try to replace it at the same time: the leader by a renewal, the others by
// takeovers, two at each node. Where several nodes take writes a read lock fences nothing, and FenceCondition is refused.
func testRaces(t *testing.T, dbs []*sql.DB, multiWriter bool) {
	const rounds = 150
	var candidates []*mysqllock.Lock
	for i := range 2 * len(dbs) {
		candidates = append(candidates, newLock(t, dbs[i%len(dbs)], fmt.Sprintf("candidate-%d", i)))
	}
	leader := candidates[0]
	wins := make([]int, len(dbs))
	outcomes := map[string]int{}
	for round := range rounds {
		if round == 0 {
			if err := leader.Create(t.Context(), record(leader.Identity())); err != nil {
				t.Fatal(err)
			}
			everywhere(t, dbs, leader)
		}
		previous := token(t, leader)
		// In every other round nobody leads, as a renewal, one statement, would mostly win against takeovers.
		if round%2 == 1 {
			if err := leader.Update(t.Context(), record("")); err != nil {
				t.Fatalf("round %d: release: %v", round, err)
			}
			leader = nil
		}
		for _, candidate := range candidates {
			// A renewal leaves the term as it was, so that the version alone tells how far a node is.
			eventually(t, "all see the same row", func() bool {
				_, _, err := candidate.Get(t.Context())
				return err == nil && versions(t, dbs) == 1
			})
		}
		errs := make([]error, len(candidates))
		var all sync.WaitGroup
		begin := make(chan struct{})
		for i := range candidates {
			i = (i + round) % len(candidates) // none is always the first
			all.Go(func() {
				<-begin
				errs[i] = candidates[i].Update(t.Context(), record(candidates[i].Identity()))
			})
		}
		close(begin)
		all.Wait()
		var winners []*mysqllock.Lock
		for i, err := range errs {
			switch {
			case err == nil:
				winners = append(winners, candidates[i])
				wins[i%len(dbs)]++
			case apierrors.IsConflict(err):
				outcomes["conflicts"]++
			case hasNumber(err, certification...):
				outcomes["refused by certification"]++
			case hasNumber(err, 1205, 3572):
				outcomes["busy"]++
			default:
				t.Errorf("round %d: neither a success, nor a conflict, nor busy: %v", round, err)
			}
		}
		if len(winners) != 1 {
			t.Fatalf("round %d: %d winners", round, len(winners))
		}
		switch now := token(t, winners[0]); {
		case winners[0] == leader && now != previous:
			t.Fatalf("round %d: a renewal changed the fencing token from %d to %d", round, previous, now)
		case winners[0] != leader && now <= previous:
			t.Fatalf("round %d: the fencing token of a new term is %d, after %d", round, now, previous)
		}
		leader = winners[0]
		if _, _, err := leader.FenceCondition(); (err != nil) != multiWriter || errors.Is(err, mysqllock.ErrNotLeader) {
			t.Fatalf("round %d: FenceCondition, with several nodes that take writes (%t): %v", round, multiWriter, err)
		}
		everywhere(t, dbs, leader)
	}
	t.Logf("%d rounds of %d candidates; wins by node: %v; the others: %v", rounds, len(candidates), wins, outcomes)
	if slices.Sort(wins); wins[len(wins)-2] == 0 {
		t.Error("all the winners were on one node, so that nothing is shown")
	}
}

// versions is how many states of the lease row there are among the nodes.
func versions(t *testing.T, dbs []*sql.DB) int {
	t.Helper()
	different := map[int64]bool{}
	for _, db := range dbs {
		different[number(t, db, `SELECT version FROM election_records`)] = true
	}
	return len(different)
}

// The leader works on node a, which is behind with applying what node b commits; another candidate takes over on b. A
// locking read on a still finds the old term and pins it, but on a alone: what is committed afterwards is a stale
// leader's write. The guard of this library is a write there, and the cluster refuses the commit.
func testStaleLeader(t *testing.T, a, b *sql.DB) {
	transact := func(leader *mysqllock.Lock) error { return leader.Transact(t.Context(), a, nil, entry("stale")) }
	guarded := func(guard func(*sql.Tx) error) error {
		tx, err := a.BeginTx(t.Context(), nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if err := errors.Join(guard(tx), entry("stale")(t.Context(), tx)); err != nil {
			return err
		}
		return tx.Commit()
	}
	guardFirst := func(leader *mysqllock.Lock) error {
		return guarded(func(tx *sql.Tx) error { return leader.Guard(t.Context(), tx) })
	}
	lockingRead := func(leader *mysqllock.Lock) error {
		return guarded(func(tx *sql.Tx) error {
			var found int64
			err := tx.QueryRowContext(t.Context(), tokenSQL+` WHERE election_name = ? LOCK IN SHARE MODE`, election).Scan(&found)
			if err == nil && found != token(t, leader) {
				err = fmt.Errorf("%w: it has applied the takeover", mysqllock.ErrNotLeader)
			}
			return err
		})
	}
	for _, c := range []struct {
		name  string
		work  func(*mysqllock.Lock) error
		stale int64 // entries that are committed
	}{{"a locking read", lockingRead, 1}, {"Transact", transact, 0}, {"Guard first", guardFirst, 0}} {
		t.Run(c.name, func(t *testing.T) {
			exec(t, a, `DELETE FROM ledger`)
			exec(t, a, `DELETE FROM election_records`)
			eventually(t, "node b has applied everything", func() bool { return number(t, b, `SELECT COUNT(*) FROM election_records`) == 0 })
			leader, successor := newLock(t, a, "leader"), newLock(t, b, "successor")
			if err := leader.Create(t.Context(), record("leader")); err != nil {
				t.Fatal(err)
			}
			everywhere(t, []*sql.DB{a, b}, leader)
			eventually(t, "node b sees the leader", func() bool {
				seen, _, err := successor.Get(t.Context())
				return err == nil && seen.HolderIdentity == "leader"
			})
			release := holdApplier(t, a, b)

			if err := successor.Update(t.Context(), record("successor")); err != nil {
				t.Fatal(err)
			}
			committed := make(chan error, 1)
			go func() { committed <- c.work(leader) }()
			// Galera commits in one order, so that a commit that was certified waits for the applier.
			eventually(t, "the stale leader has sent its commit", func() bool {
				return len(committed) == 1 || number(t, a, `SELECT COUNT(*) FROM information_schema.processlist WHERE info = 'COMMIT'`) == 1
			})
			if number(t, a, tokenSQL) != token(t, leader) {
				t.Fatal("node a has applied the takeover already, so that nothing is shown")
			}
			release()
			err := <-committed
			t.Logf("the stale leader's commit: %v", err)
			if refused := errors.Is(err, mysqllock.ErrNotLeader) || hasNumber(err, certification...); refused != (c.stale == 0) {
				t.Errorf("error %v", err)
			}
			everywhere(t, []*sql.DB{a, b}, successor)
			if n := number(t, a, countSQL); n != c.stale {
				t.Errorf("%d stale entries on node a, want %d", n, c.stale)
			}
			eventually(t, "node b has as many", func() bool { return number(t, b, countSQL) == c.stale })
		})
	}
}

// holdApplier keeps node a from applying what is committed on b from now on, until release. It locks a table there, in
// which it then writes on b: as often as there may be threads that apply side by side, so that all of them wait.
func holdApplier(t *testing.T, a, b *sql.DB) (release func()) {
	t.Helper()
	session, err := a.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	if _, err := session.ExecContext(t.Context(), `LOCK TABLES hold READ`); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		exec(t, b, `INSERT INTO hold VALUES ()`)
	}
	return func() {
		if _, err := session.ExecContext(t.Context(), `UNLOCK TABLES`); err != nil {
			t.Fatal(err)
		}
	}
}

// testAbsence has a node miss a write.
func testAbsence(t *testing.T, cluster *Galera, away *mysqltest.Server, leave func(*mysqltest.Server) error) {
	other := cluster.Nodes[2]
	onOther := openOn(t, other, database)
	exec(t, onOther, `DELETE FROM ledger`)
	if err := leave(away); err != nil {
		t.Fatal(err)
	}
	onAway := openOn(t, away, database)
	eventually(t, "the node refuses statements", func() bool {
		var n int
		return onAway.QueryRowContext(t.Context(), countSQL).Scan(&n) != nil
	})
	eventually(t, "the others go on", func() bool {
		_, err := onOther.ExecContext(t.Context(), `INSERT INTO ledger (entry) VALUES ('missed')`)
		return err == nil
	})
	_, err := onAway.ExecContext(t.Context(), `INSERT INTO ledger (entry) VALUES ('cut off')`)
	if err == nil {
		t.Error("it takes a write without the others")
	}
	if hasNumber(err, 1047) {
		wantFinding(t, onAway, mysqllock.SeverityError, "wsrep_ready")
		err = cluster.Isolate(t.Context(), away, false)
	} else {
		err = away.Restart(t.Context())
	}
	if err := errors.Join(err, cluster.Synced(t.Context())); err != nil {
		t.Fatal(err)
	}
	if here, there := number(t, onAway, countSQL), number(t, onOther, countSQL); here != there || here == 0 {
		t.Errorf("the node has %d entries, the others have %d", here, there)
	}
}

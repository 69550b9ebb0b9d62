package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// A statement that a lock gave up goes on at the server: it may be applied seconds later, or never.
// Here it waits for a row that another session holds, and the tests decide what becomes of it.

// lateServer is one election's tables, seen by an administrator.
type lateServer struct {
	t        *testing.T
	db       *sql.DB // the administrator's
	pool     *sql.DB // the candidates', whose abandoned statements wait for long
	election string
}

func newLateServer(t *testing.T) *lateServer {
	t.Helper()
	db, config := newTables(t)
	return &lateServer{t: t, db: db, pool: openForMany(t, config, 10), election: "ns/late"}
}

// lock makes a candidate whose operations have no deadline to speak of.
func (s *lateServer) lock(identity string) *mysqllock.Lock {
	s.t.Helper()
	return newLock(s.t, s.pool, s.election, identity, unhurried)
}

// hold locks the row of a table, as an open transaction on a person's console does, until the
// returned function ends it.
func (s *lateServer) hold(table string) (letGo func()) {
	s.t.Helper()
	tx, err := s.db.BeginTx(context.Background(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = tx.Rollback() })
	var one int
	if err := tx.QueryRowContext(s.t.Context(), `SELECT 1 FROM `+table+` WHERE election_name = ? FOR UPDATE`, s.election).Scan(&one); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		s.t.Helper()
		if err := tx.Commit(); err != nil {
			s.t.Fatal(err)
		}
	}
}

// abandoned are the sessions in which an UPDATE of the tables is still under way. Those that only
// wait for the next statement have none.
func (s *lateServer) abandoned() (ids []int64) {
	s.t.Helper()
	rows, err := s.db.QueryContext(s.t.Context(), `SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE 'UPDATE %election!_%' ESCAPE '!'`)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			s.t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
	return ids
}

// givesUp runs an operation and ends its context as soon as its statement waits at the server, as a
// deadline would, but on a slow machine not earlier.
func (s *lateServer) givesUp(what string, f func(context.Context) error) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- f(ctx) }()
	eventually(s.t, patience, what+" that waits for the held row", func() bool { return len(s.abandoned()) == 1 })
	cancel()
	err := <-result
	if !errors.Is(err, context.Canceled) {
		s.t.Fatalf("%s on a held row: %v", what, err)
	}
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) {
		s.t.Fatalf("%s on a held row claims to know its outcome: %v", what, err)
	}
}

// settle lets the row go and waits until the abandoned statement has ended. It reports whether the
// server applied it.
func (s *lateServer) settle(letGo func()) (applied bool) {
	s.t.Helper()
	before := readRow(s.t, s.db, s.election).Version
	letGo()
	eventually(s.t, patience, "the abandoned statement's end", func() bool { return len(s.abandoned()) == 0 })
	applied = readRow(s.t, s.db, s.election).Version != before
	s.t.Logf("the abandoned statement was applied: %v", applied)
	return applied
}

// kill ends the abandoned statement before it can be applied.
func (s *lateServer) kill() {
	s.t.Helper()
	eventually(s.t, patience, "an abandoned statement", func() bool { return len(s.abandoned()) == 1 })
	for _, id := range s.abandoned() {
		_, err := s.db.ExecContext(s.t.Context(), fmt.Sprintf("KILL %d", id))
		var e *mysql.MySQLError
		if err != nil && (!errors.As(err, &e) || e.Number != 1094) { // it ended by itself
			s.t.Fatal(err)
		}
	}
	eventually(s.t, patience, "the abandoned statement's end", func() bool { return len(s.abandoned()) == 0 })
}

func (s *lateServer) get(lock *mysqllock.Lock) (holder string) {
	s.t.Helper()
	found, _, err := lock.Get(s.t.Context())
	if err != nil {
		s.t.Fatalf("Get: %v", err)
	}
	return found.HolderIdentity
}

// token is the lock's, which must hold one that is in the table, too.
func (s *lateServer) token(lock *mysqllock.Lock) int64 {
	s.t.Helper()
	token, held := lock.FencingToken()
	if !held {
		s.t.Fatalf("%s has no fencing token", lock.Identity())
	}
	stored, uid := storedFence(s.t, s.db, s.election)
	if row := readRow(s.t, s.db, s.election); stored != token || uid != row.UID || row.Holder != lock.Identity() {
		s.t.Fatalf("%s has token %d, the tables have token %d of %s and the row %+v", lock.Identity(), token, stored, uid, row)
	}
	return token
}

func TestLateRenewalThatWasGivenUpDoesNotEndTheTerm(t *testing.T) {
	for _, tt := range []struct {
		name string
		// end is what becomes of the abandoned renewal.
		end func(*lateServer, func())
	}{
		{"applied late", func(s *lateServer, letGo func()) { s.settle(letGo) }},
		{"never applied", func(s *lateServer, letGo func()) {
			s.kill()
			if s.settle(letGo) {
				s.t.Error("a killed statement was applied")
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newLateServer(t)
			lock := s.lock("a")
			mine := record("a")
			if err := lock.Create(t.Context(), mine); err != nil {
				t.Fatal(err)
			}
			token := s.token(lock)
			letGo := s.hold("election_records")
			s.givesUp("a renewal", func(ctx context.Context) error { return lock.Update(ctx, mine) })
			if now, held := lock.FencingToken(); !held || now != token {
				t.Errorf("after a renewal that was given up the token is %d (held: %v), not %d", now, held, token)
			}
			tt.end(s, letGo)
			if holder := s.get(lock); holder != "a" {
				t.Errorf("the holder is %q", holder)
			}
			if err := lock.Update(t.Context(), mine); err != nil {
				t.Errorf("the renewal after that: %v", err)
			}
			if now := s.token(lock); now != token {
				t.Errorf("the fencing token changed from %d to %d", token, now)
			}
		})
	}
}

func TestLateRenewalThatIsAppliedBetweenGetAndUpdateIsAConflictAndTheTermGoesOn(t *testing.T) {
	for _, get := range []bool{true, false} {
		t.Run(fmt.Sprintf("Get before: %v", get), func(t *testing.T) {
			s := newLateServer(t)
			lock := s.lock("a")
			mine := record("a")
			if err := lock.Create(t.Context(), mine); err != nil {
				t.Fatal(err)
			}
			token := s.token(lock)
			letGo := s.hold("election_records")
			s.givesUp("a renewal", func(ctx context.Context) error { return lock.Update(ctx, mine) })
			if get {
				s.get(lock) // reads the row as it was
			}
			applied := s.settle(letGo)
			// client-go's fast path: Update first, then Get and Update.
			err := lock.Update(t.Context(), mine)
			if applied && !apierrors.IsConflict(err) || !applied && err != nil {
				t.Errorf("Update after the late renewal (applied: %v): %v", applied, err)
			}
			if holder := s.get(lock); holder != "a" {
				t.Errorf("the holder is %q", holder)
			}
			if err := lock.Update(t.Context(), mine); err != nil {
				t.Errorf("Update after Get: %v", err)
			}
			if now := s.token(lock); now != token {
				t.Errorf("the fencing token changed from %d to %d", token, now)
			}
		})
	}
}

func TestLateTakeoverWhoseReplyWasLostIsFollowedByAFurtherTerm(t *testing.T) {
	for _, tt := range []struct {
		name   string
		killed bool
	}{{"applied late", false}, {"never applied", true}} {
		t.Run(tt.name, func(t *testing.T) {
			s := newLateServer(t)
			former, lock := s.lock("a"), s.lock("b")
			if err := former.Create(t.Context(), record("a")); err != nil {
				t.Fatal(err)
			}
			first := s.token(former)
			s.get(lock)
			letGo := s.hold("election_records")
			s.givesUp("a takeover", func(ctx context.Context) error { return lock.Update(ctx, record("b")) })
			if _, held := lock.FencingToken(); held {
				t.Error("a takeover of unknown outcome has a fencing token")
			}
			want := "a"
			if tt.killed {
				s.kill()
				if s.settle(letGo) {
					t.Error("a killed statement was applied")
				}
			} else if s.settle(letGo) {
				want = "b"
			}
			second, _ := storedFence(t, s.db, s.election)
			if holder := s.get(lock); holder != want {
				t.Errorf("the holder is %q, not %q", holder, want)
			}
			if _, held := lock.FencingToken(); held {
				t.Error("Get began a term")
			}
			if err := lock.Update(t.Context(), record("b")); err != nil {
				t.Fatalf("Update after the takeover: %v", err)
			}
			third := s.token(lock)
			if third <= second || second < first || want == "b" && second == first {
				t.Errorf("the fencing tokens were %d, %d and %d", first, second, third)
			}
			if err := lock.Update(t.Context(), record("b")); err != nil {
				t.Errorf("the renewal: %v", err)
			}
			if now := s.token(lock); now != third {
				t.Errorf("a renewal changed the token from %d to %d", third, now)
			}
			if err := former.Update(t.Context(), record("a")); !apierrors.IsConflict(err) {
				t.Errorf("the former leader's renewal: %v", err)
			}
		})
	}
}

// Two takeovers of one candidate are under way: whichever comes first, the candidate ends up with
// the token that is in the table, or with none.
func TestLateTakeoverThatIsStillUnderWayWhenItIsTriedAgain(t *testing.T) {
	s := newLateServer(t)
	former, lock := s.lock("a"), s.lock("b")
	if err := former.Create(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	s.get(lock)
	letGo := s.hold("election_records")
	s.givesUp("a takeover", func(ctx context.Context) error { return lock.Update(ctx, record("b")) })
	s.get(lock)
	err := lock.Update(t.Context(), record("b"))
	if !isBusy(err) {
		t.Errorf("a second takeover behind the first is not turned away at once: %v", err)
	}
	s.settle(letGo)
	s.get(lock)
	if err := lock.Update(t.Context(), record("b")); err != nil {
		t.Fatal(err)
	}
	s.token(lock)
}

// The insert was applied, the takeover was not: anybody may take the election, its creator
// included.
func TestLateCreateThatEndedHalfwayLeavesAnElectionThatAnyoneCanTake(t *testing.T) {
	for _, who := range []string{"a", "b"} {
		t.Run(who, func(t *testing.T) {
			s := newLateServer(t)
			exec(t, s.db, `INSERT INTO election_fences (election_name, fencing_token, leader_uid) VALUES (?, 7, '')`, s.election)
			locks := map[string]*mysqllock.Lock{"a": s.lock("a"), "b": s.lock("b")}
			letGo := s.hold("election_fences")
			err := locks["a"].Create(t.Context(), record("a"))
			if !isBusy(err) {
				t.Fatalf("Create with a held fence row: %v", err)
			}
			letGo()
			if holder := s.get(locks[who]); holder != "" {
				t.Errorf("the holder is %q", holder)
			}
			if err := locks[who].Update(t.Context(), record(who)); err != nil {
				t.Fatal(err)
			}
			if token := s.token(locks[who]); token <= 7 {
				t.Errorf("the fencing token is %d", token)
			}
		})
	}
}

// The elector has given up, and its work was told to end. A renewal that was under way may still be
// applied, but its success must not make a leader again of a candidate that has no work any more.
func TestLateRenewalDoesNotBringBackATermThatStoppedLeadingEnded(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	network := newProxy(t, config.Addr)
	const election = "ns/ended"
	lock := newLock(t, open(t, network.config(config)), election, "a", unhurried)
	held := record("a")
	if err := lock.Create(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	if err := lock.Update(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	before := readRow(t, db, election)

	network.swallowReplies()
	renewed := make(chan error, 1)
	go func() { renewed <- lock.Update(t.Context(), held) }()
	eventually(t, patience, "the renewal is applied", func() bool { return readRow(t, db, election).Version > before.Version })
	lock.RecordEvent("stopped leading")
	network.forward()
	if err := <-renewed; !errors.Is(err, mysqllock.ErrNotLeader) {
		t.Errorf("the renewal of a term that had ended: %v", err)
	}
	if token, held := lock.FencingToken(); held {
		t.Errorf("the term that had ended is held again, with the token %d", token)
	}

	// The row is the Lock's own all the same, and the next run takes it up.
	if _, _, err := lock.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := lock.Update(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if _, held := lock.FencingToken(); !held {
		t.Error("the next term is not held")
	}
}

// Followers may count from the moment that a renewal was sent, so that a slow reply must not
// lengthen the leader's trust.
func TestLateReplyDoesNotLengthenALeadersTrust(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	network := newProxy(t, config.Addr)
	lock := newLock(t, open(t, network.config(config)), "e", "a", mysqllock.WithOperationTimeout(10*time.Second))
	takeOver(t, lock)
	mustSucceed(t, "a renewal, which is prepared", update(t.Context(), lock, record("a")))
	const slow = 300 * time.Millisecond
	network.delayReplies(slow)
	sent := time.Now()
	mustSucceed(t, "a renewal with a slow reply", update(t.Context(), lock, record("a")))
	if took := time.Since(sent); took < slow {
		t.Fatalf("the reply took %v", took)
	}
	lease := time.Duration(record("a").LeaseDurationSeconds) * time.Second
	if end := lock.LeaseEnd(); end.After(sent.Add(lease + slow/2)) {
		t.Errorf("the lease ends %v after the send, want %v", end.Sub(sent), lease)
	}
}

package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// preparedHere is how often the only connection of a pool prepared a statement, and how often it
// executed one.
func preparedHere(t testing.TB, db *sql.DB) (prepared, executed int) {
	t.Helper()
	for name, count := range map[string]*int{"prepare": &prepared, "execute": &executed} {
		if err := db.QueryRowContext(t.Context(), `SHOW SESSION STATUS LIKE 'Com_stmt_`+name+`'`).Scan(new(string), count); err != nil {
			t.Fatal(err)
		}
	}
	return prepared, executed
}

func wantPrepared(t testing.TB, when string, db *sql.DB, wantPrepared, wantExecuted int) {
	t.Helper()
	if prepared, executed := preparedHere(t, db); prepared != wantPrepared || executed != wantExecuted {
		t.Errorf("%s: prepared %d and executed %d times, want %d and %d", when, prepared, executed, wantPrepared, wantExecuted)
	}
}

func TestPreparedAreEachConnectionsPollAndRenewalOnceForAllLocks(t *testing.T) {
	admin, config := newTables(t)
	db := openOnlyOne(t, config)
	var locks []*mysqllock.Lock
	for n := range 3 {
		lock := newLock(t, db, fmt.Sprint("election ", n), "leader")
		takeOver(t, lock)
		locks = append(locks, lock, newLock(t, db, fmt.Sprint("election ", n), "follower"))
	}
	work := func() {
		t.Helper()
		for i, lock := range locks {
			if mustSucceed(t, "Get", get(t.Context(), lock)); i%2 == 0 {
				mustSucceed(t, "Update", update(t.Context(), lock, record("leader")))
			}
		}
	}
	work()
	_, before := preparedHere(t, db)
	work()
	wantPrepared(t, "one connection", db, 2, before+9)

	// A new connection begins anew.
	var id string
	if err := db.QueryRowContext(t.Context(), `SELECT CONNECTION_ID()`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	exec(t, admin, `KILL `+id)
	work()
	wantPrepared(t, "after a reconnect", db, 2, 9)
}

func TestPreparedIsNothingInAPoolOfOnesOwn(t *testing.T) {
	_, config := newTables(t)
	db := openOne(t, config, "interpolateParams=true")
	leader := newLock(t, db, "e", "leader")
	takeOver(t, leader)
	mustSucceed(t, "Get", get(t.Context(), newLock(t, db, "e", "follower")))
	mustSucceed(t, "Update", update(t.Context(), leader, record("leader")))
	wantPrepared(t, "a pool that is not Open's", db, 0, 0)
}

func TestPreparedStatementsOfAConnectionAreFew(t *testing.T) {
	_, config := newTables(t)
	db := openOnlyOne(t, config)
	leaders, followers := map[string]*mysqllock.Lock{}, map[string]*mysqllock.Lock{}
	for n := range 6 {
		in := mysqllock.WithDatabase(newConfig(t).DBName)
		mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), db, in) })
		name := fmt.Sprint("leader ", n)
		leaders[name], followers[name] = newLock(t, db, "e", name, in), newLock(t, db, "e", "follower", in)
		takeOver(t, leaders[name])
	}
	for range 2 {
		for name, follower := range followers {
			mustSucceed(t, "Update", update(t.Context(), leaders[name], record(name)))
			if held, _, err := follower.Get(t.Context()); err != nil || held.HolderIdentity != name {
				t.Errorf("%+v, %v, want the holder %q", held, err, name)
			}
		}
	}
	if prepared, _ := preparedHere(t, db); prepared != 8 {
		t.Errorf("prepared %d statements, want 8", prepared)
	}
}

// A session is looked at with each statement, not when it was prepared.
func TestPreparedStatementsSeeASessionThatChanges(t *testing.T) {
	admin, config := newTables(t)
	for _, c := range []struct{ election, change string }{
		{"e", `SET autocommit = 0`},
		{"ä", `SET NAMES latin1`},
		{"ö", `SET character_set_client = latin1`},
	} {
		db := openOnlyOne(t, config)
		leader, follower := newLock(t, db, c.election, "leader"), newLock(t, db, c.election, "follower")
		takeOver(t, leader)
		for name, operation := range map[string]func() error{"a poll": get(t.Context(), follower), "a renewal": update(t.Context(), leader, record("leader"))} {
			mustSucceed(t, "Update", update(t.Context(), leader, record("leader")))
			mustSucceed(t, "Get", get(t.Context(), follower))
			if prepared, _ := preparedHere(t, db); prepared != 2 {
				t.Errorf("prepared %d times, so that this shows nothing", prepared)
			}
			unfit := sessionID(t, db)
			exec(t, db, c.change)
			before := snapshot(t, admin)
			mustSucceed(t, c.change+", "+name, operation)
			if sessionID(t, db) == unfit {
				t.Errorf("%s, %s: the session is still in the pool", c.change, name)
			}
			if wrote := !slices.Equal(before, snapshot(t, admin)); wrote != (name == "a renewal") {
				t.Errorf("%s, %s: written, as others see it: %t", c.change, name, wrote)
			}
		}
	}
}

func TestPreparedRenewalHasTheTimeOfItsOwn(t *testing.T) {
	_, config := newTables(t)
	db := openOnlyOne(t, config)
	leader := newLock(t, db, "e", "leader")
	takeOver(t, leader)
	_, before := preparedHere(t, db)
	seen := map[string]bool{}
	for range 3 {
		mustSucceed(t, "Update", update(t.Context(), leader, record("leader")))
		seen[table(t, db, `SELECT last_update, version FROM election_records`)] = true
	}
	if wantPrepared(t, "three renewals", db, 2, before+3); len(seen) != 3 {
		t.Errorf("%d states of the row after three renewals: %v", len(seen), seen)
	}
}

func TestPreparedStatementsSeeATableThatChanges(t *testing.T) {
	admin, config := newTables(t)
	db := openOnlyOne(t, config)
	leader, follower := newLock(t, db, "e", "leader"), newLock(t, db, "e", "follower")
	work := func(when string) {
		t.Helper()
		mustSucceed(t, when+", Update", update(t.Context(), leader, record("leader")))
		held, _, err := follower.Get(t.Context())
		if err != nil || held.HolderIdentity != "leader" {
			t.Errorf("%s: %+v, %v, want the holder %q", when, held, err, "leader")
		}
	}
	takeOver(t, leader)
	work("at first")
	exec(t, admin, `ALTER TABLE election_records MODIFY leader_name VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL FIRST, ADD note INT FIRST`)
	work("altered")
	exec(t, admin, `DROP TABLE election_records`)
	for name, call := range map[string]func() error{"Get": get(t.Context(), follower), "Update": update(t.Context(), leader, record("leader"))} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "Error 1146") {
			t.Errorf("%s without the table: %v", name, err)
		}
	}
	mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), admin) })
	takeOver(t, leader)
	_, before := preparedHere(t, db)
	work("made anew")
	if _, executed := preparedHere(t, db); executed < before+2 {
		t.Error("the table was missing for a while, and nothing is sent as prepared any more")
	}
	exec(t, admin, `RENAME TABLE election_records TO r`)
	exec(t, admin, `CREATE VIEW election_records AS SELECT * FROM r`)
	work("a view")
}

// A server counts the statements of all its connections.
func TestPreparedGivesWayToTextsWhereTheServerPreparesNoMore(t *testing.T) {
	_, config := ownServer(t)
	admin := open(t, config)
	mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), admin) })
	exec(t, admin, `SET GLOBAL max_prepared_stmt_count = 0`)

	var meter mysqltest.Meter
	measured := config.Clone()
	measured.DialFunc = meter.Dial
	db := openOnlyOne(t, measured)
	leader := newLock(t, db, "e", "leader")
	mustSucceed(t, "Create", create(t.Context(), leader, record("leader")))
	for _, roundTrips := range []int{2, 1, 1} { // the refusal, and then no attempt more
		meter.Take()
		mustSucceed(t, "Update", update(t.Context(), leader, record("leader")))
		if cost := meter.Take(); cost.RoundTrips != roundTrips {
			t.Errorf("%v, want %d round trips", cost, roundTrips)
		}
	}
	mustSucceed(t, "Get", get(t.Context(), leader))
	wantPrepared(t, "refused", db, 0, 0)

	exec(t, admin, `SET GLOBAL max_prepared_stmt_count = 100`)
	another := openOnlyOne(t, config)
	mustSucceed(t, "Get", get(t.Context(), newLock(t, another, "e", "follower")))
	wantPrepared(t, "another connection", another, 1, 1)

	// Nothing is left at the server of a pool that was closed.
	count := func() string {
		return table(t, admin, `SHOW GLOBAL STATUS LIKE 'Prepared_stmt_count'`)
	}
	with := count()
	mustSucceed(t, "Close", another.Close)
	eventually(t, 10*time.Second, "the closed pool's statement is gone", func() bool { return count() != with })
}

// forgetful is a proxy that knows prepared statements, but not for long.
type forgetful struct {
	net.Conn
	forgets *atomic.Bool
}

func (c forgetful) Write(b []byte) (int, error) {
	if len(b) > 8 && b[4] == comStmtExecute && c.forgets.Load() {
		copied := append([]byte(nil), b...)
		copied[8] ^= 0x40 // of the statement's number
		b = copied
	}
	return c.Conn.Write(b)
}

func TestPreparedGivesWayToTextsWhereAProxyForgetsWhatWasPrepared(t *testing.T) {
	_, config := newTables(t)
	var forgets atomic.Bool
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return forgetful{conn, &forgets}, err
	}
	for name, operation := range map[string]func(leader, follower *mysqllock.Lock) func() error{
		"Get":    func(_, follower *mysqllock.Lock) func() error { return get(t.Context(), follower) },
		"Update": func(leader, _ *mysqllock.Lock) func() error { return update(t.Context(), leader, record("leader")) },
	} {
		db := openOnlyOne(t, config)
		leader, follower := newLock(t, db, name, "leader"), newLock(t, db, name, "follower")
		takeOver(t, leader)
		call := operation(leader, follower)
		mustSucceed(t, name, call)
		forgets.Store(true)
		_, before := preparedHere(t, db)
		for range 3 {
			mustSucceed(t, name+", forgotten", call)
		}
		_, executed := preparedHere(t, db)
		forgets.Store(false)
		mustSucceed(t, name+" on the same connection", call)
		if _, after := preparedHere(t, db); after != executed || executed > before+1 {
			t.Errorf("%s: executed %d, %d and then %d times as prepared; want one attempt more at most", name, before, executed, after)
		}
	}
}

// mute is a proxy that answers a command that it doesn't know by hanging up, or not at all.
type mute struct {
	net.Conn
	hangsUp bool
}

func (c mute) Write(b []byte) (int, error) {
	if len(b) < 5 || b[4] != comStmtPrepare {
		return c.Conn.Write(b)
	}
	if c.hangsUp {
		return len(b), c.Conn.Close()
	}
	return len(b), nil
}

func TestPreparedGivesWayToTextsWhereAProxyDoesNotEvenRefuse(t *testing.T) {
	_, config := newTables(t)
	for name, hangsUp := range map[string]bool{"hangs up": true, "is silent": false} {
		config := config.Clone()
		config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			return mute{conn, hangsUp}, err
		}
		leader := newLock(t, open(t, config), name, "leader", mysqllock.WithOperationTimeout(time.Second))
		if err := create(t.Context(), leader, record("leader"))(); err != nil {
			t.Fatal(err)
		}
		if err := update(t.Context(), leader, record("leader"))(); err == nil {
			t.Errorf("%s: no error, so that nothing was prepared", name)
		}
		for range 2 {
			mustSucceed(t, name+", Get", get(t.Context(), leader))
			mustSucceed(t, name+", Update", update(t.Context(), leader, record("leader")))
		}
	}
}

// blockTable makes every statement wait for election_records: a transaction has it in use, and an
// ALTER, which waits for that, is next.
func blockTable(t *testing.T, admin *sql.DB) (release func()) {
	t.Helper()
	tx, err := admin.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), `DELETE FROM election_records WHERE election_name = 'none'`); err != nil {
		t.Fatal(err)
	}
	altering, err := admin.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := altering.ExecContext(t.Context(), `SET lock_wait_timeout = 60`); err != nil {
		t.Fatal(err)
	}
	altered := make(chan error, 1)
	go func() {
		_, err := altering.ExecContext(context.WithoutCancel(t.Context()), `ALTER TABLE election_records COMMENT 'altered'`)
		altered <- err
	}()
	eventually(t, 20*time.Second, "the ALTER waits", func() bool {
		return table(t, admin, `SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE DB = DATABASE() AND INFO LIKE 'ALTER%' AND STATE LIKE 'Waiting%'`) == "1"
	})
	return func() {
		t.Helper()
		mustSucceed(t, "the rollback", tx.Rollback)
		if err := <-altered; err != nil {
			t.Error(err)
		}
		_ = altering.Raw(func(any) error { return driver.ErrBadConn }) // closes it, for it has settings of its own
		_ = altering.Close()
	}
}

// Or the text would wait as long once more, beyond the deadline.
func TestPreparedStatementThatWaitedForALockIsNotSentAgain(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	for when, prepared := range map[string]bool{"while it is prepared": false, "after it was prepared": true} {
		var meter mysqltest.Meter
		measured := config.Clone()
		measured.DialFunc = meter.Dial
		db := openOnlyOne(t, measured)
		leader := newLock(t, db, when, "leader", mysqllock.WithOperationTimeout(20*time.Second))
		mustSucceed(t, "Create", create(t.Context(), leader, record("leader")))
		calls := map[string]func() error{"Get": get(t.Context(), leader), "Update": update(t.Context(), leader, record("leader"))}
		if prepared {
			for name, call := range calls {
				mustSucceed(t, name, call)
			}
		}
		release := blockTable(t, admin)
		for name, call := range calls {
			meter.Take()
			if err := call(); err == nil || !strings.Contains(err.Error(), "Error 1205") {
				t.Errorf("%s, %s: %v, want error 1205", name, when, err)
			}
			if cost := meter.Take(); cost.RoundTrips != 1 {
				t.Errorf("%s, %s: %v, want one round trip", name, when, cost)
			}
		}
		release()
		_, before := preparedHere(t, db)
		for name, call := range calls {
			mustSucceed(t, name+" afterwards", call)
		}
		if _, executed := preparedHere(t, db); executed < before+2 {
			t.Errorf("%s: nothing is sent as prepared any more", when)
		}
	}
}

func TestPreparedConnectionIsTheDriversForWhoeverUsesItRaw(t *testing.T) {
	_, config := newTables(t)
	conn, err := open(t, config).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Raw(func(c any) error {
		result, err := c.(driver.Execer).Exec(`DO 1`, nil) //nolint:staticcheck // as the driver documents it
		if err != nil {
			return err
		}
		if n := len(result.(mysql.Result).AllRowsAffected()); n != 1 {
			t.Errorf("%d results", n)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

package mysqllock_test

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/internal/wire"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Commands of the protocol.
const (
	comStmtPrepare = 0x16
	comStmtExecute = 0x17
)

// openOnlyOne is a pool of Open with one connection.
func openOnlyOne(t testing.TB, config *mysql.Config) *sql.DB {
	t.Helper()
	db := open(t, config)
	db.SetMaxOpenConns(1)
	return db
}

// preparedHere is how often the only connection of a pool prepared a statement,
// and how often it executed one.
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

func TestEachConnectionPreparesThePollOnceForAllLocks(t *testing.T) {
	admin, config := newTables(t)
	db := openOnlyOne(t, config)
	takeOver(t, newLock(t, db, "0", "leader"))
	poll := func() {
		for election := range 3 {
			follower := newLock(t, db, fmt.Sprint(election), "follower")
			if err := get(t.Context(), follower)(); err != nil && (election == 0 || !apierrors.IsNotFound(err)) {
				t.Error(err)
			}
		}
	}
	poll()
	poll()
	_, before := preparedHere(t, db)
	poll()
	wantPrepared(t, "one connection", db, 1, before+3)

	// A new connection begins anew.
	var id string
	if err := db.QueryRowContext(t.Context(), `SELECT CONNECTION_ID()`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	exec(t, admin, `KILL `+id)
	poll()
	wantPrepared(t, "after a reconnect", db, 1, 3)
}

func TestNothingIsKeptPreparedInAPoolOfOnesOwn(t *testing.T) {
	_, config := newTables(t)
	db := openOne(t, config, "interpolateParams=true")
	takeOver(t, newLock(t, db, "e", "leader"))
	mustSucceed(t, "Get", get(t.Context(), newLock(t, db, "e", "follower")))
	wantPrepared(t, "a pool that is not Open's", db, 0, 0)
}

func TestAConnectionKeepsFewStatementsPrepared(t *testing.T) {
	_, config := newTables(t)
	db := openOnlyOne(t, config)
	followers := map[string]*mysqllock.Lock{}
	for n := range 6 {
		in := mysqllock.WithDatabase(newConfig(t).DBName)
		mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), db, in) })
		leader := fmt.Sprint("leader ", n)
		takeOver(t, newLock(t, db, "e", leader, in))
		followers[leader] = newLock(t, db, "e", "follower", in)
	}
	for range 2 {
		for leader, follower := range followers {
			if held, _, err := follower.Get(t.Context()); err != nil || held.HolderIdentity != leader {
				t.Errorf("%+v, %v, want the holder %q", held, err, leader)
			}
		}
	}
	if prepared, _ := preparedHere(t, db); prepared != 4 {
		t.Errorf("prepared %d statements, want 4", prepared)
	}
}

// A session is looked at with each poll, not when the statement was prepared.
func TestAPreparedPollSeesASessionThatChanges(t *testing.T) {
	admin, config := newTables(t)
	takeOver(t, newLock(t, admin, "e", "leader"))
	takeOver(t, newLock(t, admin, "ä", "leader"))
	for _, c := range []struct{ election, change, want, back string }{
		{"e", `SET autocommit = 0`, "autocommit off", `SET autocommit = 1`},
		{"ä", `SET NAMES latin1`, "character set is latin1", `SET NAMES utf8mb4`},
		{"ä", `SET character_set_results = latin1`, "character set is latin1", `SET NAMES utf8mb4`},
	} {
		db := openOnlyOne(t, config)
		follower := newLock(t, db, c.election, "follower")
		mustSucceed(t, "Get", get(t.Context(), follower))
		exec(t, db, c.change)
		mustRefuse(t, admin, c.change, c.want, get(t.Context(), follower))
		exec(t, db, c.back)
		mustSucceed(t, "Get after "+c.back, get(t.Context(), follower))
		prepared, _ := preparedHere(t, db)
		if prepared != 1 {
			t.Errorf("prepared %d times, so that this showed nothing", prepared)
		}
	}
}

func TestAPreparedPollSeesATableThatChanges(t *testing.T) {
	admin, config := newTables(t)
	db := openOnlyOne(t, config)
	follower := newLock(t, db, "e", "follower")
	holder := func(when, want string) {
		t.Helper()
		held, _, err := follower.Get(t.Context())
		if err != nil || held.HolderIdentity != want {
			t.Errorf("%s: %+v, %v, want the holder %q", when, held, err, want)
		}
	}
	takeOver(t, newLock(t, admin, "e", "first"))
	holder("at first", "first")
	exec(t, admin, `ALTER TABLE election_records MODIFY leader_name VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL FIRST, ADD note INT FIRST`)
	holder("altered", "first")
	exec(t, admin, `DROP TABLE election_records`)
	if err := get(t.Context(), follower)(); err == nil || !strings.Contains(err.Error(), "Error 1146") {
		t.Errorf("without the table: %v", err)
	}
	mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), admin) })
	takeOver(t, newLock(t, admin, "e", "second"))
	_, before := preparedHere(t, db)
	holder("made anew", "second")
	if _, executed := preparedHere(t, db); executed == before {
		t.Error("the table was missing for a while, and nothing is sent as prepared any more")
	}
	exec(t, admin, `RENAME TABLE election_records TO r`)
	exec(t, admin, `CREATE VIEW election_records AS SELECT * FROM r`)
	holder("a view", "second")
}

// A server counts the statements of all its connections.
func TestPollsGoOnAsTextWhereTheServerPreparesNoMore(t *testing.T) {
	_, config := ownServer(t)
	admin := open(t, config)
	mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), admin) })
	takeOver(t, newLock(t, admin, "e", "leader"))
	exec(t, admin, `SET GLOBAL max_prepared_stmt_count = 0`)

	var meter wire.Meter
	measured := config.Clone()
	measured.DialFunc = meter.Dial
	db := openOnlyOne(t, measured)
	mustSucceed(t, "Ping", func() error { return db.PingContext(t.Context()) })
	follower := newLock(t, db, "e", "follower")
	for _, roundTrips := range []int{2, 1, 1} { // the refusal, and then no attempt more
		meter.Take()
		mustSucceed(t, "Get", get(t.Context(), follower))
		if cost := meter.Take(); cost.RoundTrips != roundTrips {
			t.Errorf("%v, want %d round trips", cost, roundTrips)
		}
	}
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

func TestPollsGoOnAsTextWhereAProxyForgetsWhatWasPrepared(t *testing.T) {
	admin, config := newTables(t)
	takeOver(t, newLock(t, admin, "e", "leader"))
	var forgets atomic.Bool
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return forgetful{conn, &forgets}, err
	}
	db := openOnlyOne(t, config)
	follower := newLock(t, db, "e", "follower")
	mustSucceed(t, "Get", get(t.Context(), follower))
	wantPrepared(t, "before", db, 1, 1)
	forgets.Store(true)
	for range 3 {
		mustSucceed(t, "Get", get(t.Context(), follower))
	}
	_, executed := preparedHere(t, db)
	forgets.Store(false)
	mustSucceed(t, "Get", get(t.Context(), follower))
	wantPrepared(t, "after", db, 1, executed)
}

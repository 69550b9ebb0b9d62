package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// openAgeing is Open for the duration of a test, with connections that are old soon.
func openAgeing(t testing.TB, config *mysql.Config, lifetime, pause time.Duration) *sql.DB {
	t.Helper()
	db, err := mysqllock.OpenWithLifetime(config, lifetime, pause)
	if err != nil {
		t.Fatal(err)
	}
	// A stall of the machine makes no connection of the test idle for too long.
	db.SetConnMaxIdleTime(0)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// path is how a pool's new connections get to a server: through a proxy, or not at all.
type path struct {
	mu       sync.Mutex
	to       string      // address; "": every attempt fails
	attempts []time.Time // when each ended
	overlaps int         // attempts that began while another one was under way
	underWay int
}

var errNoPath = errors.New("nobody listens there")

func (p *path) lead(to string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = to
}

func (p *path) tried() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.attempts)
}

// config has p as the way to the server.
func (p *path) config(config *mysql.Config) *mysql.Config {
	config = config.Clone()
	config.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
		p.mu.Lock()
		to := p.to
		if p.underWay++; p.underWay > 1 {
			p.overlaps++
		}
		p.mu.Unlock()
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.underWay--
			p.attempts = append(p.attempts, time.Now())
		}()
		if to == "" {
			return nil, &net.OpError{Op: "dial", Net: network, Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 3306}, Err: errNoPath}
		}
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}
	return config
}

// useUntilOffered uses a connection until it is old and its successor on offer, having come through
// that proxy.
func useUntilOffered(t testing.TB, db *sql.DB, through *proxy) {
	t.Helper()
	before := through.Connections()
	eventually(t, 20*time.Second, "the connection is old, and its successor being opened", func() bool {
		if through.Connections() == before {
			sessionID(t, db)
		}
		return through.Connections() > before
	})
	eventually(t, 20*time.Second, "the successor is on offer", offering)
}

// offering reports whether a goroutine offers a successor: it has opened it, and waits.
func offering() bool {
	for goroutine := range strings.SplitSeq(goroutines(), "\n\n") {
		state, stack, _ := strings.Cut(goroutine, "\n")
		if strings.Contains(state, "[select") && strings.Contains(stack, "(*successors).run(") && !strings.Contains(stack, "(*connector).open(") {
			return true
		}
	}
	return false
}

func goroutines() string {
	stacks := make([]byte, 4<<20)
	return string(stacks[:runtime.Stack(stacks, true)])
}

// Error 1040 cost a lease once, after three minutes.
func TestSuccessorThatCantBeOpenedCostsNoLease(t *testing.T) {
	t.Parallel()
	_, config := ownServer(t, "--max-connections=12")
	admin := open(t, config)
	if err := mysqllock.Migrate(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	others := openDSN(t, newAccount(t, config, "SELECT ON {db}.*"), "")
	account := newAccount(t, config, ordinary...)
	const lifetime = 500 * time.Millisecond
	db := openAgeing(t, account, lifetime, 100*time.Millisecond)
	leader := begin(t, db, "shortage", "leader", hasty)
	<-leader.leading
	sessionOf(t, admin, account.User) // from now on admin has a connection

	var held []*sql.Conn
	shortage := func(lasts time.Duration) (session int64) {
		t.Helper()
		began, before := time.Now(), len(leader.history())
		eventually(t, time.Minute, "the leader renews during the shortage", func() bool {
			held = append(held, useUp(t, others)...)
			return time.Since(began) > lasts && len(leader.history()) > before+5
		})
		return sessionOf(t, admin, account.User)
	}
	// At its beginning a successor may be open already.
	session := shortage(3 * lifetime)
	if now := shortage(2 * hasty.lease); now != session {
		t.Errorf("session %d in place of %d, while the server had no connection left", now, session)
	}
	for _, conn := range held {
		_ = conn.Close()
	}
	if err := others.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the session is replaced", func() bool {
		return countSessions(t, admin, `ID = ?`, session) == 0
	})
	before := len(leader.history())
	eventually(t, 20*time.Second, "the leader goes on", func() bool { return len(leader.history()) > before+5 })
	if !leader.leads() {
		t.Error("the leader lost its lease")
	}
	for _, call := range leader.history() {
		if call.name == "update" && call.err != nil {
			t.Errorf("a renewal failed: %v", call.err)
		}
	}
	leader.stop()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// sessionOf is the only session of a user.
func sessionOf(t testing.TB, admin *sql.DB, user string) (id int64) {
	t.Helper()
	table := "performance_schema.processlist"
	if server.MariaDB() {
		table = "information_schema.PROCESSLIST"
	}
	if err := admin.QueryRowContext(t.Context(), `SELECT ID FROM `+table+` WHERE USER = ?`, user).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// useUp takes connections until the server refuses one.
func useUp(t testing.TB, others *sql.DB) (held []*sql.Conn) {
	t.Helper()
	for {
		conn, err := others.Conn(t.Context())
		if isFull(err) {
			return held
		}
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
}

func isFull(err error) bool {
	var refused *mysql.MySQLError
	return errors.As(err, &refused) && refused.Number == 1040
}

func TestSuccessorFollowsTheServerAndIsWaitedFor(t *testing.T) {
	old, next := newProxy(t, server.Config().Addr), newProxy(t, server.Config().Addr)
	way := &path{to: old.Addr()}
	db := openAgeing(t, way.config(newConfig(t)), 50*time.Millisecond, 20*time.Millisecond)
	sessionID(t, db)

	way.lead("")
	before := len(way.tried())
	eventually(t, 20*time.Second, "several attempts have failed", func() bool {
		sessionID(t, db)
		return len(way.tried()) > before+3
	})
	way.lead(next.Addr())
	eventually(t, 20*time.Second, "the pool is connected the other way, and not the old one any more", func() bool {
		sessionID(t, db)
		return old.Connections() == 0 && next.Connections() > 0
	})
	if stats := db.Stats(); stats.OpenConnections != 1 {
		t.Errorf("the pool has %d connections", stats.OpenConnections)
	}
}

func TestSuccessorsAreOpenedOneAtATimeAndNotAgainAtOnceAfterAFailure(t *testing.T) {
	defer klog.CaptureState().Restore()
	logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.Verbosity(1), ktesting.BufferLogs(true)))
	klog.SetLoggerWithOptions(logger, klog.ContextualLogger(true))

	through := newProxy(t, server.Config().Addr)
	way := &path{to: through.Addr()}
	const pause = 150 * time.Millisecond
	db := openAgeing(t, way.config(newConfig(t)), 50*time.Millisecond, pause)
	var conns []*sql.Conn
	var first []int64
	for range 4 {
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		first = append(first, sessionID(t, conn))
	}
	way.lead("")
	for _, conn := range conns {
		_ = conn.Close()
	}
	use := func() (ids []int64) {
		for i := range conns {
			conn, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conns[i] = conn
			ids = append(ids, sessionID(t, conn))
		}
		for _, conn := range conns {
			_ = conn.Close()
		}
		return ids
	}
	before := len(way.tried())
	way.mu.Lock()
	way.overlaps = 0
	way.mu.Unlock()
	eventually(t, 20*time.Second, "several attempts have failed", func() bool {
		use()
		return len(way.tried()) > before+3
	})
	failed := way.tried()[before:]
	for i := range failed[1:] {
		if gap := failed[i+1].Sub(failed[i]); gap < pause {
			t.Errorf("an attempt %v after one that failed", gap)
		}
	}

	way.lead(through.Addr())
	eventually(t, 20*time.Second, "all four are replaced", func() bool {
		return !slices.ContainsFunc(use(), func(id int64) bool { return slices.Contains(first, id) })
	})
	way.mu.Lock()
	defer way.mu.Unlock()
	if way.overlaps != 0 {
		t.Errorf("%d attempts beside another one", way.overlaps)
	}
	if stats := db.Stats(); stats.OpenConnections != 4 {
		t.Errorf("the pool has %d connections", stats.OpenConnections)
	}

	logs := logger.GetSink().(ktesting.Underlier).GetBuffer().String()
	if n := strings.Count(logs, "No new connection to the server can be opened"); n != 1 {
		t.Errorf("the failures are logged %d times:\n%s", n, logs)
	}
	if !strings.Contains(logs, errNoPath.Error()) || strings.Contains(logs, "192.0.2.1") {
		t.Errorf("klog doesn't show the cause, or shows the server's address:\n%s", logs)
	}
}

func TestSuccessorThatDiedIsNotUsed(t *testing.T) {
	old, next := newProxy(t, server.Config().Addr), newProxy(t, server.Config().Addr)
	way := &path{to: old.Addr()}
	db := openAgeing(t, way.config(newConfig(t)), 2*time.Second, time.Hour)
	id := sessionID(t, db)
	way.lead(next.Addr())
	useUntilOffered(t, db, next)
	next.cut()
	if now := sessionID(t, db); now != id {
		t.Errorf("session %d in place of %d", now, id)
	}
	eventually(t, 20*time.Second, "another successor takes its place", func() bool { return sessionID(t, db) != id })
}

func TestSuccessorThatIsOpenIsTheNextNewConnection(t *testing.T) {
	through := newProxy(t, server.Config().Addr)
	way := &path{to: through.Addr()}
	const lifetime = 3 * time.Second
	db := openAgeing(t, way.config(newConfig(t)), lifetime, time.Hour)
	sessionID(t, db)
	opened := time.Now()
	eventually(t, 20*time.Second, "the connection is old", func() bool { return time.Since(opened) > lifetime })
	held, err := db.Conn(t.Context()) // asks for a successor, and stays away
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	eventually(t, 20*time.Second, "the successor is on offer", offering)
	way.lead("")
	sessionID(t, db)
	if open, connected := db.Stats().OpenConnections, through.Connections(); open != 2 || connected != 2 {
		t.Errorf("the pool has %d connections, and the server %d of them", open, connected)
	}
}

func TestSuccessorThatNobodyTakesIsClosed(t *testing.T) {
	_, config := newTables(t)
	account := newAccount(t, config, "SELECT ON {db}.*")
	for _, test := range []struct {
		name string
		end  func(t *testing.T, db *sql.DB)
		left int // sessions
	}{
		{"when the pool is closed", func(t *testing.T, db *sql.DB) {
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if stacks := goroutines(); strings.Contains(stacks, "(*successors).run") {
				t.Errorf("a goroutine of the closed pool is left:\n%s", stacks)
			}
		}, 0},
		{"when it is old itself", func(*testing.T, *sql.DB) {}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			admin := open(t, config)
			through := newProxy(t, config.Addr)
			db := openAgeing(t, (&path{to: through.Addr()}).config(account), time.Second, time.Hour)
			sessionID(t, db)
			useUntilOffered(t, db, through)
			test.end(t, db)
			eventually(t, 20*time.Second, strconv.Itoa(test.left)+" sessions are left", func() bool {
				return countSessions(t, admin, `USER = ?`, account.User) == test.left
			})
		})
	}
}

func TestSuccessorThatIsBeingOpenedDoesNotKeepAPoolFromClosing(t *testing.T) {
	through := newProxy(t, server.Config().Addr)
	way := &path{to: through.Addr()}
	db := openAgeing(t, way.config(newConfig(t)), 20*time.Millisecond, time.Hour)
	sessionID(t, db)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	way.lead(silent.Addr().String())
	before := len(way.tried())
	eventually(t, 20*time.Second, "an attempt waits for the server's greeting", func() bool {
		sessionID(t, db)
		return len(way.tried()) > before
	})
	began := time.Now()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 4*time.Second { // the attempt alone has 5 s
		t.Errorf("closing took %v", took)
	}
}

func TestSuccessorIsNotOpenedForAnIdleConnection(t *testing.T) {
	_, config := newTables(t)
	account := newAccount(t, config, "SELECT ON {db}.*")
	db, err := mysqllock.OpenWithLifetime(account, time.Second, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	sessionID(t, db)
	admin := open(t, config)
	eventually(t, 20*time.Second, "the session is closed", func() bool {
		return countSessions(t, admin, `USER = ?`, account.User) == 0
	})
	if stats := db.Stats(); stats.MaxIdleTimeClosed != 1 {
		t.Errorf("%d connections were closed for being idle", stats.MaxIdleTimeClosed)
	}
}

func TestSuccessorGoesOnWithWhatIsPrepared(t *testing.T) {
	_, config := newTables(t)
	const lifetime = 100 * time.Millisecond
	const replacements = 4
	replaced := func(use func() (session int64)) {
		t.Helper()
		sessions := map[int64]bool{}
		eventually(t, 20*time.Second, "the session was replaced several times", func() bool {
			sessions[use()] = true
			return len(sessions) > replacements
		})
	}
	t.Run("by the lock", func(t *testing.T) {
		way := &path{to: newProxy(t, config.Addr).Addr()}
		db := openAgeing(t, way.config(config), lifetime, time.Hour)
		lock := newLock(t, db, "prepared", "leader")
		began := time.Now()
		takeOver(t, lock)
		replaced(func() int64 {
			mustSucceed(t, "Get", get(t.Context(), lock))
			mustSucceed(t, "Update", update(t.Context(), lock, record("leader")))
			return sessionID(t, db)
		})
		if took := time.Since(began); took < replacements*lifetime {
			t.Errorf("%d replacements within %v", replacements, took)
		}
		// A connection with a statement that is not its own would be replaced once more.
		if n := len(way.tried()); n > replacements+2 {
			t.Errorf("%d connections for %d replacements", n, replacements)
		}
	})
	t.Run("by the user", func(t *testing.T) {
		db := openAgeing(t, config, lifetime, time.Hour)
		own, err := db.PrepareContext(t.Context(), `SELECT CONNECTION_ID()`)
		if err != nil {
			t.Fatal(err)
		}
		defer own.Close()
		replaced(func() (id int64) {
			if err := own.QueryRowContext(t.Context()).Scan(&id); err != nil {
				t.Fatal(err)
			}
			return id
		})
	})
}

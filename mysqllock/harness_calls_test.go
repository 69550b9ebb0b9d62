package mysqllock_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
	_ "time/tzdata"
	"unicode"

	"github.com/go-sql-driver/mysql"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"pgregory.net/rapid"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// mustSucceed makes a call.
func mustSucceed(t testing.TB, what string, call func() error) {
	t.Helper()
	if err := call(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// The three operations as calls.
func get(ctx context.Context, lock *mysqllock.Lock) func() error {
	return func() error { _, _, err := lock.Get(ctx); return err }
}

func create(ctx context.Context, lock *mysqllock.Lock, r resourcelock.LeaderElectionRecord) func() error {
	return func() error { return lock.Create(ctx, r) }
}

func update(ctx context.Context, lock *mysqllock.Lock, r resourcelock.LeaderElectionRecord) func() error {
	return func() error { return lock.Update(ctx, r) }
}

// recordFor is a record with that lease, a release if the identity is empty.
func recordFor(identity string, seconds int) resourcelock.LeaderElectionRecord {
	r := record(identity)
	r.LeaseDurationSeconds = seconds
	return r
}

// holderOf is the holder that a new candidate would see.
func holderOf(t testing.TB, db *sql.DB, election string) string {
	t.Helper()
	var holder string
	err := db.QueryRowContext(t.Context(), `SELECT leader_name FROM election_records WHERE election_name = ?`, election).Scan(&holder)
	if err != nil {
		t.Fatal(err)
	}
	return holder
}

func versionOf(t testing.TB, db *sql.DB, election string) (version int64) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `SELECT version FROM election_records WHERE election_name = ?`, election).Scan(&version)
	if err != nil {
		t.Fatal(err)
	}
	return version
}

func tokenOf(t testing.TB, db *sql.DB, election string) (token int64) {
	t.Helper()
	err := db.QueryRowContext(t.Context(), `SELECT fencing_token FROM election_fences WHERE election_name = ?`, election).Scan(&token)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// newAccount makes an account, for the duration of the test, that has the privileges of the grants:
// "SELECT ON {db}.election_records". At the end no session of it may be left at the server.
func newAccount(t testing.TB, config *mysql.Config, grants ...string) *mysql.Config {
	t.Helper()
	admin := open(t, config)
	account := config.Clone()
	account.User, account.Passwd = "t_"+strings.ToLower(rand.Text()[:16]), rand.Text()
	user := "'" + account.User + "'@'%'"
	exec(t, admin, `CREATE USER `+user+` IDENTIFIED BY '`+account.Passwd+`'`)
	t.Cleanup(func() {
		// The pools of the test were closed before.
		ctx := context.Background()
		left := -1
		deadline := time.Now().Add(20 * time.Second)
		for tick := time.Tick(20 * time.Millisecond); left != 0 && time.Now().Before(deadline); <-tick {
			left = sessions(ctx, t, admin, account.User)
		}
		if left != 0 {
			t.Errorf("%d sessions of the test are left at the server", left)
		}
		if _, err := admin.ExecContext(ctx, `DROP USER `+user); err != nil {
			t.Error(err)
		}
	})
	for _, grant := range grants {
		exec(t, admin, `GRANT `+strings.ReplaceAll(grant, "{db}", "`"+config.DBName+"`")+` TO `+user)
	}
	return account
}

// ordinary are the privileges that the README asks for.
var ordinary = []string{"SELECT, INSERT, UPDATE ON {db}.election_records", "SELECT, INSERT, UPDATE ON {db}.election_fences"}

// sessions counts those of one user.
func sessions(ctx context.Context, t testing.TB, admin *sql.DB, user string) int {
	t.Helper()
	return len(statementsOf(ctx, t, admin, user))
}

// statementsOf returns what each session of a user is executing; "" for nothing.
func statementsOf(ctx context.Context, t testing.TB, admin *sql.DB, user string) (statements []string) {
	t.Helper()
	rows, err := admin.QueryContext(ctx, `SHOW FULL PROCESSLIST`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	values := make([]sql.NullString, len(columns))
	fields := make([]any, len(columns))
	for i := range values {
		fields[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(fields...); err != nil {
			t.Fatal(err)
		}
		session := map[string]string{}
		for i, column := range columns {
			session[column] = values[i].String
		}
		if session["User"] == user {
			statements = append(statements, session["Info"])
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return statements
}

// newBlackHole is the address of a server that accepts connections and never answers.
func newBlackHole(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return listener.Addr().String()
}

// pools are the two kinds of pools that a lock may be given.
var pools = map[string]func(testing.TB, *mysql.Config) *sql.DB{
	"Open":      open,
	"plain DSN": func(t testing.TB, c *mysql.Config) *sql.DB { return openDSN(t, c, "") },
}

// calls are made at the same time. t.Parallel would make two at a time on a machine with two
// processors, whatever they wait for.
type calls struct{ sync.WaitGroup }

func (c *calls) start(call func()) {
	c.Add(1)
	go func() {
		defer c.Done()
		call()
	}()
}

func nop(context.Context, *sql.Tx) error { return nil }

// record is one that holds the lease for the given candidate.
func record(identity string) resourcelock.LeaderElectionRecord {
	now := metav1.NewTime(time.Now().UTC().Truncate(time.Microsecond))
	return resourcelock.LeaderElectionRecord{HolderIdentity: identity, LeaseDurationSeconds: 15, AcquireTime: now, RenewTime: now}
}

// The first provider counts, and only for electors made afterwards.
func init() { leaderelection.SetProvider(electorMetrics) }

// What an operation finds: no election, one that another candidate leads, or one that its own does.
const (
	none = iota
	another
	own
)

// session is one way in which a user may have set up a pool.
type session struct {
	name string
	open func(testing.TB, *mysql.Config) *sql.DB
}

// withDSN is a pool of the driver's own.
func withDSN(name, parameters string) session {
	return session{name, func(t testing.TB, config *mysql.Config) *sql.DB {
		t.Helper()
		return openDSN(t, config, parameters)
	}}
}

// isolations are the isolation levels, in the spelling that the server knows.
func isolations() []session {
	variable := "transaction_isolation"
	if server.MariaDB() {
		variable = "tx_isolation" // 10.11 has only this one
	}
	var all []session
	for _, level := range []string{"READ-UNCOMMITTED", "READ-COMMITTED", "REPEATABLE-READ", "SERIALIZABLE"} {
		all = append(all, withDSN(level, variable+"="+url.QueryEscape("'"+level+"'")))
	}
	return all
}

// character is any that a name may have, with those that SQL, LIKE or a driver could stumble over
// as often as all others.
var character = rapid.OneOf(
	rapid.RuneFrom([]rune(`'"`+"`"+`\%_;-/*#?$@.:{} `)),
	rapid.RuneFrom(nil, unicode.Letter, unicode.Mark, unicode.Space, unicode.Symbol),
	rapid.Custom(func(t *rapid.T) rune { return rapid.Int32Range(0x20, unicode.MaxRune).Draw(t, "any") }),
	rapid.Custom(func(t *rapid.T) rune { return rapid.Int32Range(0x10000, unicode.MaxRune).Draw(t, "astral") }),
).Filter(func(r rune) bool { return !unicode.IsControl(r) && (r < 0xD800 || r > 0xDFFF) })

// validName has 1 to 255 characters, often exactly 255.
var validName = rapid.Custom(func(t *rapid.T) string {
	n := rapid.OneOf(rapid.IntRange(1, 8), rapid.IntRange(1, 255), rapid.Just(255)).Draw(t, "length")
	runes := rapid.SliceOfN(character, n, n).Draw(t, "characters")
	for _, i := range []int{0, n - 1} {
		if unicode.IsSpace(runes[i]) {
			runes[i] = 'x'
		}
	}
	return string(runes)
})

package mysqllock_test

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// What an operation finds: no election, one that another candidate leads, or one that its own does.
const (
	none = iota
	another
	own
)

// refusals checks errors word by word, as people read them, and collects their texts.
type refusals struct {
	config *mysql.Config
	texts  []string
}

// Kinds of errors that an elector understands.
const (
	plain = iota
	notFound
	alreadyExists
	conflict
)

// want is the text that err must have; {db} stands for the test's database, and where the servers
// differ a line is for MariaDB and one for MySQL. number is the server's, 0 if the error is not one
// of the server's.
func (r *refusals) want(t *testing.T, what string, err error, number uint16, kind int, want string) {
	t.Helper()
	if mariadb, mysql, differ := strings.Cut(want, "\n"); differ {
		want = cmp.Or(map[bool]string{true: strings.TrimSpace(mariadb)}[server.MariaDB()], strings.TrimSpace(mysql))
	}
	want = strings.ReplaceAll(want, "{db}", r.config.DBName)
	switch {
	case err == nil:
		t.Errorf("%s: no error, want %s", what, want)
		return
	case err.Error() != want:
		t.Errorf("%s:\n got %s\nwant %s", what, err, want)
	}
	r.texts = append(r.texts, err.Error())
	got := plain
	for k, is := range map[int]func(error) bool{notFound: apierrors.IsNotFound, alreadyExists: apierrors.IsAlreadyExists, conflict: apierrors.IsConflict} {
		if is(err) {
			got = k
		}
	}
	if got != kind {
		t.Errorf("%s: the elector takes %v for kind %d, want %d", what, err, got, kind)
	}
	var server *mysql.MySQLError
	if errors.As(err, &server); (server == nil) != (number == 0) || server != nil && server.Number != number {
		t.Errorf("%s: the server's error in it is %v, want number %d", what, server, number)
	}
}

// refused is want for what is no business of the elector's.
func (r *refusals) refused(t *testing.T, what string, err error, want string) {
	t.Helper()
	r.want(t, what, err, 0, plain, want)
}

// byServer is want for the server's errors.
func (r *refusals) byServer(t *testing.T, what string, err error, number uint16, want string) {
	t.Helper()
	r.want(t, what, err, number, plain, want)
}

func TestErrorSaysWhatIsWrongAndWhatToDoAndNothingSecret(t *testing.T) {
	db, config := newTables(t)
	r := &refusals{config: config}
	hosts := []string{"db.internal.example", "10.9.8.7"}
	for _, part := range []struct {
		name string
		test func(*testing.T, *sql.DB, *refusals)
	}{
		{"New", testRefusedByNew},
		{"options", testRefusedOptions},
		{"records", testRefusedRecords},
		{"the election's state", testRefusedInState},
		{"the tables", testRefusedWithoutTables},
		{"privileges", testRefusedWithoutPrivilege},
		{"a read-only server", testRefusedByReadOnlyServer},
		{"connecting", testRefusedConnections},
		{"locked rows", testRefusedByLocks},
		{"rows of somebody else", testRowsOfSomebodyElse},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, db, r) })
	}
	t.Run("nothing secret", func(t *testing.T) {
		host, port, err := net.SplitHostPort(config.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.texts) < 100 {
			t.Errorf("only %d texts were collected", len(r.texts))
		}
		secrets := regexp.MustCompile(fmt.Sprintf(`%s|%s|\b%s\b|%s|tcp\(|%s|:[0-9]{4,5}\b`, regexp.QuoteMeta(config.Passwd), regexp.QuoteMeta(host), port,
			"wrong password", strings.ReplaceAll(strings.Join(hosts, "|"), ".", `\.`)))
		for _, text := range r.texts {
			if found := secrets.FindString(text); found != "" {
				t.Errorf("%q is in: %s", found, text)
			}
		}
	})
}

func testRefusedByNew(t *testing.T, db *sql.DB, r *refusals) {
	try := func(db *sql.DB, election, identity string) error {
		lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: identity})
		if (lock == nil) != (err != nil) {
			t.Errorf("New returned %v and %v", lock, err)
		}
		return err
	}
	r.refused(t, "no pool", try(nil, "e", "a"), `mysqllock: new "e": db is nil; open a pool first, as with mysqllock.Open`)
	long := strings.Repeat("é", 256)
	for _, name := range []struct{ what, name, want string }{
		{"empty", "", `is empty; give it a name`},
		{"too long", long, `has 256 characters; shorten it to at most 255`},
		{"no UTF-8", "a\xff", `"a\xff" is not valid UTF-8; give it in UTF-8`},
		{"half a surrogate", "a\xed\xa0\x80", `"a\xed\xa0\x80" is not valid UTF-8; give it in UTF-8`},
		{"NUL", "a\x00b", `"a\x00b" has the control character U+0000; remove it`},
		{"newline", "a\nb", `"a\nb" has the control character U+000A; remove it`},
		{"newline at the end", "ab\n", `"ab\n" has the control character U+000A; remove it`},
		{"DEL", "a\x7f", `"a\x7f" has the control character U+007F; remove it`},
		{"next line", "a\u0085b", `"a\u0085b" has the control character U+0085; remove it`},
		{"space at the start", " a", `" a" begins or ends with a space; remove it`},
		{"space at the end", "a ", `"a " begins or ends with a space; remove it`},
		{"nothing but space", " ", `" " begins or ends with a space; remove it`},
		{"no-break space", "a\u00a0", `"a\u00a0" begins or ends with a space; remove it`},
		{"ideographic space", "\u3000a", `"\u3000a" begins or ends with a space; remove it`},
	} {
		election := fmt.Sprintf("%q", name.name)
		if name.name == "" {
			r.refused(t, name.what, try(db, name.name, "a"), `mysqllock: new: election name `+name.want)
		} else {
			r.refused(t, name.what, try(db, name.name, "a"), `mysqllock: new `+election+`: election name `+name.want)
		}
		r.refused(t, name.what, try(db, "e", name.name), `mysqllock: new "e": identity `+name.want)
	}
	for _, name := range []string{
		strings.Repeat("\U0001f9ad", 255), strings.Repeat("a", 255), "a b", "a/b", "a%sb", `'"\?`, "é", "a\u200bb",
	} {
		if err := try(db, name, name); err != nil {
			t.Errorf("New of %q: %v", name, err)
		}
	}
}

func testRefusedOptions(t *testing.T, db *sql.DB, r *refusals) {
	for _, test := range []struct {
		what   string
		option mysqllock.Option
		want   string
	}{
		{"no time", mysqllock.WithOperationTimeout(0), `WithOperationTimeout: 0s is no time; give a positive duration, such as 1500ms`},
		{"negative time", mysqllock.WithOperationTimeout(-1), `WithOperationTimeout: -1ns is no time; give a positive duration, such as 1500ms`},
		{"no database", mysqllock.WithDatabase(""), `WithDatabase is empty; give it a name`},
		{"a database too long", mysqllock.WithDatabase(strings.Repeat("é", 65)), `WithDatabase has 65 characters; shorten it to at most 64`},
		{"a database with a NUL", mysqllock.WithDatabase("a\x00"), `WithDatabase "a\x00" has the control character U+0000; remove it`},
		{"a database with a space at the end", mysqllock.WithDatabase("a "), `WithDatabase "a " begins or ends with a space; remove it`},
		{"a database that is not UTF-8", mysqllock.WithDatabase("\xff"), `WithDatabase "\xff" is not valid UTF-8; give it in UTF-8`},
		{"no object", mysqllock.WithEventTarget(nil), `WithEventTarget: the object is nil; give one, such as the process's own Pod, or leave the option out`},
	} {
		good := mysqllock.WithOperationTimeout(time.Second)
		_, err := mysqllock.New(db, "e", resourcelock.ResourceLockConfig{Identity: "a"}, good, test.option, good)
		r.refused(t, test.what, err, `mysqllock: new "e": `+test.want)
		r.refused(t, test.what, mysqllock.Migrate(t.Context(), db, good, test.option), `mysqllock: migrate: `+test.want)
	}
	r.refused(t, "no pool", mysqllock.Migrate(t.Context(), nil), `mysqllock: migrate: db is nil; open a pool first, as with mysqllock.Open`)
	_, _ = mysqllock.New(db, "e", resourcelock.ResourceLockConfig{Identity: "a"}, mysqllock.WithEventTarget(&corev1.Pod{}))
}

// testRefusedRecords are refused before anything is sent.
func testRefusedRecords(t *testing.T, db *sql.DB, r *refusals) {
	const third = `holderIdentity "c" is neither this candidate ("a") nor empty; a Lock writes for its own candidate only`
	held := newLock(t, db, "held", "a")
	mustSucceed(t, "Create", create(t.Context(), held, record("a")))
	past, future := time.Date(999, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		what   string
		change func(*resourcelock.LeaderElectionRecord)
		want   string
	}{
		{"a third holder", func(r *resourcelock.LeaderElectionRecord) { r.HolderIdentity = "c" }, third},
		{"a holder in another spelling", func(r *resourcelock.LeaderElectionRecord) { r.HolderIdentity = "A" }, strings.ReplaceAll(third, `"c"`, `"A"`)},
		{
			"no lease", func(r *resourcelock.LeaderElectionRecord) { r.LeaseDurationSeconds = 0 },
			`leaseDurationSeconds is 0, a lease that has always expired; client-go stores whole seconds, so make LeaseDuration at least 1s`,
		},
		{
			"a negative lease", func(r *resourcelock.LeaderElectionRecord) { r.LeaseDurationSeconds = -1 },
			`leaseDurationSeconds is -1, a lease that has always expired; client-go stores whole seconds, so make LeaseDuration at least 1s`,
		},
		{
			"a negative lease without a holder", func(r *resourcelock.LeaderElectionRecord) { r.HolderIdentity, r.LeaseDurationSeconds = "", -1 },
			`leaseDurationSeconds -1 is out of range; give 0 to 2147483647`,
		},
		{
			"too long a lease", func(r *resourcelock.LeaderElectionRecord) {
				r.LeaseDurationSeconds = math.MaxInt32
				r.LeaseDurationSeconds++
			},
			`leaseDurationSeconds 2147483648 is out of range; give 0 to 2147483647`,
		},
		{
			"acquired too early", func(r *resourcelock.LeaderElectionRecord) { r.AcquireTime = metav1.NewTime(past) },
			`acquireTime is in the year 999; a DATETIME holds 1000 to 9999`,
		},
		{
			"renewed too late", func(r *resourcelock.LeaderElectionRecord) { r.RenewTime = metav1.NewTime(future) },
			`renewTime is in the year 10000; a DATETIME holds 1000 to 9999`,
		},
		{"a year of its own in UTC", func(r *resourcelock.LeaderElectionRecord) {
			r.RenewTime = metav1.NewTime(time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -3600)))
		}, `renewTime is in the year 10000; a DATETIME holds 1000 to 9999`},
		{"a strategy too long", func(r *resourcelock.LeaderElectionRecord) {
			r.Strategy = "OldestEmulationVersion"
			for len(r.Strategy) <= 255 {
				r.Strategy += r.Strategy
			}
		}, `strategy has 352 characters; shorten it to at most 255`},
		{
			"a strategy with a tab", func(r *resourcelock.LeaderElectionRecord) { r.Strategy = "a\tb" },
			`strategy "a\tb" has the control character U+0009; remove it`,
		},
		{
			"a preferred holder that is not UTF-8", func(r *resourcelock.LeaderElectionRecord) { r.PreferredHolder = "\xc3" },
			`preferredHolder "\xc3" is not valid UTF-8; give it in UTF-8`,
		},
		{
			"a preferred holder with a space", func(r *resourcelock.LeaderElectionRecord) { r.PreferredHolder = "b " },
			`preferredHolder "b " begins or ends with a space; remove it`,
		},
	} {
		refused := record("a")
		test.change(&refused)
		lock := newLock(t, db, "records", "a")
		r.refused(t, test.what, lock.Create(t.Context(), refused), `mysqllock: create "records": `+test.want)
		r.refused(t, test.what, lock.Update(t.Context(), refused), `mysqllock: update "records": `+test.want)
		if _, _, err := lock.Get(t.Context()); !apierrors.IsNotFound(err) {
			t.Fatalf("%s was written", test.what)
		}
		// As a renewal, of a term that then goes on as if nothing had been.
		before := snapshot(t, db)
		r.refused(t, test.what, held.Update(t.Context(), refused), `mysqllock: update "held": `+test.want)
		if !slices.Equal(before, snapshot(t, db)) {
			t.Errorf("%s was written", test.what)
		}
		mustSucceed(t, "a renewal after "+test.what, update(t.Context(), held, record("a")))
	}
	// The largest of each.
	largest := record("a")
	largest.LeaseDurationSeconds, largest.LeaderTransitions = math.MaxInt32, math.MaxInt32
	largest.AcquireTime = metav1.NewTime(time.Date(1000, 1, 1, 0, 0, 0, 0, time.UTC))
	largest.RenewTime = metav1.NewTime(time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC))
	largest.Strategy, largest.PreferredHolder = "x", strings.Repeat("\U0001f9ad", 255)
	name := strings.Repeat("\U0001f9ad", 255)
	lock := newLock(t, db, name, name)
	largest.HolderIdentity = name
	mustSucceed(t, "Create of the largest", create(t.Context(), lock, largest))
	got, _, err := lock.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.HolderIdentity != name || got.PreferredHolder != name || got.LeaderTransitions != math.MaxInt32 || got.RenewTime.Year() != 9999 || got.AcquireTime.Year() != 1000 {
		t.Errorf("the largest came back as %+v", got)
	}
	mustSucceed(t, "a renewal of the largest", update(t.Context(), lock, largest))
}

// testRefusedInState is what the elector understands, and what it must not.
func testRefusedInState(t *testing.T, db *sql.DB, r *refusals) {
	a, b := newLock(t, db, "state", "a"), newLock(t, db, "state", "b")
	r.refused(t, "Update before Get", a.Update(t.Context(), record("a")), `mysqllock: update "state": no row was observed yet; call Get or Create first`)
	r.refused(t, "release before Get", a.Update(t.Context(), recordFor("", 1)), `mysqllock: update "state": no row was observed yet; call Get or Create first`)
	r.want(t, "Get of nothing", get(t.Context(), a)(), 0, notFound, `mysqllock: get "state": election_records "state" not found`)
	mustSucceed(t, "Create", create(t.Context(), a, record("a")))
	r.want(t, "Create again", a.Create(t.Context(), record("a")), 0, alreadyExists, `mysqllock: create "state": election_records "state" already exists`)
	mustSucceed(t, "Get", get(t.Context(), b))
	mustSucceed(t, "Update", update(t.Context(), b, record("b")))
	const changed = `mysqllock: update "state": Operation cannot be fulfilled on election_records "state": the row has changed since it was observed and is held by "b"`
	r.want(t, "a stale renewal", a.Update(t.Context(), record("a")), 0, conflict, changed)
	r.refused(t, "a stale release", a.Update(t.Context(), recordFor("", 1)),
		`mysqllock: update "state": not released, as this candidate does not hold the election: it is held by "b"`)
	mustSucceed(t, "Get", get(t.Context(), a))
	going := record("a")
	going.RenewTime = metav1.NewTime(going.RenewTime.Add(time.Second))
	r.want(t, "a renewal of somebody else's row", a.Update(t.Context(), going), 0, conflict,
		`mysqllock: update "state": Operation cannot be fulfilled on election_records "state": the row is held by "b", and the record does not begin a term`)
	mustSucceed(t, "release", update(t.Context(), b, recordFor("", 1)))
	r.refused(t, "a second release", b.Update(t.Context(), recordFor("", 1)),
		`mysqllock: update "state": not released, as this candidate does not hold the election: it is held by nobody`)

	mustSucceed(t, "Get", get(t.Context(), b))
	mustSucceed(t, "Update", update(t.Context(), b, record("b")))
	exec(t, db, `DELETE FROM election_records WHERE election_name = 'state'`)
	r.want(t, "a renewal of a deleted row", b.Update(t.Context(), record("b")), 0, notFound, `mysqllock: update "state": election_records "state" not found`)
	r.want(t, "a release of a deleted row", b.Update(t.Context(), recordFor("", 1)), 0, notFound, `mysqllock: update "state": election_records "state" not found`)

	// One identity twice.
	twin := newLock(t, db, "twin", "a")
	original := newLock(t, db, "twin", "a")
	mustSucceed(t, "Create", create(t.Context(), twin, record("a")))
	mustSucceed(t, "Get", get(t.Context(), original))
	mustSucceed(t, "a renewal", update(t.Context(), twin, record("a")))
	err := original.Update(t.Context(), record("a"))
	r.want(t, "a twin's conflict", err, 0, conflict, `mysqllock: update "twin": another candidate uses the same identity: `+
		`Operation cannot be fulfilled on election_records "twin": the row has changed since it was observed and is held by "a"`)
	if !errors.Is(err, mysqllock.ErrDuplicateIdentity) {
		t.Errorf("%v is not ErrDuplicateIdentity", err)
	}
}

// each calls the three operations of a new lock, the last one with a row that was seen through
// another pool.
func (r *refusals) each(t *testing.T, what string, bad *sql.DB, number uint16, want string, opts ...mysqllock.Option) {
	t.Helper()
	lock := newLock(t, bad, "e", "a", opts...)
	r.byServer(t, what+", Get", get(t.Context(), lock)(), number, strings.ReplaceAll(want, "{op}", "get"))
	r.byServer(t, what+", Create", lock.Create(t.Context(), record("a")), number, strings.ReplaceAll(want, "{op}", "create"))
}

func testRefusedWithoutTables(t *testing.T, db *sql.DB, r *refusals) {
	empty := newConfig(t)
	bare := &refusals{config: empty}
	defer func() { r.texts = append(r.texts, bare.texts...) }()
	const migrate = `; run mysqllock.Migrate, or apply mysqllock.Schema, in the database that the connection or WithDatabase names`
	const column = `; the tables lack a column, as those of an earlier version do: run mysqllock.Migrate, or the ALTER TABLE that mysqllock.Schema begins with`
	const missing = `mysqllock: {op} "e": Error 1146 (42S02): Table '{db}.election_records' doesn't exist` + migrate
	for _, pool := range pools {
		bare.each(t, "no tables", pool(t, empty), 1146, missing)
	}
	bare.each(t, "no tables in the other database", db, 1146, missing, mysqllock.WithDatabase(empty.DBName))

	mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), open(t, empty)) })
	admin := open(t, empty)
	lock := newLock(t, admin, "e", "a")
	mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
	exec(t, admin, `DROP TABLE election_fences`)
	mustSucceed(t, "a renewal without the fences", update(t.Context(), lock, record("a")))
	mustSucceed(t, "release without the fences", update(t.Context(), lock, recordFor("", 1)))
	bare.byServer(t, "no fences", lock.Update(t.Context(), record("a")), 1146,
		`mysqllock: update "e": Error 1146 (42S02): Table '{db}.election_fences' doesn't exist`+migrate)
	exec(t, admin, `ALTER TABLE election_records DROP COLUMN strategy`)
	place := "SELECT"
	if !server.MariaDB() || isMariaDB105() {
		place = "field list"
	}
	bare.byServer(t, "a column is missing", get(t.Context(), lock)(), 1054,
		`mysqllock: get "e": Error 1054 (42S22): Unknown column 'r.strategy' in '`+place+`'`+column)
}

func testRefusedWithoutPrivilege(t *testing.T, db *sql.DB, r *refusals) {
	const grant = `; the lock needs SELECT, INSERT and UPDATE on election_records and election_fences: GRANT them ` +
		`(Migrate also needs CREATE, and to upgrade an old table ALTER, DELETE, DROP and LOCK TABLES)`
	leader := newLock(t, db, "privileges", "leader")
	mustSucceed(t, "Create", create(t.Context(), leader, record("leader")))
	for _, missing := range []struct {
		table, privilege, op string
		mysql                string // as MySQL says it, where it isn't just the privilege and the table
	}{
		{table: "election_records", privilege: "SELECT", op: "get"},
		{table: "election_records", privilege: "INSERT", op: "create"},
		{table: "election_records", privilege: "UPDATE", op: "update", mysql: "Error 1143 (42000): UPDATE {user} column 'leader_name' in table 'election_records'"},
		{table: "election_fences", privilege: "SELECT", op: "update"},
		{table: "election_fences", privilege: "INSERT", op: "create"},
		{table: "election_fences", privilege: "UPDATE", op: "update", mysql: "Error 1142 (42000): SELECT with locking clause {user} table 'election_fences'"},
	} {
		what := missing.privilege + " on " + missing.table
		t.Run(what, func(t *testing.T) {
			var grants []string
			for _, table := range []string{"election_records", "election_fences"} {
				privileges := []string{"SELECT", "INSERT", "UPDATE"}
				if table == missing.table {
					privileges = slices.DeleteFunc(privileges, func(p string) bool { return p == missing.privilege })
				}
				grants = append(grants, strings.Join(privileges, ", ")+" ON {db}."+table)
			}
			account := newAccount(t, r.config, grants...)
			for name, pool := range pools {
				pool := pool(t, account)
				election := "privileges"
				if missing.op == "create" {
					election = "new, " + what + ", " + name
				}
				lock := newLock(t, pool, election, "a")
				var err error
				switch missing.op {
				case "get":
					err = get(t.Context(), lock)()
				case "create":
					err = lock.Create(t.Context(), record("a"))
				case "update":
					mustSucceed(t, "Get", get(t.Context(), lock))
					err = lock.Update(t.Context(), record("a"))
				}
				number, denied := uint16(1142), fmt.Sprintf("Error 1142 (42000): %s {user} table '%s'", missing.privilege, missing.table)
				switch {
				case server.MariaDB():
					denied = fmt.Sprintf("Error 1142 (42000): %s {user} table `{db}`.`%s`", missing.privilege, missing.table)
				case strings.Contains(missing.mysql, "1143"):
					number = 1143
					fallthrough
				case missing.mysql != "":
					denied = missing.mysql
				}
				denied = strings.ReplaceAll(denied, "{user}", "command denied to user '"+account.User+"'@'...' for")
				r.byServer(t, what, err, number, fmt.Sprintf("mysqllock: %s %q: %s", missing.op, election, denied)+grant)
			}
		})
	}
	t.Run("any", func(t *testing.T) {
		account := newAccount(t, r.config)
		r.each(t, "no privilege", openDSN(t, account, ""), 1044,
			`mysqllock: {op} "e": Error 1044 (42000): Access denied for user '`+account.User+`'@'...' to database '{db}'`+grant)
	})
	mustSucceed(t, "a renewal", update(t.Context(), leader, record("leader")))
}

func testRefusedByReadOnlyServer(t *testing.T, db *sql.DB, r *refusals) {
	const connect = `; this server is read-only, probably a replica or a demoted primary: connect to the primary`
	const readOnly = `with the --read-only option so it cannot execute this statement` + connect
	account := newAccount(t, r.config, ordinary...)
	locks := map[string]*mysqllock.Lock{}
	for name, pool := range pools {
		locks[name] = newLock(t, pool(t, account), "read-only "+name, "a")
		mustSucceed(t, "Create", create(t.Context(), locks[name], record("a")))
	}
	exec(t, db, `SET GLOBAL read_only = 1`)
	writable := func() {
		if _, err := db.ExecContext(context.Background(), `SET GLOBAL read_only = 0`); err != nil {
			t.Error(err)
		}
	}
	defer writable()
	for name, lock := range locks {
		mustSucceed(t, "Get", get(t.Context(), lock))
		err := lock.Update(t.Context(), record("a"))
		if name == "Open" {
			// The driver replaces the server's error, so that the pool looks for the new primary.
			r.refused(t, "a renewal", err, `mysqllock: update "read-only Open": driver: bad connection; `+
				`the connection broke again and again, or the server is read-only: check that it runs and is the primary`)
		} else {
			r.byServer(t, "a renewal", err, 1290, `mysqllock: update "read-only plain DSN": Error 1290 (HY000): The MariaDB server is running `+readOnly+"\n"+
				`mysqllock: update "read-only plain DSN": Error 1290 (HY000): The MySQL server is running `+readOnly)
		}
	}
	writable()
	for name, lock := range locks {
		mustSucceed(t, name+", Get", get(t.Context(), lock))
		mustSucceed(t, name+", Update", update(t.Context(), lock, record("a")))
	}
	session, spoil, _ := openSpoilable(t, r.config, "")
	spoil(`SET SESSION TRANSACTION READ ONLY`)
	r.byServer(t, "a read-only session", newLock(t, session, "new", "a").Create(t.Context(), record("a")), 1792,
		`mysqllock: create "new": Error 1792 (25006): Cannot execute statement in a READ ONLY transaction`+connect+"\n"+
			`mysqllock: create "new": Error 1792 (25006): Cannot execute statement in a READ ONLY transaction.`+connect)
}

func testRefusedConnections(t *testing.T, _ *sql.DB, r *refusals) {
	dialing := func(dial func(context.Context, string, string) (net.Conn, error)) *mysql.Config {
		config := r.config.Clone()
		config.DialFunc = dial
		return config
	}
	const host = "db.internal.example:3306"

	config := r.config.Clone()
	config.DBName += "_nowhere"
	r.each(t, "unknown database", open(t, config), 1049, `mysqllock: {op} "e": Error 1049 (42000): Unknown database '{db}_nowhere'; `+
		`create the database and name it in the DSN (MYSQL_DBNAME) or by WithDatabase`)
	nowhere := mysqllock.WithDatabase(r.config.DBName + "_nowhere")
	if server.MariaDB() {
		r.each(t, "unknown database", open(t, r.config), 1146, `mysqllock: {op} "e": Error 1146 (42S02): Table '{db}_nowhere.election_records' doesn't exist; `+
			`run mysqllock.Migrate, or apply mysqllock.Schema, in the database that the connection or WithDatabase names`, nowhere)
	} else {
		r.each(t, "unknown database", open(t, r.config), 1049, `mysqllock: {op} "e": Error 1049 (42000): Unknown database '{db}_nowhere'; `+
			`create the database and name it in the DSN (MYSQL_DBNAME) or by WithDatabase`, nowhere)
	}
	config.DBName = ""
	r.each(t, "no database", open(t, config), 1046, `mysqllock: {op} "e": Error 1046 (3D000): No database selected; `+
		`create the database and name it in the DSN (MYSQL_DBNAME) or by WithDatabase`)
	config = r.config.Clone()
	config.Passwd = "wrong password"
	r.each(t, "wrong password", open(t, config), 1045, `mysqllock: {op} "e": Error 1045 (28000): Access denied for user '`+config.User+`'@'...' (using password: YES); `+
		`check the user and its password (MYSQL_USER, MYSQL_PASSWORD), and whether the account requires TLS (MYSQL_TLS) or a certificate (MYSQL_TLS_CERT)`)
	config.Passwd = ""
	r.each(t, "no password", open(t, config), 1045, `mysqllock: {op} "e": Error 1045 (28000): Access denied for user '`+config.User+`'@'...' (using password: NO); `+
		`check the user and its password (MYSQL_USER, MYSQL_PASSWORD), and whether the account requires TLS (MYSQL_TLS) or a certificate (MYSQL_TLS_CERT)`)

	config = r.config.Clone()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config.Addr = listener.Addr().String()
	mustSucceed(t, "Close", listener.Close)
	for _, pool := range pools {
		r.each(t, "connection refused", pool(t, config), 0, `mysqllock: {op} "e": dial: connect: connection refused`)
	}
	config.Net, config.Addr = "unix", "/nonexistent/socket"
	r.each(t, "no socket", open(t, config), 0, `mysqllock: {op} "e": dial: connect: no such file or directory`)

	r.each(t, "unknown host", open(t, dialing(func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "db.internal.example", Server: "10.9.8.7:53", IsNotFound: true}}
	})), 0, `mysqllock: {op} "e": looking up the server's address: no such host`)
	resolver := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "udp", Addr: &net.UDPAddr{IP: net.IPv4(10, 9, 8, 7), Port: 53}, Err: syscall.ECONNREFUSED}
	}}
	r.each(t, "no name server", open(t, dialing(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{Resolver: resolver}).DialContext(ctx, network, host)
	})), 0, `mysqllock: {op} "e": looking up the server's address: dial udp ...: connection refused`)

	for _, refusal := range []struct {
		number uint16
		text   string
		want   string
	}{
		{1040, "Too many connections", `Error 1040: Too many connections; raise the server's or the user's connection limit, or make the pools smaller`},
		{1047, "WSREP has not yet prepared node for application use", `Error 1047: WSREP has not yet prepared node for application use; ` +
			`this node is not part of its cluster: connect to one that is`},
		{1053, "Server shutdown in progress", `Error 1053: Server shutdown in progress; the server is shutting down: connect to one that stays`},
		{1099, "Table 'election_records' was locked with a READ lock and can't be updated", `Error 1099: Table 'election_records' was locked with a READ lock and can't be updated; ` +
			`the session has LOCK TABLES: UNLOCK TABLES before it goes back to the pool, or give the lock a pool of its own`},
		{1100, "Table 'r' was not locked with LOCK TABLES", `Error 1100: Table 'r' was not locked with LOCK TABLES; ` +
			`the session has LOCK TABLES: UNLOCK TABLES before it goes back to the pool, or give the lock a pool of its own`},
		{1223, "Can't execute the query because you have a conflicting read lock", `Error 1223: Can't execute the query because you have a conflicting read lock; ` +
			`the session has FLUSH TABLES WITH READ LOCK: UNLOCK TABLES before it goes back to the pool, or give the lock a pool of its own`},
		{1399, "XAER_RMFAIL: The command cannot be executed when global transaction is in the  ACTIVE state", `Error 1399: XAER_RMFAIL: The command cannot be executed when global transaction is in the  ACTIVE state; ` +
			`the session is in an XA transaction: end that before it goes back to the pool, or give the lock a pool of its own`},
		{1927, "Connection was killed", `Error 1927: Connection was killed; somebody killed the session: find out who or what did, if this happens again`},
		{3169, "Session was killed", `Error 3169: Session was killed; somebody killed the session: find out who or what did, if this happens again`},
		{3032, "The server is currently in offline mode", `Error 3032: The server is currently in offline mode; ` +
			`the server is in offline mode, and an administrator put it there: connect to another one, or set offline_mode to OFF`},
		{2003, "Can't connect to MySQL server on '10.9.8.7:15999' (111)", `Error 2003: Can't connect to MySQL server on '...' (111)`},
		{9001, "Max connect timeout reached while reaching db-vip.corp.example:6446 after 10000ms", `Error 9001: Max connect timeout reached while reaching ... after 10000ms`},
		{1129, "Host '10.9.8.7' is blocked because of many connection errors", `Error 1129: Host '...' is blocked because of many connection errors`},
		{1130, "Host '10.9.8.7' is not allowed to connect to this MySQL server", `Error 1130: Host '...' is not allowed to connect to this MySQL server`},
		{1203, "User u already has more than 'max_user_connections' active connections", `Error 1203: User u already has more than 'max_user_connections' active connections; ` +
			`raise the server's or the user's connection limit, or make the pools smaller`},
	} {
		config := r.config.Clone()
		config.Addr = newRefusingServer(t, refusal.number, refusal.text)
		r.each(t, fmt.Sprint("error ", refusal.number), open(t, config), refusal.number, `mysqllock: {op} "e": `+refusal.want)
	}
}

// newRefusingServer is the address of a server that answers each connection with one error.
func newRefusingServer(t *testing.T, number uint16, text string) string {
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
			packet := append([]byte{byte(3 + len(text)), 0, 0, 0, 0xff, byte(number), byte(number >> 8)}, text...)
			_, _ = conn.Write(packet)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return listener.Addr().String()
}

func testRefusedByLocks(t *testing.T, db *sql.DB, r *refusals) {
	const look = `; another session holds the row locked: if this lasts, look for an open transaction on election_records or election_fences`
	leader := newLock(t, db, "locked", "leader", mysqllock.WithOperationTimeout(20*time.Second))
	standby := newLock(t, db, "locked", "a", mysqllock.WithOperationTimeout(20*time.Second))
	mustSucceed(t, "Create", create(t.Context(), leader, record("leader")))
	mustSucceed(t, "Get", get(t.Context(), standby))
	lock := func(table string) *sql.Tx {
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.ExecContext(t.Context(), `SELECT 1 FROM `+table+` WHERE election_name = 'locked' FOR UPDATE`); err != nil {
			t.Fatal(err)
		}
		return tx
	}
	tx := lock("election_records")
	const waited = `mysqllock: update "locked": Error 1205 (HY000): Lock wait timeout exceeded; try restarting transaction` + look
	mustSucceed(t, "a poll", get(t.Context(), standby))
	r.byServer(t, "a renewal", leader.Update(t.Context(), record("leader")), 1205, waited)
	r.byServer(t, "a takeover", standby.Update(t.Context(), record("a")), 1205, waited)
	mustSucceed(t, "Rollback", tx.Rollback)
	tx = lock("election_fences")
	mustSucceed(t, "a renewal", update(t.Context(), leader, record("leader")))
	mustSucceed(t, "Get", get(t.Context(), standby))
	number := uint16(3572)
	if server.MariaDB() {
		number = 1205
	}
	r.byServer(t, "a takeover", standby.Update(t.Context(), record("a")), number,
		`mysqllock: update "locked": a transaction guards the current term, or takes over, until it ends: Error 1205 (HY000): Lock wait timeout exceeded; try restarting transaction`+look+"\n"+
			`mysqllock: update "locked": a transaction guards the current term, or takes over, until it ends: Error 3572 (HY000): `+
			`Statement aborted because lock(s) could not be acquired immediately and NOWAIT is set.`+look)
	mustSucceed(t, "Rollback", tx.Rollback)
	mustSucceed(t, "a takeover", update(t.Context(), standby, record("a")))
}

// testRowsOfSomebodyElse are rows that no Lock writes. An election with such a row must go on, or
// say why not.
func testRowsOfSomebodyElse(t *testing.T, _ *sql.DB, r *refusals) {
	db := openOne(t, r.config, "charset=utf8mb4&sql_mode=%27%27") // lets '0000-00-00' in
	for _, test := range []struct {
		set  string
		want func(*resourcelock.LeaderElectionRecord) bool
		err  string
	}{
		{set: `lease_duration_seconds = -5`, want: func(r *resourcelock.LeaderElectionRecord) bool { return r.LeaseDurationSeconds == -5 }},
		{set: `lease_duration_seconds = -2147483648`},
		{set: `lease_duration_seconds = 2147483647`, want: func(r *resourcelock.LeaderElectionRecord) bool { return r.LeaseDurationSeconds == math.MaxInt32 }},
		{set: `lease_duration_seconds = 0`},
		{set: `version = -1`},
		{set: `version = -9223372036854775808`},
		{set: `version = 0`},
		{set: `version = 9223372036854775806`},
		{set: `version = 9223372036854775807`, err: `mysqllock: get "hostile": the row's version is the largest there is, so that it can't be renewed; delete the row`},
		{set: `leader_name = 'a\n\0"b\''`, want: func(r *resourcelock.LeaderElectionRecord) bool { return r.HolderIdentity == "a\n\x00\"b'" }},
		{set: `leader_name = ' '`},
		{set: `leader_name = 'a'`, want: func(r *resourcelock.LeaderElectionRecord) bool {
			return r.HolderIdentity == "a (another candidate, uid u)"
		}},
		{set: `leader_name = 'a', leader_uid = ''`, want: func(r *resourcelock.LeaderElectionRecord) bool {
			return r.HolderIdentity == "a (another candidate, uid )"
		}},
		{set: `leader_name = ''`},
		{set: `leader_uid = REPEAT('\0', 64)`},
		{set: `acquire_time = '0000-00-00', renew_time = '0000-00-00'`, want: func(r *resourcelock.LeaderElectionRecord) bool {
			return r.AcquireTime.IsZero() && r.RenewTime.IsZero()
		}},
		{set: `acquire_time = '2026-00-00', renew_time = '2026-01-00'`},
		{set: `acquire_time = NULL, renew_time = NULL`},
		{set: `acquire_time = '9999-12-31 23:59:59.999999', renew_time = '1000-01-01'`},
		{set: `last_update = '0000-00-00'`},
		{set: `leader_transitions = -1`, want: func(r *resourcelock.LeaderElectionRecord) bool { return r.LeaderTransitions == -1 }},
		{set: `leader_transitions = -2147483648`},
		{set: `leader_transitions = 2147483647`},
		{set: `strategy = REPEAT('\n', 255), preferred_holder = REPEAT(_utf8mb4 0xf09fa6ad, 255)`, want: func(r *resourcelock.LeaderElectionRecord) bool {
			return r.PreferredHolder == strings.Repeat("\U0001f9ad", 255)
		}},
		{set: `server = REPEAT('"', 255)`},
	} {
		t.Run(test.set, func(t *testing.T) {
			exec(t, db, `DELETE FROM election_records WHERE election_name = 'hostile'`)
			exec(t, db, `INSERT INTO election_records (election_name, leader_name, last_update, leader_uid, strategy, preferred_holder, server, version)`+
				` VALUES ('hostile', 'x', UTC_TIMESTAMP(6), 'u', '', '', '', 1)`)
			result, err := db.ExecContext(t.Context(), `UPDATE election_records SET `+test.set+` WHERE election_name = 'hostile'`)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := result.RowsAffected(); err != nil || n > 1 {
				t.Fatal(n, err)
			}
			lock := newLock(t, db, "hostile", "a")
			got, raw, err := lock.Get(t.Context())
			if test.err != "" {
				r.refused(t, test.set, err, test.err)
				r.refused(t, test.set, lock.Update(t.Context(), record("a")), `mysqllock: update "hostile": no row was observed yet; call Get or Create first`)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if test.want != nil && !test.want(got) {
				t.Errorf("Get returned %+v", got)
			}
			if !json.Valid(raw) {
				t.Errorf("Get's bytes are no JSON: %s", raw)
			}
			next := record("a")
			next.LeaderTransitions = got.LeaderTransitions + 1 // as an elector does
			mustSucceed(t, "a takeover", update(t.Context(), lock, next))
			mustSucceed(t, "a renewal", update(t.Context(), lock, next))
			mustSucceed(t, "Get", get(t.Context(), lock))
			mustSucceed(t, "release", update(t.Context(), lock, recordFor("", 1)))
		})
	}
}

// The driver's and the server's texts may have anything in them.
func TestErrorIsOneLineOfText(t *testing.T) {
	t.Parallel()
	config := server.Config()
	config.Addr = newRefusingServer(t, 1130, "Host '10.9.8.7' is not allowed\nE1124 leader elected\x1b[2J\u2028\xff")
	_, err := mysqllock.GetElection(t.Context(), open(t, config), "e")
	want := `mysqllock: get election "e": Error 1130: Host '...' is not allowed E1124 leader elected [2J ` + "\ufffd"
	if err == nil || err.Error() != want {
		t.Errorf("got  %q\nwant %q", err, want)
	}
}

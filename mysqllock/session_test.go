package mysqllock_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// openOne is a user's own pool with one connection, so that what a test sets in
// its session stays set.
func openOne(t testing.TB, config *mysql.Config, parameters string) *sql.DB {
	t.Helper()
	db := openDSN(t, config, parameters)
	db.SetMaxOpenConns(1)
	return db
}

// spoilable makes sessions like those of openDSN, and, once spoilt, with a SET
// more.
type spoilable struct {
	driver.Connector
	set atomic.Pointer[string]
}

func (c *spoilable) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if set := c.set.Load(); set != nil && err == nil {
		_, err = conn.(driver.ExecerContext).ExecContext(ctx, *set, nil)
	}
	return conn, err
}

// openSpoilable is openOne, and how to make this session and all that follow
// unfit, and fit again.
func openSpoilable(t testing.TB, config *mysql.Config, parameters string) (db *sql.DB, spoil func(set string), heal func(set string)) {
	t.Helper()
	c := &spoilable{Connector: connectorOf(t, config, parameters)}
	db = sql.OpenDB(c)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	return db, func(set string) {
			t.Helper()
			exec(t, db, set)
			c.set.Store(&set)
		}, func(set string) {
			t.Helper()
			c.set.Store(nil)
			exec(t, db, set)
		}
}

// snapshot is what another session sees in the two tables.
func snapshot(t testing.TB, db *sql.DB) []string {
	t.Helper()
	var all []string
	for _, query := range []string{
		`SELECT CONCAT_WS('|', HEX(election_name), HEX(leader_name), last_update, leader_uid, lease_duration_seconds,` +
			` acquire_time, renew_time, leader_transitions, strategy, HEX(preferred_holder), server, version) FROM election_records ORDER BY 1`,
		`SELECT CONCAT_WS('|', HEX(election_name), fencing_token, leader_uid) FROM election_fences ORDER BY 1`,
	} {
		rows, err := db.QueryContext(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rows.Close() }() // rows.Err tells
		for rows.Next() {
			var row string
			if err := rows.Scan(&row); err != nil {
				t.Fatal(err)
			}
			all = append(all, row)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// mustRefuse makes a call that must fail with words about the session, and must
// write nothing that another session sees.
func mustRefuse(t testing.TB, admin *sql.DB, what, why string, call func() error) {
	t.Helper()
	before := snapshot(t, admin)
	err := call()
	if err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("%s: error %v, want one that says: %s", what, err, why)
	}
	if apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
		t.Errorf("%s: error %v, which the elector takes for the election's state", what, err)
	}
	if diff := cmp.Diff(before, snapshot(t, admin)); diff != "" {
		t.Errorf("%s wrote:\n%s", what, diff)
	}
}

// With autocommit off every write is "done", and gone when the session ends.
func TestASessionWithAutocommitOffIsRefusedAndWritesNothing(t *testing.T) {
	for _, parameters := range []string{"", "interpolateParams=true", "clientFoundRows=true"} {
		t.Run(parameters, func(t *testing.T) {
			admin, config := newTables(t)
			t.Run("by the DSN", func(t *testing.T) {
				lock := newLock(t, openDSN(t, config, parameters+"&autocommit=0"), "new", "a")
				want := `mysqllock: get "new": the session has autocommit off, so that no write would ever be committed; ` +
					`remove autocommit=0 from the DSN, the server's configuration or init_connect`
				mustRefuse(t, admin, "Get", want, get(t.Context(), lock))
				mustRefuse(t, admin, "Create", "autocommit", create(t.Context(), lock, record("a")))
				mustRefuse(t, admin, "Create of a released election", "autocommit", create(t.Context(), lock, recordFor("", 1)))
			})
			t.Run("by SET, before a takeover", func(t *testing.T) {
				db, spoil, heal := openSpoilable(t, config, parameters)
				leader, standby := newLock(t, admin, "takeover", "a"), newLock(t, db, "takeover", "b")
				mustSucceed(t, "Create", create(t.Context(), leader, record("a")))
				mustSucceed(t, "Get", get(t.Context(), standby))
				spoil(`SET SESSION autocommit = 0`)
				mustRefuse(t, admin, "Get", "autocommit", get(t.Context(), standby))
				mustRefuse(t, admin, "Update", "autocommit", update(t.Context(), standby, record("b")))
				// What the refused sessions did must hold nobody up.
				third := newLock(t, admin, "takeover", "c")
				mustSucceed(t, "a renewal", update(t.Context(), leader, record("a")))
				mustSucceed(t, "Get", get(t.Context(), third))
				mustSucceed(t, "a takeover", update(t.Context(), third, record("c")))
				heal(`SET SESSION autocommit = 1`)
				mustSucceed(t, "Get", get(t.Context(), standby))
				mustSucceed(t, "Update", update(t.Context(), standby, record("b")))
			})
			t.Run("by SET, in a term", func(t *testing.T) {
				db, spoil, heal := openSpoilable(t, config, parameters)
				lock := newLock(t, db, "term", "a")
				mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
				spoil(`SET SESSION autocommit = 0`)
				mustRefuse(t, admin, "renewal", "autocommit", update(t.Context(), lock, record("a")))
				mustRefuse(t, admin, "release", "autocommit", update(t.Context(), lock, recordFor("", 1)))
				heal(`SET SESSION autocommit = 1`)
				mustSucceed(t, "Get", get(t.Context(), lock))
				mustSucceed(t, "Update", update(t.Context(), lock, record("a")))
			})
		})
	}
}

// In another character set a name is another one: Get would find nothing, and
// Create succeed.
func TestANameBeyondASCIIIsRefusedInASessionWithAnotherCharacterSet(t *testing.T) {
	admin, config := newTables(t)
	for _, name := range []struct{ election, identity string }{{"élection", "a"}, {"e", "é"}, {"日本", "日本"}, {"🦭", "a"}} {
		t.Run(name.election+" "+name.identity, func(t *testing.T) {
			t.Run("by the DSN", func(t *testing.T) {
				lock := newLock(t, openDSN(t, config, "charset=latin1"), name.election, name.identity)
				want := `mysqllock: get "` + name.election + `": the session's character set is latin1, in which the election's name`
				mustRefuse(t, admin, "Get", want, get(t.Context(), lock))
				mustRefuse(t, admin, "Create", "character set", create(t.Context(), lock, record(name.identity)))
				mustRefuse(t, admin, "Create of a released election", "character set", create(t.Context(), lock, recordFor("", 1)))
			})
			for _, set := range []string{
				"NAMES latin1", "NAMES utf8", "NAMES gbk", "NAMES binary", "CHARACTER SET latin1",
				"character_set_connection = latin1", "character_set_client = latin1", "character_set_results = latin1",
			} {
				t.Run("by SET "+set, func(t *testing.T) {
					db, spoil, heal := openSpoilable(t, config, "interpolateParams=true")
					defer exec(t, admin, `DELETE FROM election_records`)
					leader := newLock(t, db, name.election, name.identity)
					mustSucceed(t, "Create", create(t.Context(), leader, record(name.identity)))
					standby := newLock(t, db, name.election, name.identity+" 2")
					mustSucceed(t, "Get", get(t.Context(), standby))

					spoil(`SET ` + set)
					mustRefuse(t, admin, "Get", "character set", get(t.Context(), standby))
					if set != "character_set_results = latin1" { // in which a write reads nothing
						mustRefuse(t, admin, "renewal", "character set", update(t.Context(), leader, record(name.identity)))
						mustRefuse(t, admin, "takeover", "character set", update(t.Context(), standby, record(name.identity+" 2")))
						mustRefuse(t, admin, "release", "character set", update(t.Context(), leader, recordFor("", 1)))
					}
					heal(`SET NAMES utf8mb4`)
					mustSucceed(t, "Get", get(t.Context(), leader))
					mustSucceed(t, "Update", update(t.Context(), leader, record(name.identity)))
				})
			}
		})
	}
}

// connectorOf makes sessions like those of openDSN.
func connectorOf(t testing.TB, config *mysql.Config, parameters string) driver.Connector {
	t.Helper()
	config, err := mysql.ParseDSN(fmt.Sprintf("%s:%s@tcp(%s)/%s?%s", config.User, config.Passwd, config.Addr, config.DBName, parameters))
	if err != nil {
		t.Fatal(err)
	}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	return connector
}

// oddOneOut makes the sessions of a pool; one of them is unfit.
type oddOneOut struct {
	driver.Connector // of good sessions
	unfit            driver.Connector
	odd              int64
	made             atomic.Int64
}

func (c *oddOneOut) Connect(ctx context.Context) (driver.Conn, error) {
	if c.made.Add(1) == c.odd {
		return c.unfit.Connect(ctx)
	}
	return c.Connector.Connect(ctx)
}

// Sessions of one pool may differ, as after a SET by another user of the pool:
// whichever of its statements an operation would have sent to the unfit one, it
// is done in another.
func TestAnOperationIsDoneInAFitSessionWhicheverIsUnfit(t *testing.T) {
	admin, config := newTables(t)
	for parameters, election := range map[string]string{"autocommit=0": "e", "charset=latin1": "é"} {
		t.Run(parameters, func(t *testing.T) {
			good, unfit := connectorOf(t, config, ""), connectorOf(t, config, parameters)
			met := 0
			for n := range int64(12) {
				election := fmt.Sprint(election, n)
				sessions := &oddOneOut{Connector: good, unfit: unfit, odd: n + 1}
				pool := sql.OpenDB(sessions)
				pool.SetMaxIdleConns(-1) // a session for each operation
				lock, other := newLock(t, pool, election, "a"), newLock(t, admin, election, "b")
				for _, step := range []struct {
					call   func() error
					holder string
				}{
					{create(t.Context(), lock, record("a")), "a"},
					{update(t.Context(), lock, record("a")), "a"},
					{func() error {
						return errors.Join(get(t.Context(), other)(), update(t.Context(), other, record("b"))())
					}, "b"},
					{get(t.Context(), lock), "b"},
					{update(t.Context(), lock, record("a")), "a"},
					{update(t.Context(), lock, record("a")), "a"},
					{update(t.Context(), lock, recordFor("", 1)), ""},
				} {
					mustSucceed(t, fmt.Sprint("with session ", n, " unfit"), step.call)
					if holder := holderOf(t, admin, election); holder != step.holder {
						t.Fatalf("session %d: done, but it is held by %q, not by %q", n, holder, step.holder)
					}
				}
				if sessions.made.Load() >= sessions.odd {
					met++
				}
				mustSucceed(t, "Close", pool.Close)
			}
			if met < 6 {
				t.Errorf("only %d sessions were met", met)
			}
		})
	}
}

// liveThrough is the life of an election of ASCII names: each operation, each outcome.
func liveThrough(t testing.TB, a, b *mysqllock.Lock) (outcomes []string) {
	t.Helper()
	outcome := func(what string, err error) {
		switch {
		case err == nil:
			what += ": ok"
		case apierrors.IsNotFound(err):
			what += ": not found"
		case apierrors.IsAlreadyExists(err):
			what += ": already exists"
		case apierrors.IsConflict(err):
			what += ": conflict"
		default:
			// Versions and uids differ from run to run; nothing else may.
			what += ": " + strings.NewReplacer(a.Identity(), "<a>", b.Identity(), "<b>").Replace(err.Error())
		}
		outcomes = append(outcomes, what)
	}
	seen := func(what string, lock *mysqllock.Lock) {
		r, _, err := lock.Get(t.Context())
		if err == nil {
			what += fmt.Sprintf(" sees %q", strings.NewReplacer(a.Identity(), "<a>", b.Identity(), "<b>").Replace(r.HolderIdentity))
		}
		outcome(what, err)
	}
	ra, rb := record(a.Identity()), record(b.Identity())
	seen("a", a)
	outcome("a creates", a.Create(t.Context(), ra))
	outcome("b creates", b.Create(t.Context(), rb))
	outcome("a renews", a.Update(t.Context(), ra))
	outcome("a renews with the same values", a.Update(t.Context(), ra))
	outcome("b updates blindly", b.Update(t.Context(), rb))
	seen("b", b)
	outcome("a renews", a.Update(t.Context(), ra))
	outcome("b takes over too late", b.Update(t.Context(), rb))
	seen("b", b)
	outcome("b takes over", b.Update(t.Context(), rb))
	outcome("a renews too late", a.Update(t.Context(), ra))
	outcome("a releases too late", a.Update(t.Context(), recordFor("", 1)))
	seen("a", a)
	outcome("b renews", b.Update(t.Context(), rb))
	outcome("b releases", b.Update(t.Context(), recordFor("", 1)))
	seen("a", a)
	outcome("a takes over", a.Update(t.Context(), ra))
	outcome("a releases", a.Update(t.Context(), recordFor("", 1)))
	seen("b", b)
	return outcomes
}

// lifeOfAnElection are the outcomes of liveThrough.
var lifeOfAnElection = []string{
	"a: not found",
	"a creates: ok",
	"b creates: already exists",
	"a renews: ok",
	"a renews with the same values: ok",
	`b updates blindly: mysqllock: update "e": no row was observed yet; call Get or Create first`,
	`b sees "<a>": ok`,
	"a renews: ok",
	"b takes over too late: conflict",
	`b sees "<a>": ok`,
	"b takes over: ok",
	"a renews too late: conflict",
	`a releases too late: mysqllock: update "e": not released, as this candidate does not hold the election: it is held by "<b>"`,
	`a sees "<b>": ok`,
	"b renews: ok",
	"b releases: ok",
	`a sees "": ok`,
	"a takes over: ok",
	"a releases: ok",
	`b sees "": ok`,
}

func TestAnElectionGoesTheSameWayInEverySessionThatAUserMayHave(t *testing.T) {
	for _, parameters := range []string{
		"",
		"interpolateParams=true",
		"clientFoundRows=true",
		"clientFoundRows=true&interpolateParams=true",
		"parseTime=true&loc=Local&time_zone=%27-11%3A00%27",
		"charset=latin1", "charset=gbk", "charset=utf8mb3", "charset=ascii", "charset=binary",
		"charset=utf8mb4&collation=utf8mb4_general_ci",
		"character_set_results=NULL",
		"sql_mode=%27%27",
		"sql_mode=%27ANSI_QUOTES%2CNO_BACKSLASH_ESCAPES%2CPIPES_AS_CONCAT%2CIGNORE_SPACE%2CHIGH_NOT_PRECEDENCE%27&interpolateParams=true",
		"sql_mode=%27ONLY_FULL_GROUP_BY%2CSTRICT_ALL_TABLES%2CNO_ZERO_DATE%2CNO_ZERO_IN_DATE%2CERROR_FOR_DIVISION_BY_ZERO%27",
		"sql_mode=%27ORACLE%27",
		"sql_mode=%27EMPTY_STRING_IS_NULL%27",
		"sql_mode=%27PAD_CHAR_TO_FULL_LENGTH%27",
		"sql_safe_updates=1",
		"sql_auto_is_null=1",
		"transaction_isolation=%27SERIALIZABLE%27", "tx_isolation=%27SERIALIZABLE%27",
		"multiStatements=true&columnsWithAlias=true&compress=true",
	} {
		t.Run(parameters, func(t *testing.T) {
			t.Parallel()
			_, config := newTables(t)
			pool := openDSN(t, config, parameters)
			if err := pool.PingContext(t.Context()); err != nil {
				switch {
				case strings.Contains(parameters, "tx_isolation"), strings.Contains(parameters, "transaction_isolation"),
					strings.Contains(parameters, "ORACLE"), strings.Contains(parameters, "EMPTY_STRING"):
					return // only one of MySQL and MariaDB knows it
				}
				t.Fatal(err)
			}
			got := liveThrough(t, newLock(t, pool, "e", "a-candidate"), newLock(t, pool, "e", "b-candidate"))
			if diff := cmp.Diff(lifeOfAnElection, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFurtherNamesOfARecordAreNeverGarbledByASessionsCharacterSet(t *testing.T) {
	admin, config := newTables(t)
	const far = "日本 é"
	for _, parameters := range []string{"charset=latin1", "charset=latin1&interpolateParams=true"} {
		t.Run(parameters, func(t *testing.T) {
			defer exec(t, admin, `DELETE FROM election_records`)
			lock := newLock(t, openDSN(t, config, parameters), "e", "a")
			odd := record("a")
			odd.PreferredHolder = far
			mustRefuse(t, admin, "Create", "character set is latin1", create(t.Context(), lock, odd))
			mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
			mustRefuse(t, admin, "renewal", "character set is latin1", update(t.Context(), lock, odd))
			odd = record("a")
			odd.Strategy = far
			mustRefuse(t, admin, "renewal", "character set is latin1", update(t.Context(), lock, odd))
			mustSucceed(t, "Update", update(t.Context(), lock, record("a")))

			// Written by somebody with utf8mb4.
			other := newLock(t, admin, "e", far)
			odd = record(far)
			odd.PreferredHolder = far
			mustSucceed(t, "Get", get(t.Context(), other))
			mustSucceed(t, "Update", update(t.Context(), other, odd))
			r, _, err := lock.Get(t.Context())
			if err == nil && (r.HolderIdentity != far || r.PreferredHolder != far) {
				t.Errorf("Get: held by %q, prefers %q; want %q or an error", r.HolderIdentity, r.PreferredHolder, far)
			}
		})
	}
}

func TestAPoolWithoutInterpolationLeaksNoPreparedStatement(t *testing.T) {
	admin, config := newTables(t)
	prepared := func() (n int) {
		var name string
		if err := admin.QueryRowContext(t.Context(), `SHOW GLOBAL STATUS LIKE 'Prepared_stmt_count'`).Scan(&name, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	db := openDSN(t, config, "")
	lock := newLock(t, db, "e", "a")
	mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
	before := prepared()
	for range 100 {
		mustSucceed(t, "Get", get(t.Context(), lock))
		mustSucceed(t, "Update", update(t.Context(), lock, record("a")))
	}
	// The server closes the last ones after it was told, which nobody waits for.
	eventually(t, 20*time.Second, "the server has no more prepared statements than before", func() bool { return prepared() <= before })
}

func TestTheTablesMayBeInAnotherDatabaseWhateverItsName(t *testing.T) {
	elsewhere := newConfig(t)
	admin := open(t, elsewhere)
	for _, suffix := range []string{"", "-dash", ".dot", "`tick", "``", "日本é", `'"\`, "?", "#%", " -- /*", "{session}", "{text}"} {
		name := elsewhere.DBName + "_" + suffix
		if suffix != "" {
			name += "x" // as servers refuse some characters at the end
		}
		t.Run(name, func(t *testing.T) {
			quoted := "`" + strings.ReplaceAll(name, "`", "``") + "`"
			exec(t, admin, `CREATE DATABASE `+quoted)
			t.Cleanup(func() {
				if _, err := admin.ExecContext(context.Background(), `DROP DATABASE `+quoted); err != nil {
					t.Error(err)
				}
			})
			none := elsewhere.Clone()
			none.DBName = ""
			for i, pool := range []*sql.DB{
				admin, open(t, none), openDSN(t, elsewhere, ""), openDSN(t, none, "interpolateParams=true&sql_mode=%27ANSI_QUOTES%2CNO_BACKSLASH_ESCAPES%27"),
			} {
				with := mysqllock.WithDatabase(name)
				mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), pool, with) })
				got := liveThrough(t, newLock(t, pool, "e", "a-candidate", with), newLock(t, pool, "e", "b-candidate", with))
				if diff := cmp.Diff(lifeOfAnElection, got); diff != "" {
					t.Errorf("pool %d: %s", i, diff)
				}
				for _, table := range []string{"election_records", "election_fences"} {
					result, err := admin.ExecContext(t.Context(), `DELETE FROM `+quoted+`.`+table)
					if err != nil {
						t.Fatal(err)
					}
					if n, err := result.RowsAffected(); n != 1 || err != nil {
						t.Errorf("pool %d: %d rows in %s of the database, %v; want 1", i, n, table, err)
					}
				}
			}
		})
	}
	if tables := tablesOf(t, admin, elsewhere.DBName); len(tables) > 0 {
		t.Errorf("the connection's own database has got tables: %q", tables)
	}
}

func tablesOf(t testing.TB, db *sql.DB, database string) (tables []string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = ?`, database)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var table string
		if err := rows.Scan(&table); err != nil {
			t.Fatal(err)
		}
		tables = append(tables, table)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(tables)
	return tables
}

// A database beyond ASCII is another one in another character set, and an
// election in it another election.
func TestADatabaseBeyondASCIIIsRefusedInASessionWithAnotherCharacterSet(t *testing.T) {
	config := newConfig(t)
	admin := open(t, config)
	// What the bytes of the first one's name are in latin1.
	for _, suffix := range []string{"é", "Ã©"} {
		quoted := "`" + config.DBName + suffix + "`"
		exec(t, admin, `CREATE DATABASE `+quoted)
		t.Cleanup(func() {
			if _, err := admin.ExecContext(context.Background(), `DROP DATABASE `+quoted); err != nil {
				t.Error(err)
			}
		})
		mustSucceed(t, "Migrate", func() error {
			return mysqllock.Migrate(t.Context(), admin, mysqllock.WithDatabase(config.DBName+suffix))
		})
	}
	with := mysqllock.WithDatabase(config.DBName + "é")
	good := newLock(t, admin, "e", "a", with)
	mustSucceed(t, "Create", create(t.Context(), good, record("a")))
	lock := newLock(t, openDSN(t, config, "charset=latin1"), "e", "b", with)
	err := get(t.Context(), lock)()
	if err == nil || apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "character set") {
		t.Errorf("Get: %v, want a refusal because of the character set", err)
	}
	if err := lock.Create(t.Context(), record("b")); err == nil {
		t.Errorf("there are two leaders in one election")
	}
}

func TestTimesInTheTablesAreUTCWhateverTheSessionsTimeZone(t *testing.T) {
	admin, config := newTables(t)
	config = config.Clone()
	config.ParseTime, config.Loc = true, time.FixedZone("somewhere", -7*3600)
	config.Params = map[string]string{"time_zone": "'+05:30'"}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	byConfig := sql.OpenDB(connector)
	t.Cleanup(func() { _ = byConfig.Close() })
	for name, db := range map[string]*sql.DB{
		"Open":                 open(t, config),
		"a connector":          byConfig,
		"a DSN":                openDSN(t, config, "parseTime=true&loc=Local&time_zone=%27%2B05%3A30%27"),
		"a DSN, interpolating": openDSN(t, config, "parseTime=true&loc=Local&interpolateParams=true&time_zone=%27%2B05%3A30%27"),
	} {
		t.Run(name, func(t *testing.T) {
			var zone string
			if err := db.QueryRowContext(t.Context(), `SELECT @@session.time_zone`).Scan(&zone); err != nil || zone != "+05:30" {
				t.Fatalf("time zone %q, %v", zone, err)
			}
			r := record("a")
			// In the hour that a zone with summer time has twice or not at all.
			r.AcquireTime = metav1.NewTime(time.Date(2026, 3, 29, 2, 30, 0, 123456000, time.FixedZone("elsewhere", 9*3600)))
			released := r
			released.HolderIdentity = ""
			held, free := newLock(t, db, name+", held", "a"), newLock(t, db, name+", free", "a")
			for _, step := range []struct {
				what string
				lock *mysqllock.Lock
				call func() error
			}{
				{"Create", held, create(t.Context(), held, r)},
				{"renewal", held, update(t.Context(), held, r)},
				{"release", held, update(t.Context(), held, released)},
				{"Create of a released election", free, create(t.Context(), free, released)},
				{"takeover", free, update(t.Context(), free, r)},
			} {
				exec(t, admin, `UPDATE election_records SET last_update = '2000-01-01', acquire_time = NULL`)
				mustSucceed(t, step.what, step.call)
				var age float64
				var acquired string
				err := admin.QueryRowContext(t.Context(), `SELECT TIMESTAMPDIFF(MICROSECOND, last_update, UTC_TIMESTAMP(6)) / 1e6, CAST(acquire_time AS CHAR)`+
					` FROM election_records WHERE CONCAT('election_records/', election_name) = ?`, step.lock.Describe()).Scan(&age, &acquired)
				if err != nil {
					t.Fatal(err)
				}
				if age < 0 || age > 20 {
					t.Errorf("%s: last_update is %v s ago", step.what, age)
				}
				if want := "2026-03-28 17:30:00.123456"; acquired != want {
					t.Errorf("%s: acquire_time is %s, want %s", step.what, acquired, want)
				}
				got, _, err := step.lock.Get(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if !got.AcquireTime.Equal(&r.AcquireTime) || !got.RenewTime.Equal(&r.RenewTime) {
					t.Errorf("%s: Get returns %v and %v, want %v and %v", step.what, got.AcquireTime, got.RenewTime, r.AcquireTime, r.RenewTime)
				}
			}
		})
	}
}

package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// A session of Open's pool in which somebody said USE before the lock's first operation leads the
// lock nowhere else.
func TestDatabaseOfALockIsThatOfItsConfigWhateverItsFirstSessionUses(t *testing.T) {
	_, config := newTables(t)
	other := otherDatabase(t)
	db := open(t, config)
	db.SetMaxOpenConns(1)
	exec(t, db, "USE `"+other+"`")
	lock := newLock(t, db, "e", "a")
	mustSucceed(t, "Create", create(t.Context(), lock, record("a")))
	admin := open(t, config)
	if n := versionOf(t, admin, "e"); n == 0 {
		t.Error("no row in the config's database")
	}
}

// mustGuard has a leader's work committed, and a stale leader's refused, through Transact and
// through Guard. The leader is another candidate afterwards.
func mustGuard(t *testing.T, db, work *sql.DB, election string, opts ...mysqllock.Option) {
	t.Helper()
	leader, successor := newLock(t, db, election, "a", opts...), newLock(t, db, election, "b", opts...)
	takeOver(t, leader)
	guarded := func() error {
		tx, err := work.BeginTx(t.Context(), nil)
		if err != nil {
			return err
		}
		if err := errors.Join(leader.Guard(t.Context(), tx), insert(t.Context(), tx, "guarded")); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	}
	transacted := func() error { return leader.Transact(t.Context(), work, nil, inserting("transacted")) }
	before := ledger(t, work)
	mustSucceed(t, "Transact", transacted)
	mustSucceed(t, "Guard", guarded)
	takeOver(t, successor)
	for what, call := range map[string]func() error{"Transact": transacted, "Guard": guarded} {
		if err := call(); !errors.Is(err, mysqllock.ErrNotLeader) {
			t.Errorf("a stale leader's %s: error %v, want ErrNotLeader", what, err)
		}
	}
	wantLedger(t, work, append(before, "transacted", "guarded")...)
}

// The name is a part of the statements from the first poll on, in sessions of any character set,
// and nobody has checked it.
func TestDatabaseOfTheConnectionMayHaveAnyName(t *testing.T) {
	config := newConfig(t)
	admin := open(t, config)
	for _, suffix := range []string{"-dash", "`tick", "日本é", "{text}", "?", " -- /*"} {
		for _, charset := range []string{"utf8mb4", "latin1", "gbk"} {
			name := config.DBName + "_" + suffix + "x"
			t.Run(suffix+" in "+charset, func(t *testing.T) {
				quoted := "`" + strings.ReplaceAll(name, "`", "``") + "`"
				exec(t, admin, `CREATE DATABASE `+quoted)
				t.Cleanup(func() {
					if _, err := admin.ExecContext(context.Background(), `DROP DATABASE `+quoted); err != nil {
						t.Error(err)
					}
				})
				own := config.Clone()
				own.DBName = name
				mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), open(t, own)) })
				newLedger(t, escaped(own))
				pool := openDSN(t, escaped(own), "charset="+charset)
				mustGuard(t, pool, pool, "e")
				lock := newLock(t, pool, "e", "c")
				takeOver(t, lock)
				mustSucceed(t, "renewal", update(t.Context(), lock, record("c")))
				mustSucceed(t, "release", update(t.Context(), lock, recordFor("", 1)))
			})
		}
	}
}

// escaped is a configuration whose database's name can be put into a DSN.
func escaped(config *mysql.Config) *mysql.Config {
	dsn := config.FormatDSN()
	config = config.Clone()
	from := strings.LastIndexByte(dsn, '/') + 1
	config.DBName, _, _ = strings.Cut(dsn[from:], "?")
	return config
}

func TestDatabaseOfTheTablesMayBeAnotherWhateverItsName(t *testing.T) {
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

// A non-ASCII database name is another one in another character set, and an election in it another
// election.
func TestDatabaseThatIsNonASCIIIsRefusedInASessionWithAnotherCharacterSet(t *testing.T) {
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

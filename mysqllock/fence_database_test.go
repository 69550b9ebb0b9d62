package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// mustGuard has a leader's work committed, and a stale leader's refused, through
// Transact and through Guard. The leader is another candidate afterwards.
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

// The work of a leader is often in an application's own database, on the same
// server. There may even be tables of the lock's names in it, as somebody
// followed the advice of an error.
func TestTransactAndGuardFindTheTablesFromAnotherDefaultDatabase(t *testing.T) {
	db, config := newTables(t)
	restricted := newUser(t, config, "SELECT ON election_fences", "UPDATE ON election_fences")
	for _, migrated := range []bool{false, true} {
		t.Run(fmt.Sprintf("tables in the other one, too: %t", migrated), func(t *testing.T) {
			elsewhere := newConfig(t)
			admin := open(t, elsewhere)
			newLedger(t, elsewhere)
			exec(t, admin, `GRANT ALL ON `+elsewhere.DBName+`.* TO '`+restricted.User+`'@'%'`)
			if migrated {
				mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), admin) })
			}
			narrow := restricted.Clone()
			narrow.DBName = elsewhere.DBName
			for _, c := range []struct {
				name string
				work func(testing.TB) *sql.DB
			}{
				{"a pool of one's own", func(t testing.TB) *sql.DB { t.Helper(); return openDSN(t, elsewhere, "") }},
				{"a pool of Open", func(t testing.TB) *sql.DB { t.Helper(); return open(t, elsewhere) }},
				{"latin1", func(t testing.TB) *sql.DB { t.Helper(); return openDSN(t, elsewhere, "charset=latin1") }},
				{"another user", func(t testing.TB) *sql.DB { t.Helper(); return open(t, narrow) }},
				{"after USE", func(t testing.TB) *sql.DB {
					t.Helper()
					work := openOne(t, config, "")
					exec(t, work, `USE `+elsewhere.DBName)
					return work
				}},
			} {
				t.Run(c.name, func(t *testing.T) {
					for _, election := range []string{"e", "élection"} {
						election = fmt.Sprintf("%s of %s, %t", election, c.name, migrated)
						mustGuard(t, db, c.work(t), election)
						mustGuard(t, open(t, elsewhere), c.work(t), election+" by option", mysqllock.WithDatabase(config.DBName))
					}
				})
			}
		})
	}
}

// The name is a part of the statements from the first poll on, in sessions of any
// character set, and nobody has checked it.
func TestTheDefaultDatabaseMayHaveAnyName(t *testing.T) {
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

// A token is held, but there is no row that it could be compared with: nothing
// says that leadership has passed.
func TestAMissingFenceRowIsNoLossOfLeadership(t *testing.T) {
	db, config := newTables(t)
	work := newLedger(t, config)
	leader := newLock(t, db, "e", "a")
	takeOver(t, leader)
	exec(t, db, `DELETE FROM election_fences`)
	tx, err := work.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Guard":    leader.Guard(t.Context(), tx),
		"Transact": leader.Transact(t.Context(), work, nil, inserting("unguarded")),
	} {
		if err == nil || errors.Is(err, mysqllock.ErrNotLeader) || !strings.Contains(err.Error(), "election_fences") {
			t.Errorf("%s: error %v, want one about election_fences that is not ErrNotLeader", what, err)
		}
	}
	mustSucceed(t, "Rollback", tx.Rollback)
	wantLedger(t, work)
}

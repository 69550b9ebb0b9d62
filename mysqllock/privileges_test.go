package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// privileged are all that an account can do with the package, and which of the README's privileges
// each of it needs.
var privileged = []struct {
	name  string
	finds int
	needs []string
	do    func(ctx context.Context, lock *mysqllock.Lock, db *sql.DB, election string) error
}{
	{"Get", another, []string{"SELECT records"}, func(ctx context.Context, lock *mysqllock.Lock, _ *sql.DB, _ string) error {
		_, _, err := lock.Get(ctx)
		return err
	}},
	{
		"Create", none,
		[]string{"SELECT records", "INSERT records", "UPDATE records", "SELECT fences", "INSERT fences", "UPDATE fences"},
		func(ctx context.Context, lock *mysqllock.Lock, _ *sql.DB, _ string) error {
			return lock.Create(ctx, record("a"))
		},
	},
	{
		"takeover", another,
		[]string{"SELECT records", "UPDATE records", "SELECT fences", "UPDATE fences"},
		func(ctx context.Context, lock *mysqllock.Lock, _ *sql.DB, _ string) error {
			return tryTakeOver(ctx, lock)
		},
	},
	{"renewal", own, []string{"SELECT records", "UPDATE records"}, func(ctx context.Context, lock *mysqllock.Lock, _ *sql.DB, _ string) error {
		return lock.Update(ctx, record("a"))
	}},
	{"release", own, []string{"SELECT records", "UPDATE records"}, func(ctx context.Context, lock *mysqllock.Lock, _ *sql.DB, _ string) error {
		return lock.Update(ctx, recordFor("", 1))
	}},
	{"Transact", own, []string{"SELECT fences"}, func(ctx context.Context, lock *mysqllock.Lock, db *sql.DB, _ string) error {
		return lock.Transact(ctx, db, nil, nop)
	}},
	{"Guard", own, []string{"SELECT fences"}, func(ctx context.Context, lock *mysqllock.Lock, db *sql.DB, _ string) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		return lock.Guard(ctx, tx)
	}},
	{"GetElection", another, []string{"SELECT records", "SELECT fences"}, func(ctx context.Context, _ *mysqllock.Lock, db *sql.DB, election string) error {
		_, err := mysqllock.GetElection(ctx, db, election)
		return err
	}},
	{"ListElections", another, []string{"SELECT records", "SELECT fences"}, func(ctx context.Context, _ *mysqllock.Lock, db *sql.DB, _ string) error {
		_, err := mysqllock.ListElections(ctx, db)
		return err
	}},
	{"Migrate", another, nil, func(ctx context.Context, _ *mysqllock.Lock, db *sql.DB, _ string) error {
		return mysqllock.Migrate(ctx, db)
	}},
}

func TestPrivilegesOfTheREADMEAreEnoughAndEachIsNeededWhereItSays(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	account := newAccount(t, config, ordinary...)
	user := "'" + account.User + "'@'%'"
	var all []string
	for line := range strings.Lines(table(t, open(t, account), `SHOW GRANTS`)) {
		grant, _, _ := strings.Cut(line, " TO ")
		all = append(all, strings.NewReplacer("`", "", config.DBName, "{db}").Replace(grant))
	}
	want := []string{"GRANT USAGE ON *.*", "GRANT SELECT, INSERT, UPDATE ON {db}.election_fences", "GRANT SELECT, INSERT, UPDATE ON {db}.election_records"}
	slices.Sort(all[1:])
	if diff := cmp.Diff(want, all); diff != "" {
		t.Fatalf("the account has other privileges than the README's: %s", diff)
	}
	for _, missing := range []string{"none", "SELECT records", "INSERT records", "UPDATE records", "SELECT fences", "INSERT fences", "UPDATE fences"} {
		privilege, suffix, _ := strings.Cut(missing, " ")
		for _, operation := range privileged {
			t.Run("without "+missing+", "+operation.name, func(t *testing.T) {
				election := missing + ", " + operation.name
				pool := open(t, account)
				lock := newLock(t, pool, election, "a", unhurried)
				switch operation.finds {
				case another:
					hold(t, admin, election, "b")
				case own:
					takeOver(t, lock)
				}
				if missing != "none" {
					on := fmt.Sprintf("%s ON `%s`.election_%s", privilege, config.DBName, suffix)
					exec(t, admin, `REVOKE `+on+` FROM `+user)
					defer exec(t, admin, `GRANT `+on+` TO `+user)
				}
				err := operation.do(t.Context(), lock, pool, election)
				if !slices.Contains(operation.needs, missing) {
					if err != nil {
						t.Errorf("needs more than it should: %v", err)
					}
					return
				}
				var denied *mysql.MySQLError
				if !errors.As(err, &denied) || denied.Number != 1142 && denied.Number != 1143 {
					t.Fatalf("%v, not the server's refusal of %s", err, missing)
				}
				// MySQL calls the UPDATE that FOR UPDATE needs so.
				text := strings.Replace(err.Error(), "SELECT with locking clause command", "UPDATE command", 1)
				for _, part := range []string{privilege + " command denied to user", "election_" + suffix, ": GRANT "} {
					if !strings.Contains(text, part) {
						t.Errorf("%q lacks %q", err, part)
					}
				}
			})
		}
	}
	for _, f := range findings(t, open(t, account), mysqllock.SeverityWarning) {
		if f.Severity == mysqllock.SeverityError || f.Subject == "grants" {
			t.Errorf("Preflight found %v", f)
		}
	}
	// All at once, as a program has it; also with what a server tells about itself.
	c := electQuickly(t, open(t, account), untilDone, nothing)
	c.leads(t)
	c.stops(t)
}

// The account of the work has nothing to do with elections but to look.
func TestPrivilegesOfTheWorksAccountAreSelectAndUpdateOnTheFences(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	newLedger(t, config)
	lock := newLock(t, admin, "e", "a")
	takeOver(t, lock)
	for _, test := range []struct{ grant, denied string }{
		{"SELECT, UPDATE ON {db}.election_fences", ""},
		{"UPDATE ON {db}.election_fences", "SELECT"},
		{"SELECT, INSERT, UPDATE ON {db}.election_records", "SELECT"},
	} {
		t.Run(test.grant, func(t *testing.T) {
			work := openDSN(t, newAccount(t, config, test.grant, "SELECT, INSERT ON {db}.ledger"), "")
			before := ledger(t, work)
			err := lock.Transact(t.Context(), work, nil, inserting(test.grant))
			tx, beginErr := work.BeginTx(t.Context(), nil)
			if beginErr != nil {
				t.Fatal(beginErr)
			}
			defer func() { _ = tx.Rollback() }()
			guardErr := lock.Guard(t.Context(), tx)
			if test.denied == "" {
				if err != nil || guardErr != nil {
					t.Errorf("Transact: %v; Guard: %v", err, guardErr)
				}
				wantLedger(t, work, append(before, test.grant)...)
				// The guard of clusters, which are not there to be asked.
				exec(t, work, fmt.Sprintf(mysqllock.CertifiedGuardSQL, "election_fences"), "", 0, "")
				return
			}
			for name, err := range map[string]error{"transact": err, "guard": guardErr} {
				var denied *mysql.MySQLError
				want := "; the transaction's account needs SELECT and UPDATE on election_fences: GRANT them"
				if !errors.As(err, &denied) || denied.Number != 1142 ||
					!strings.HasPrefix(err.Error(), "mysqllock: "+name+` "e": Error 1142 (42000): `+test.denied+" command denied to user") || !strings.HasSuffix(err.Error(), want) {
					t.Errorf("%v, not the refusal of %s", err, test.denied)
				}
			}
			wantLedger(t, work, before...)
		})
	}
}

// A leader whose work can't see the fence, or an account that can't see the
// tables, is told which one and what to do.
func TestPrivilegesErrorNamesTheTableOrDatabaseThatIsMissing(t *testing.T) {
	t.Parallel()
	for _, missing := range []string{"election_records", "election_fences", "database"} {
		t.Run(missing, func(t *testing.T) {
			t.Parallel()
			_, config := newTables(t)
			account := newAccount(t, config, ordinary...)
			outside := config.Clone()
			outside.DBName = ""
			for _, operation := range privileged {
				if operation.name == "Guard" && missing == "database" {
					continue // there is no transaction to guard
				}
				admin := open(t, config) // anew, as sessions lose a database that is dropped
				lock := newLock(t, open(t, account), operation.name, "a", unhurried)
				switch operation.finds {
				case another:
					hold(t, admin, operation.name, "b")
				case own:
					takeOver(t, lock)
				}
				pool := open(t, account)
				if operation.name == "takeover" {
					mustSucceed(t, "Get", get(t.Context(), lock)) // the row is there, the fence is not
				}
				if missing == "database" {
					exec(t, admin, "DROP DATABASE `"+config.DBName+"`")
				} else {
					exec(t, admin, "RENAME TABLE "+missing+" TO moved")
				}
				err := operation.do(t.Context(), lock, pool, operation.name)
				if missing == "database" {
					exec(t, open(t, outside), "CREATE DATABASE `"+config.DBName+"`")
					mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), open(t, config)) })
				} else {
					exec(t, admin, "RENAME TABLE moved TO "+missing)
				}
				needs := operation.needs == nil || missing == "database" ||
					slices.ContainsFunc(operation.needs, func(need string) bool { return strings.HasSuffix(missing, strings.Fields(need)[1]) })
				if !needs {
					if err != nil {
						t.Errorf("%s: %v", operation.name, err)
					}
					continue
				}
				var server *mysql.MySQLError
				if !errors.As(err, &server) {
					t.Errorf("%s: %v", operation.name, err)
					continue
				}
				remedy, part := "run mysqllock.Migrate", missing
				switch server.Number {
				case 1146:
				case 1049, 1046: // also of a session whose database is gone
					remedy, part = "create the database", ""
				case 1142: // of Migrate, which may not make it
					remedy = "GRANT them (Migrate also needs CREATE"
				default:
					t.Errorf("%s: %v", operation.name, err)
				}
				if missing == "database" {
					part = ""
				}
				if !strings.Contains(err.Error(), remedy) || !strings.Contains(err.Error(), part) {
					t.Errorf("%s: %v, not one about %s with %q", operation.name, err, missing, remedy)
				}
			}
		})
	}
}

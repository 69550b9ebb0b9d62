package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// wantRemedy makes calls that a server must refuse with one of these numbers, and looks for the
// remedy in what the lock says and in what Preflight does. Both say what was refused, and give no
// other advice.
func wantRemedy(t *testing.T, db *sql.DB, remedy string, numbers ...uint16) {
	t.Helper()
	isRefusal := func(what string, err error) {
		t.Helper()
		var refusal *mysql.MySQLError
		if !errors.As(err, &refusal) || !slices.Contains(numbers, refusal.Number) || !strings.HasSuffix(err.Error(), "; "+remedy) {
			t.Errorf("%s: %v, want one of %v with: %s", what, err, numbers, remedy)
		}
	}
	isRefusal("Create", create(t.Context(), newLock(t, db, "e", "a"), record("a"))())
	found, err := mysqllock.Preflight(t.Context(), db)
	if err != nil {
		isRefusal("Preflight", err)
		return
	}
	var problems []mysqllock.Finding
	for _, f := range found {
		if f.Severity == mysqllock.SeverityError {
			problems = append(problems, f)
		}
	}
	if len(problems) != 1 || problems[0].Subject != "server" || problems[0].Remedy != remedy || !strings.Contains(problems[0].Problem, " is refused: Error ") {
		t.Errorf("Preflight found %v, want one error with: %s", problems, remedy)
	}
}

func TestErrorOfARefusedAccountHasTheRemedy(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	for _, c := range []struct {
		name, alter string // of {user}
		remedy      string
		numbers     []uint16
	}{
		{
			"a resource limit", `WITH MAX_UPDATES_PER_HOUR 1`,
			"the account has used up a limit of its own, which a lock's polls and renewals soon do: raise it or set it to 0 (ALTER USER ... WITH MAX_QUERIES_PER_HOUR 0 and its like)",
			[]uint16{1226},
		},
		{
			"an expired password", `PASSWORD EXPIRE`,
			"the account's password has expired: set a new one by ALTER USER, here too (MYSQL_PASSWORD), and let it never expire (PASSWORD EXPIRE NEVER)",
			[]uint16{1820, 1862},
		},
		{"a locked account", `ACCOUNT LOCK`, "the account is locked: unlock it by ALTER USER ... ACCOUNT UNLOCK", []uint16{3118, 4151}},
	} {
		t.Run(c.name, func(t *testing.T) {
			account := newAccount(t, config, ordinary...)
			exec(t, admin, `ALTER USER '`+account.User+`'@'%' `+c.alter)
			db := openDSN(t, account, "charset=utf8mb4&interpolateParams=true") // a MariaDB doesn't count prepared statements
			if c.name == "a resource limit" {
				_, _ = db.ExecContext(t.Context(), `UPDATE election_records SET version = version WHERE 1 = 0`) // uses it up
			}
			wantRemedy(t, db, c.remedy, c.numbers...)
		})
	}
}

func TestErrorOfAServersSettingsHasTheRemedy(t *testing.T) {
	t.Parallel()
	_, config := ownServer(t, "--log-bin=b", "--server-id=7")
	admin := openOne(t, config, "")
	mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), admin) })
	account := newAccount(t, config, ordinary...)
	for _, c := range []struct {
		name, set, reset, parameters string
		remedy                       string
		number                       uint16
		mysql                        bool // MariaDB has no such thing
	}{
		{
			"binlog_format", `SET GLOBAL binlog_format = STATEMENT`, `SET GLOBAL binlog_format = ROW`, "{isolation}=%27READ-COMMITTED%27",
			"with binlog_format=STATEMENT the server refuses writes at READ COMMITTED: set binlog_format to ROW or MIXED, or the session's isolation level to REPEATABLE READ", 1665, false,
		},
		{
			"TLS", `SET GLOBAL require_secure_transport = 1`, `SET GLOBAL require_secure_transport = 0`, "",
			"the server takes only connections with TLS: set MYSQL_TLS=true, or tls in the DSN", 3159, false,
		},
		{
			"offline_mode", `SET GLOBAL offline_mode = 1`, `SET GLOBAL offline_mode = 0`, "",
			"the server is in offline mode, and an administrator put it there: connect to another one, or set offline_mode to OFF", 3032, true,
		},
	} {
		if c.mysql && server.MariaDB() {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			exec(t, admin, c.set)
			defer func() {
				if _, err := admin.ExecContext(context.Background(), c.reset); err != nil {
					t.Error(err)
				}
			}()
			isolation := "transaction_isolation"
			if server.MariaDB() {
				isolation = "tx_isolation"
			}
			if c.number == 3159 && strings.HasPrefix(server.Version(), "10.") {
				// A MariaDB before 11 says no more than that access is denied.
				c.number, c.remedy = 1045, "check the user and its password (MYSQL_USER, MYSQL_PASSWORD), and whether the account requires TLS (MYSQL_TLS) or a certificate (MYSQL_TLS_CERT)"
			}
			wantRemedy(t, openDSN(t, account, "charset=utf8mb4&"+strings.Replace(c.parameters, "{isolation}", isolation, 1)), c.remedy, c.number)
		})
	}
}

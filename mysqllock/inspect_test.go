package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// hold makes candidate the holder of an election and returns its token.
func hold(t testing.TB, db *sql.DB, election, candidate string, opts ...mysqllock.Option) int64 {
	t.Helper()
	lock := newLock(t, db, election, candidate, opts...)
	if err := lock.Create(t.Context(), record(candidate)); err != nil {
		t.Fatal(err)
	}
	token, held := lock.FencingToken()
	if !held {
		t.Fatal("no token")
	}
	return token
}

func getElection(t testing.TB, db *sql.DB, name string, opts ...mysqllock.Option) mysqllock.Election {
	t.Helper()
	e, err := mysqllock.GetElection(t.Context(), db, name, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return *e
}

// sameBut compares elections that were read at different times.
var sameBut = cmpopts.IgnoreFields(mysqllock.Election{}, "Age")

func TestInspectShowsAnElectionInEachOfItsStates(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)

	never := newLock(t, db, "never held", "a")
	empty := record("")
	empty.LeaseDurationSeconds = 1
	if err := never.Create(t.Context(), empty); err != nil {
		t.Fatal(err)
	}

	held := newLock(t, db, "held", "a")
	written := record("a")
	written.AcquireTime = metav1.NewTime(time.Date(2026, 3, 29, 2, 30, 0, 123456000, time.UTC))
	written.RenewTime = metav1.NewTime(time.Date(2026, 10, 25, 2, 30, 0, 654321000, time.UTC))
	written.LeaderTransitions = 3
	if err := held.Create(t.Context(), written); err != nil {
		t.Fatal(err)
	}
	token, _ := held.FencingToken()

	released := newLock(t, db, "released", "a")
	if err := released.Create(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	if err := released.Update(t.Context(), empty); err != nil {
		t.Fatal(err)
	}

	expiredToken := hold(t, db, "expired", "a")
	exec(t, db, "UPDATE election_records SET last_update = UTC_TIMESTAMP(6) - INTERVAL 1 HOUR WHERE election_name IN ('expired', 'released')")

	want := []mysqllock.Election{
		{Name: "expired", Holder: "a", LeaseDuration: 15 * time.Second, Expired: true, Ready: true, FencingToken: expiredToken},
		{
			Name: "held", Holder: "a", LeaseDuration: 15 * time.Second, FencingToken: token, LeaderTransitions: 3, Ready: true,
			AcquireTime: written.AcquireTime.Time, RenewTime: written.RenewTime.Time,
		},
		{Name: "never held", LeaseDuration: time.Second, Ready: true},
		{Name: "released", LeaseDuration: time.Second, Ready: true},
	}
	list, err := mysqllock.ListElections(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	// What the server's clock decides is compared apart.
	times := cmpopts.IgnoreFields(mysqllock.Election{}, "Age", "LastUpdate")
	for i, e := range list {
		if i < len(want) && want[i].AcquireTime.IsZero() {
			list[i].AcquireTime, list[i].RenewTime = time.Time{}, time.Time{}
		}
		if got := getElection(t, db, e.Name); !cmp.Equal(got.LastUpdate, e.LastUpdate) || got.Age < e.Age {
			t.Errorf("%s: last update %v, age %v; in the list %v, %v", e.Name, got.LastUpdate, got.Age, e.LastUpdate, e.Age)
		}
		low, high := time.Duration(0), time.Minute
		if e.Name == "expired" || e.Name == "released" {
			low, high = time.Hour, time.Hour+time.Minute
		}
		if e.Age < low || e.Age > high {
			t.Errorf("%s: age %v", e.Name, e.Age)
		}
		if e.LastUpdate.Location() != time.UTC || time.Since(e.LastUpdate)-e.Age > time.Minute {
			t.Errorf("%s: last update %v", e.Name, e.LastUpdate)
		}
	}
	// A release keeps the token of the term that it ended.
	if len(list) == 4 && list[3].FencingToken <= 0 {
		t.Errorf("released: token %d", list[3].FencingToken)
	}
	if len(list) == 4 {
		want[3].FencingToken = list[3].FencingToken
	}
	if diff := cmp.Diff(want, list, times); diff != "" {
		t.Error(diff)
	}

	_, err = mysqllock.GetElection(t.Context(), db, "Held")
	if !apierrors.IsNotFound(err) || !strings.HasPrefix(err.Error(), `mysqllock: get election "Held": `) {
		t.Errorf("not a NotFound: %v", err)
	}
}

// The reader's clock may be anything; the age is between two of the server's.
func TestInspectTakesTheAgeFromTheServersClock(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	hold(t, db, "e", "a")
	if e := getElection(t, db, "e"); e.Expired || e.Age > 10*time.Second {
		t.Errorf("just written, and %+v", e)
	}
	// A session's timestamp is all that a test can change of a server's clock.
	ahead := openDSN(t, config, fmt.Sprintf("timestamp=%d", time.Now().Add(time.Hour).Unix()))
	if e := getElection(t, ahead, "e"); !e.Expired || e.Age < 59*time.Minute || e.Age > 61*time.Minute {
		t.Errorf("an hour later by the server's clock, and %+v", e)
	}
	behind := openDSN(t, config, fmt.Sprintf("timestamp=%d", time.Now().Add(-time.Hour).Unix()))
	if e := getElection(t, behind, "e"); e.Expired || e.Age != 0 {
		t.Errorf("before it was written by the server's clock, and %+v", e)
	}
	exec(t, db, "UPDATE election_records SET last_update = UTC_TIMESTAMP(6) - INTERVAL 14 SECOND")
	if e := getElection(t, ahead, "e"); !e.Expired {
		t.Errorf("%+v", e)
	}
	exec(t, db, "UPDATE election_records SET last_update = UTC_TIMESTAMP(6) - INTERVAL 15 SECOND - INTERVAL 1 MICROSECOND")
	if e := getElection(t, db, "e"); !e.Expired {
		t.Errorf("older than its lease, and %+v", e)
	}
}

func TestInspectShowsTheSameThroughEverySession(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	names := []string{"ASCII", "Zürich/événement", "zürich/événement", "選挙/候補者", "🗳", strings.Repeat("界", 255)}
	for _, name := range names {
		hold(t, db, name, "leader of "+strings.Repeat("界", 5)+" é")
	}
	slices.Sort(names) // utf8mb4_bin orders as Go does
	want, err := mysqllock.ListElections(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range want {
		got = append(got, e.Name)
		if e.Holder != "leader of 界界界界界 é" {
			t.Errorf("holder %q", e.Holder)
		}
	}
	if diff := cmp.Diff(names, got); diff != "" {
		t.Errorf("names, or their order: %s", diff)
	}
	for _, parameters := range []string{
		"charset=latin1",
		"charset=latin1&interpolateParams=true",
		"parseTime=true&loc=" + url.QueryEscape("America/New_York"),
		"parseTime=true&loc=" + url.QueryEscape("Asia/Kolkata") + "&time_zone=" + url.QueryEscape("'+05:30'"),
		"time_zone=" + url.QueryEscape("'-11:00'"),
		"columnsWithAlias=true&clientFoundRows=true",
		"sql_mode=" + url.QueryEscape("'ANSI,NO_BACKSLASH_ESCAPES'"),
		"transaction_isolation=SERIALIZABLE",
	} {
		if server.MariaDB() {
			parameters = strings.Replace(parameters, "transaction_isolation", "tx_isolation", 1)
		}
		parameters = strings.Replace(parameters, "=SERIALIZABLE", "="+url.QueryEscape("'SERIALIZABLE'"), 1)
		t.Run(parameters, func(t *testing.T) {
			other := openDSN(t, config, parameters)
			list, err := mysqllock.ListElections(t.Context(), other)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, list, sameBut); diff != "" {
				t.Error(diff)
			}
			for _, e := range want {
				if diff := cmp.Diff(e, getElection(t, other, e.Name), sameBut); diff != "" {
					t.Error(diff)
				}
			}
			for _, name := range []string{"zurich/evenement", "選挙/候補", "?", "🗲"} {
				if e, err := mysqllock.GetElection(t.Context(), other, name); !apierrors.IsNotFound(err) {
					t.Errorf("%q is found: %v %v", name, e, err)
				}
			}
		})
	}
}

func TestInspectOfAnEmptyTableIsAnEmptyList(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	list, err := mysqllock.ListElections(t.Context(), db)
	if len(list) != 0 || err != nil {
		t.Errorf("%v, %v", list, err)
	}
}

func TestInspectReadsFromAnotherDatabase(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	name := config.DBName
	config.DBName = ""
	db := open(t, config)
	there := mysqllock.WithDatabase(name)
	token := hold(t, db, "e", "a", there)
	if e := getElection(t, db, "e", there); e.Holder != "a" || e.FencingToken != token {
		t.Errorf("%+v", e)
	}
	list, err := mysqllock.ListElections(t.Context(), db, there)
	if len(list) != 1 || err != nil {
		t.Errorf("%v, %v", list, err)
	}
}

func TestInspectShowsAMissingFenceRowAsTokenZero(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	hold(t, db, "e", "a")
	exec(t, db, "DELETE FROM election_fences")
	if e := getElection(t, db, "e"); e.Holder != "a" || e.FencingToken != 0 {
		t.Errorf("%+v", e)
	}
	list, err := mysqllock.ListElections(t.Context(), db)
	if err != nil || len(list) != 1 || list[0].Holder != "a" || list[0].FencingToken != 0 {
		t.Errorf("%v, %v", list, err)
	}
	// A fence row alone is no election.
	exec(t, db, "DELETE FROM election_records")
	exec(t, db, "INSERT INTO election_fences (election_name, fencing_token, leader_uid) VALUES ('e', 7, '')")
	if e, err := mysqllock.GetElection(t.Context(), db, "e"); !apierrors.IsNotFound(err) {
		t.Errorf("%v, %v", e, err)
	}
}

func TestInspectDoesNotWaitForLocks(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	hold(t, db, "e", "a")
	config.Params = map[string]string{"innodb_lock_wait_timeout": "50"} // not to mistake an early refusal for no wait
	tx, err := open(t, config).Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	for _, table := range []string{"election_records", "election_fences"} {
		if _, err := tx.Exec("SELECT * FROM " + table + " FOR UPDATE"); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec("UPDATE " + table + " SET leader_uid = 'x'"); err != nil {
			t.Fatal(err)
		}
	}
	isolation := "transaction_isolation"
	if server.MariaDB() {
		isolation = "tx_isolation"
	}
	for _, level := range []string{"READ-UNCOMMITTED", "REPEATABLE-READ", "SERIALIZABLE"} {
		reader := config.Clone()
		reader.Params[isolation] = "'" + level + "'"
		db := open(t, reader)
		if e := getElection(t, db, "e"); e.Holder != "a" {
			t.Errorf("%s: %+v", level, e)
		}
		if list, err := mysqllock.ListElections(t.Context(), db); len(list) != 1 || err != nil {
			t.Errorf("%s: %v, %v", level, list, err)
		}
	}
}

func TestInspectLocksNothing(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	config.Params = map[string]string{"innodb_lock_wait_timeout": "50"}
	admin := open(t, config)
	hold(t, admin, "e", "a")
	isolation := "transaction_isolation"
	if server.MariaDB() {
		isolation = "tx_isolation"
	}
	// Whatever a read locked would stay locked in a session that never commits.
	reader := openDSN(t, config, "autocommit=0&"+isolation+"="+url.QueryEscape("'REPEATABLE-READ'"))
	reader.SetMaxOpenConns(1)
	getElection(t, reader, "e")
	if _, err := mysqllock.ListElections(t.Context(), reader); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"election_records", "election_fences"} {
		exec(t, admin, "SELECT * FROM "+table+" FOR UPDATE NOWAIT")
	}
}

func TestInspectShowsHostileRowsAsTheyAre(t *testing.T) {
	t.Parallel()
	_, config := newTables(t)
	config.Params = map[string]string{"sql_mode": "''"}
	db := open(t, config)
	const insert = "INSERT INTO election_records (election_name, leader_name, last_update, leader_uid, lease_duration_seconds, acquire_time, renew_time," +
		" leader_transitions, strategy, preferred_holder, server, version) VALUES "
	exec(t, db, insert+"('1 negative', 'a', UTC_TIMESTAMP(6), '', -2147483648, NULL, NULL, -2147483648, '', '', '', -9223372036854775808)")
	exec(t, db, insert+"('2 zero dates', 'a', '0000-00-00', '', 60, '0000-00-00', '0000-00-00', 0, '', '', '', 0)")
	exec(t, db, insert+"('3 half zero dates', 'a', '2024-00-00 10:00:00', '', 60, '2024-02-00', '0000-01-01', 0, '', '', '', 0)")
	exec(t, db, insert+"('4 first', 'a', '1000-01-01', '', 60, '1000-01-01', '1000-01-01', 0, '', '', '', 0)")
	exec(t, db, insert+"('5 last', 'a', '9999-12-31 23:59:59.999999', '', 2147483647, '9999-12-31 23:59:59.999999', NULL, 2147483647, '', '', '', 9223372036854775807)")
	exec(t, db, insert+"('  6 spaces ', ' a\\0\\n', UTC_TIMESTAMP(6), '', 60, NULL, NULL, 0, '', '', '', 0)")
	exec(t, db, "INSERT INTO election_fences (election_name, fencing_token, leader_uid) VALUES ('1 negative', -9223372036854775808, ''), ('5 last', 9223372036854775807, '')")
	list, err := mysqllock.ListElections(t.Context(), db)
	if err != nil || len(list) != 6 {
		t.Fatal(list, err)
	}
	for _, e := range list {
		if e.Name != "  6 spaces " {
			if diff := cmp.Diff(e, getElection(t, db, e.Name), sameBut); diff != "" {
				t.Error(diff)
			}
		}
		if e.Age < 0 || e.Holder == "" {
			t.Errorf("%+v", e)
		}
	}
	if e := list[0]; e.Name != "  6 spaces " || e.Holder != " a\x00\n" {
		t.Errorf("%+v", e)
	}
	if e := list[1]; !e.Expired || e.LeaseDuration != -2147483648*time.Second || e.LeaderTransitions != -2147483648 || e.FencingToken != -9223372036854775808 {
		t.Errorf("%+v", e)
	}
	if e := list[2]; !e.LastUpdate.IsZero() || !e.AcquireTime.IsZero() || !e.RenewTime.IsZero() {
		t.Errorf("%+v", e)
	}
	// A thousand years are more than a time.Duration holds.
	if e := list[4]; !e.Expired || e.Age < 200*365*24*time.Hour || e.LastUpdate.Year() != 1000 {
		t.Errorf("%+v", e)
	}
	if e := list[5]; e.Expired || e.Age != 0 || e.LastUpdate.Year() != 9999 || e.LeaseDuration != 2147483647*time.Second || e.FencingToken != 9223372036854775807 {
		t.Errorf("%+v", e)
	}
}

func TestInspectOfALeaseLongerThanADurationDoesNotOverflow(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	exec(t, db, "ALTER TABLE election_records MODIFY lease_duration_seconds BIGINT NOT NULL") // which Migrate accepts
	hold(t, db, "e", "a")
	exec(t, db, "UPDATE election_records SET lease_duration_seconds = 9223372036854775807")
	if e := getElection(t, db, "e"); e.Expired || e.LeaseDuration < 200*365*24*time.Hour {
		t.Errorf("%+v", e)
	}
}

func TestInspectNeedsSelectAlone(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	token := hold(t, admin, "e", "a")
	db := open(t, newAccount(t, config, "SELECT ON {db}.election_records", "SELECT ON {db}.election_fences"))
	if e := getElection(t, db, "e"); e.Holder != "a" || e.FencingToken != token {
		t.Errorf("%+v", e)
	}
	if list, err := mysqllock.ListElections(t.Context(), db); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestInspectSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	config := newConfig(t)
	db := open(t, config)
	good, goodConfig := newTables(t)
	denied := open(t, newAccount(t, goodConfig, "INSERT ON {db}.*"))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	blocked := open(t, goodConfig)
	locker, err := good.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer locker.Close()

	for _, c := range []struct {
		name, want string
		number     uint16
		is         error
		ctx        context.Context
		db         *sql.DB
		opts       []mysqllock.Option
		locked     bool
	}{
		{name: "no pool", want: "db is nil; open a pool first, as with mysqllock.Open"},
		{
			name: "no tables", db: db, number: 1146,
			want: "; run mysqllock.Migrate, or apply mysqllock.Schema, in the database that the connection or WithDatabase names",
		},
		{name: "no privilege", db: denied, number: 1142, want: "GRANT"},
		{name: "an option", db: good, opts: []mysqllock.Option{mysqllock.WithDatabase(" x")}, want: `WithDatabase " x" begins or ends with a space; remove it`},
		{name: "context ended", db: good, ctx: ended, is: context.Canceled, want: "context canceled"},
		{
			name: "no answer", db: blocked, opts: []mysqllock.Option{mysqllock.WithOperationTimeout(200 * time.Millisecond)}, locked: true,
			is: context.DeadlineExceeded, want: "the pool has ",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := c.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			if c.locked {
				if _, err := locker.ExecContext(t.Context(), "LOCK TABLES election_records WRITE, election_fences WRITE"); err != nil {
					t.Fatal(err)
				}
			}
			list, listErr := mysqllock.ListElections(ctx, c.db, c.opts...)
			e, getErr := mysqllock.GetElection(ctx, c.db, "e", c.opts...)
			if len(list) != 0 || e != nil {
				t.Errorf("%v and %v besides an error", list, e)
			}
			for prefix, err := range map[string]error{"mysqllock: list elections: ": listErr, `mysqllock: get election "e": `: getErr} {
				if err == nil || !strings.HasPrefix(err.Error(), prefix) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, not %q and %q", err, prefix, c.want)
				}
				if c.is != nil && !errors.Is(err, c.is) {
					t.Errorf("%v is not %v", err, c.is)
				}
				var number *mysql.MySQLError
				if c.number != 0 && (!errors.As(err, &number) || number.Number != c.number) {
					t.Errorf("%v is not the server's error %d", err, c.number)
				}
			}
		})
	}
	for name, want := range map[string]string{
		"":   "mysqllock: get election: election name is empty; give it a name",
		"a ": `mysqllock: get election "a ": election name "a " begins or ends with a space; remove it`,
	} {
		if _, err := mysqllock.GetElection(t.Context(), good, name); err == nil || err.Error() != want {
			t.Errorf("%v, not %q", err, want)
		}
	}
}

// The statements that the documentation tells people to type.
func TestInspectSQLOfTheDocumentationWorks(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	account := newAccount(t, config)
	takeOver(t, newLock(t, db, "my-task", "a"))
	old := newLock(t, db, "my-old-task", "a")
	takeOver(t, old)
	if err := old.Update(t.Context(), recordFor("", 1)); err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("mydb.", "`"+config.DBName+"`.", "'app'@", "'"+account.User+"'@")
	statements := map[string]int{}
	var granted []string
	for _, statement := range documentedSQL(t) {
		verb, rest, _ := strings.Cut(statement, " ")
		statements[verb]++
		switch verb {
		case "SELECT":
			if table(t, db, statement) == "" {
				t.Errorf("%s: no row, and there are elections", statement)
			}
		case "UPDATE", "DELETE":
			result, err := db.ExecContext(t.Context(), statement)
			if err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
			if n, err := result.RowsAffected(); n != 1 || err != nil {
				t.Errorf("%s: %d rows, %v", statement, n, err)
			}
		case "GRANT":
			exec(t, db, here.Replace(statement))
			privileges, _, _ := strings.Cut(rest, " TO ")
			granted = append(granted, strings.ReplaceAll(strings.Join(strings.Fields(privileges), " "), "mydb.", "{db}."))
		default:
			t.Errorf("%s: nothing checks a statement that begins with %s", statement, verb)
		}
	}
	if diff := cmp.Diff(ordinary, granted); diff != "" {
		t.Errorf("the tests have other privileges than the documentation: %s", diff)
	}
	if len(statements) < 4 {
		t.Errorf("only statements of these kinds were found: %v", statements)
	}
}

// documentedSQL are the statements of all blocks of SQL in the Markdown files of this repository.
func documentedSQL(t *testing.T) (statements []string) {
	t.Helper()
	for _, pattern := range []string{"../*.md", "../.github/*.md", "*.md", "../examples/*.md", "../hack/*.md", "../hack/*/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for i, block := range strings.Split(string(text), "\n```") {
				sql, isSQL := strings.CutPrefix(block, "sql\n")
				if i%2 == 0 || !isSQL {
					continue
				}
				for statement := range strings.SplitSeq(sql, ";") {
					if statement = strings.TrimSpace(statement); statement != "" {
						statements = append(statements, statement)
					}
				}
			}
		}
	}
	return statements
}

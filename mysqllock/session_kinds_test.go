package mysqllock_test

import (
	"database/sql"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"pgregory.net/rapid"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// This file is about all kinds of sessions that a user may have: an election goes the same way in
// each.

// collations are those of the list that the server knows.
func collations(t testing.TB) []string {
	t.Helper()
	db := openOne(t, server.Config(), "")
	var known []string
	for _, c := range []string{
		"utf8mb4_unicode_ci", "utf8mb4_general_ci", "utf8mb4_bin", "latin1_swedish_ci", "latin1_bin", "binary", "gbk_chinese_ci",
		"utf8mb4_unicode_520_nopad_ci", "utf8mb4_uca1400_ai_ci", // MariaDB's
		"utf8mb4_0900_ai_ci", "utf8mb4_0900_bin", // MySQL's
	} {
		_, err := db.ExecContext(t.Context(), `SET collation_connection = '`+c+`'`)
		switch {
		case err == nil:
			known = append(known, c)
		case !strings.Contains(err.Error(), "Unknown collation"):
			t.Fatal(err)
		}
	}
	if len(known) < 8 {
		t.Fatalf("the server knows only %v", known)
	}
	return known
}

// An application's DSN, or the server's init_connect, may give sessions a collation of any kind.
// What the lock compares is compared by its tables'.
func TestSessionOfAnyCollationWillDo(t *testing.T) {
	t.Parallel()
	for _, collation := range collations(t) {
		for _, parameters := range []string{"", "interpolateParams=true&"} {
			t.Run(parameters+collation, func(t *testing.T) {
				parameters += "collation_connection=" + url.QueryEscape("'"+collation+"'")
				elections := []string{"e"}
				if strings.HasPrefix(collation, "utf8mb4") {
					elections = append(elections, "é選挙")
				}
				config := newConfig(t)
				exec(t, open(t, config), v0Table+"DEFAULT CHARACTER SET latin1")
				tryAll(t, openDSN(t, config, parameters), elections)
				outside := config.Clone()
				outside.DBName = ""
				tryAll(t, openDSN(t, outside, parameters), elections, mysqllock.WithDatabase(config.DBName), mysqllock.WithServerClock())
			})
		}
	}
}

// tryAll makes each kind of call.
func tryAll(t *testing.T, db *sql.DB, elections []string, opts ...mysqllock.Option) {
	t.Helper()
	for range 2 { // it makes the tables, and finds them current
		mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), db, opts...) })
	}
	found, err := mysqllock.Preflight(t.Context(), db, opts...)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if f.Severity == mysqllock.SeverityError {
			t.Errorf("Preflight found %v", f)
		}
	}
	for _, election := range elections {
		for _, batch := range [][]mysqllock.Option{nil, {mysqllock.WithBatch(batchInCompany(t, db))}} {
			if batch != nil && len(opts) > 0 {
				continue // the company has no options
			}
			lock := newLock(t, db, election, "a", append(batch, opts...)...)
			mustSucceed(t, "a takeover", func() error { return tryTakeOver(t.Context(), lock) })
			mustSucceed(t, "Get", get(t.Context(), lock))
			mustSucceed(t, "a renewal", update(t.Context(), lock, record("a")))
			mustSucceed(t, "Transact", func() error { return lock.Transact(t.Context(), db, nil, nop) })
			if got := getElection(t, db, election, opts...); got.Name != election || got.Holder != "a" {
				t.Errorf("GetElection returned %+v", got)
			}
			mustSucceed(t, "a release", update(t.Context(), lock, recordFor("", 1)))
		}
	}
	if all, err := mysqllock.ListElections(t.Context(), db, opts...); err != nil || len(all) < len(elections) {
		t.Errorf("ListElections returned %v, %v", all, err)
	}
}

func TestSessionOfAnyKindReturnsAnyValidRecordAndName(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	check := func(name string, sessions ...session) {
		t.Run(name, func(t *testing.T) {
			var pools []*sql.DB
			for _, s := range sessions {
				pools = append(pools, s.open(t, config))
			}
			rapid.Check(t, func(rt *rapid.T) {
				roundTrip(t, rt, admin, pools[rapid.IntRange(0, len(pools)-1).Draw(rt, "pool")])
			})
		})
	}
	for _, s := range settings() {
		check(s.name, s)
	}
	for _, mode := range sqlModes() {
		check("sql_mode "+mode, inMode(mode)...)
	}
}

// roundTrip checks one record through Create and one through Update, as the writer and as another
// candidate read them.
func roundTrip(t *testing.T, rt *rapid.T, admin, db *sql.DB) {
	t.Helper()
	election, identity := validName.Draw(rt, "election"), validName.Draw(rt, "identity")
	exec(t, admin, `DELETE FROM election_records`)
	exec(t, admin, `DELETE FROM election_fences`)
	newLock := func(identity string) *mysqllock.Lock {
		lock, err := mysqllock.New(db, election, resourcelock.ResourceLockConfig{Identity: identity}, unhurried)
		if err != nil {
			rt.Fatalf("New(%q) for %q: %v", election, identity, err)
		}
		return lock
	}
	writer, reader := newLock(identity), newLock("another")
	if _, _, err := writer.Get(t.Context()); !apierrors.IsNotFound(err) {
		rt.Fatalf("Get of an election that isn't there: %v", err)
	}
	for _, write := range []struct {
		name string
		do   func(resourcelock.LeaderElectionRecord) error
	}{
		{"Create", func(r resourcelock.LeaderElectionRecord) error { return writer.Create(t.Context(), r) }},
		{"Update", func(r resourcelock.LeaderElectionRecord) error { return writer.Update(t.Context(), r) }},
	} {
		want := validRecord(identity).Draw(rt, write.name)
		if err := write.do(want); err != nil {
			rt.Fatalf("%s: %v", write.name, err)
		}
		for _, lock := range []*mysqllock.Lock{writer, reader} {
			got, _, err := lock.Get(t.Context())
			if err != nil {
				rt.Fatalf("Get after %s: %v", write.name, err)
			}
			if diff := cmp.Diff(want, *got, sameInstant); diff != "" {
				rt.Fatalf("%s, then Get by %q:\n%s", write.name, lock.Identity(), diff)
			}
		}
	}
}

// lifecycle is what an election goes through, with the outcomes that client-go relies on.
func lifecycle(t *testing.T, db *sql.DB, election string) {
	t.Helper()
	ctx := t.Context()
	a, b := newLock(t, db, election, "ä", unhurried), newLock(t, db, election, "b", unhurried)
	get := func(lock *mysqllock.Lock) error {
		_, _, err := lock.Get(ctx)
		return err
	}
	same := record("ä") // written twice: not even a time differs
	for i, step := range []struct {
		name, want string
		err        error
	}{
		{"Get of nothing", "NotFound", get(a)},
		{"Create", "ok", a.Create(ctx, same)},
		{"Create of what is there", "AlreadyExists", b.Create(ctx, record("b"))},
		{"renewal", "ok", a.Update(ctx, same)},
		{"the same renewal", "ok", a.Update(ctx, same)},
		{"Get by a follower", "ok", get(b)},
		{"takeover", "ok", b.Update(ctx, record("b"))},
		{"renewal by the former leader", "Conflict", a.Update(ctx, same)},
		{"release by the former leader", "other error", a.Update(ctx, record(""))},
		{"renewal", "ok", b.Update(ctx, record("b"))},
		{"Get by the former leader", "ok", get(a)},
		{"release", "ok", b.Update(ctx, record(""))},
		{"takeover of what has been released since", "Conflict", a.Update(ctx, record("ä"))},
		{"Get of a released election", "ok", get(a)},
		{"takeover", "ok", a.Update(ctx, record("ä"))},
	} {
		if got := outcome(step.err); got != step.want {
			t.Errorf("step %d, %s: %v, not %s", i, step.name, step.err, step.want)
		}
	}
	if row := readRow(t, db, election); row.Holder != "ä" {
		t.Errorf("the row is %+v", row)
	}
	if token, held := a.FencingToken(); !held || token == 0 {
		t.Errorf("the last leader's token is %d (held: %v)", token, held)
	}
}

func TestSessionOfAnyKindLetsAnElectionGoOn(t *testing.T) {
	_, config := newTables(t)
	all := append(settings(), isolations()...)
	for _, mode := range sqlModes() {
		all = append(all, inMode(mode)...)
	}
	for i, s := range all {
		t.Run(s.name, func(t *testing.T) {
			lifecycle(t, s.open(t, config), fmt.Sprintf("ns/life-%d", i))
		})
	}
}

func TestSessionOfEveryKindThatAUserMayHaveServesAnElection(t *testing.T) {
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

func TestSessionOfAnyTimeZoneWritesTimesInUTC(t *testing.T) {
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

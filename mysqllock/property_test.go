package mysqllock_test

import (
	"database/sql"
	"fmt"
	"math"
	"net/url"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // loc=America/New_York also where the system has no zones
	"unicode"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"pgregory.net/rapid"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// session is one way in which a user may have set up a pool.
type session struct {
	name string
	open func(testing.TB, *mysql.Config) *sql.DB
}

// withParams is Open's pool with session variables.
func withParams(name, variable, value string) session {
	return session{name, func(t testing.TB, config *mysql.Config) *sql.DB {
		t.Helper()
		config = config.Clone()
		config.Params = map[string]string{variable: "'" + value + "'"}
		return open(t, config)
	}}
}

// withDSN is a pool of the driver's own.
func withDSN(name, parameters string) session {
	return session{name, func(t testing.TB, config *mysql.Config) *sql.DB {
		t.Helper()
		return openDSN(t, config, parameters)
	}}
}

// settings are those of a DSN or a config that must make no difference.
func settings() []session {
	return []session{
		{"Open", open},
		withDSN("driver's defaults", ""),
		withDSN("parseTime, loc, time_zone", "parseTime=true&loc=America%2FNew_York&time_zone='%2B05:30'"),
		withDSN("clientFoundRows", "clientFoundRows=true"),
		withDSN("interpolateParams, charset", "interpolateParams=true&charset=utf8mb4"),
	}
}

// sqlModes are those that change what a statement means, and the absence of all.
func sqlModes() []string {
	modes := []string{"", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "PIPES_AS_CONCAT", "ANSI,TRADITIONAL"}
	if server.MariaDB() {
		modes = append(modes, "EMPTY_STRING_IS_NULL", "ORACLE")
	}
	return modes
}

// inMode are a pool whose driver quotes values and one whose server does.
func inMode(mode string) []session {
	return []session{
		withParams("Open, sql_mode "+mode, "sql_mode", mode),
		withDSN("prepared, sql_mode "+mode, "sql_mode="+url.QueryEscape("'"+mode+"'")),
	}
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

// character is any that a name may have, with those that SQL, LIKE or a driver
// could stumble over as often as all others.
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

var optionalName = rapid.OneOf(rapid.Just(""), validName)

// instant is what a DATETIME(6) holds, in some zone, or zero.
var instant = rapid.Custom(func(t *rapid.T) metav1.Time {
	first := time.Date(1000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	last := time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC).UnixMicro()
	micros := rapid.OneOf(
		rapid.Int64Range(first, last),
		rapid.Int64Range(0, time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()),
		rapid.SampledFrom([]int64{first, last, -1, 0, 1, time.Date(2026, 3, 8, 7, 0, 0, 0, time.UTC).UnixMicro()}),
	).Draw(t, "micros")
	if rapid.IntRange(0, 9).Draw(t, "zero") == 0 {
		return metav1.Time{}
	}
	zone := time.FixedZone("", rapid.IntRange(-14*3600, 14*3600).Draw(t, "zone"))
	return metav1.NewTime(time.UnixMicro(micros).In(zone))
})

var number31 = rapid.OneOf(rapid.IntRange(1, 100), rapid.IntRange(1, math.MaxInt32), rapid.Just(math.MaxInt32))

// validRecord is one of the given holder.
func validRecord(holder string) *rapid.Generator[resourcelock.LeaderElectionRecord] {
	return rapid.Custom(func(t *rapid.T) resourcelock.LeaderElectionRecord {
		return resourcelock.LeaderElectionRecord{
			HolderIdentity:       holder,
			LeaseDurationSeconds: number31.Draw(t, "lease"),
			AcquireTime:          instant.Draw(t, "acquired"),
			RenewTime:            instant.Draw(t, "renewed"),
			LeaderTransitions:    number31.Draw(t, "transitions") - 1 + rapid.IntRange(0, 1).Draw(t, "one more"),
			Strategy:             coordinationv1.CoordinatedLeaseStrategy(optionalName.Draw(t, "strategy")),
			PreferredHolder:      optionalName.Draw(t, "preferred holder"),
		}
	})
}

// sameInstant: a time comes back in UTC.
var sameInstant = cmp.Comparer(func(a, b metav1.Time) bool { return a.Equal(&b) && a.IsZero() == b.IsZero() })

func TestAnyValidRecordAndNameComesBackWhateverTheSessionIsLike(t *testing.T) {
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

// roundTrip checks one record through Create and one through Update, as the
// writer and as another candidate read them.
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

// lifecycle is what an election goes through, with the outcomes that client-go
// relies on.
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

func TestAnElectionGoesOnWhateverTheSessionIsLike(t *testing.T) {
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

func TestOneWinsUnderEveryIsolationLevel(t *testing.T) {
	_, config := newTables(t)
	const n = 8
	for i, s := range isolations() {
		t.Run(s.name, func(t *testing.T) {
			db := s.open(t, config)
			db.SetMaxOpenConns(n)
			db.SetMaxIdleConns(n)
			var variable, level string
			row := db.QueryRowContext(t.Context(), `SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')`)
			if err := row.Scan(&variable, &level); err != nil || level != s.name {
				t.Fatalf("the session's isolation level is %s, not %s (%v)", level, s.name, err)
			}
			swapRaces(t, db, fmt.Sprintf("ns/isolation-%d", i), n, 40)
			createRaces(t, db, fmt.Sprintf("ns/isolation-create-%d", i), n, 10)
		})
	}
}

// alike are pairs of names that some collation, normalisation, trimming or
// character set takes for one.
var alike = []struct{ what, a, b string }{
	{"case", "ns/Leader", "ns/leader"},
	{"case beyond ASCII", "ÄPFEL", "äpfel"},
	{"Turkish case", "I", "ı"},
	{"sharp s", "straße", "strasse"},
	{"capital sharp s", "STRAẞE", "STRASSE"},
	{"Greek final sigma", "ς", "σ"},
	{"accent", "café", "cafe"},
	{"normalisation forms", "caf\u00e9", "cafe\u0301"},
	{"order of combining marks", "a\u0323\u0302", "a\u0302\u0323"},
	{"Hangul", "\uac00", "\u1100\u1161"},
	{"Ångström sign", "\u212b", "\u00c5"},
	{"ligature", "\ufb01n", "fin"},
	{"full width", "\uff41", "a"},
	{"superscript", "x\u00b2", "x2"},
	{"kana", "か", "カ"},
	{"voiced kana", "が", "か"},
	{"emoji", "👩", "👨"},
	{"emoji and none", "a👩", "a"},
	{"skin tone", "👍", "👍🏿"},
	{"joined emoji", "👩\u200d🚀", "👩🚀"},
	{"flags", "🇩🇪", "🇫🇷"},
	{"first of two planes", "\U00010000", "\U00020000"},
	{"beyond the BMP and a replacement", "a\U0001f600", "a\ufffd"},
	{"beyond the BMP and a question mark", "a\U0001f600", "a?"},
	{"zero-width space at the end", "a\u200b", "a"},
	{"byte order mark at the end", "a\ufeff", "a"},
	{"byte order mark at the beginning", "\ufeffa", "a"},
	{"Hangul filler at the end", "a\u3164", "a"},
	{"word joiner at the end", "a\u2060", "a"},
	{"Braille blank at the end", "a\u2800", "a"},
	{"no-break space inside", "a\u00a0b", "a b"},
	{"soft hyphen", "a\u00adb", "ab"},
	{"one space or two", "a b", "a  b"},
	{"variation selector", "\u2764\ufe0f", "\u2764"},
	{"bidi mark", "a\u200eb", "ab"},
	{"private use", "\ue000", "\uf8ff"},
	{"noncharacters", "\ufffe", "\uffff"},
	{"backslash", `a\b`, `a\\b`},
	{"backslash at the end", `a\`, `a`},
	{"quotes", `a''b`, `a'b`},
	{"wildcards", "a%", "ab"},
	{"wildcards", "a_", "ab"},
	{"numbers", "1", "1.0"},
	{"numbers", "0", "a"},
	{"exponent", "1e1", "10"},
	{"leading zero", "01", "1"},
	{"255 characters", strings.Repeat("ä", 254) + "x", strings.Repeat("ä", 254) + "y"},
	{"255 characters and 254", strings.Repeat("\U0001f600", 255), strings.Repeat("\U0001f600", 254)},
}

// twoElections checks that two names are two elections with leaders of their own.
func twoElections(t *testing.T, db *sql.DB, what, first, second string) (problem string) {
	t.Helper()
	ctx := t.Context()
	for _, name := range []string{first, second} {
		exec(t, db, `DELETE FROM election_records WHERE election_name = ?`, name)
		exec(t, db, `DELETE FROM election_fences WHERE election_name = ?`, name)
	}
	var tokens [2]int64
	var locks [2]*mysqllock.Lock
	for i, name := range []string{first, second} {
		// The names are identities as well: a holder is not another's.
		lock, err := mysqllock.New(db, name, resourcelock.ResourceLockConfig{Identity: name}, unhurried)
		if err != nil {
			return fmt.Sprintf("%s: %v", what, err)
		}
		if _, _, err := lock.Get(ctx); !apierrors.IsNotFound(err) {
			return fmt.Sprintf("%s: of %+q and %+q there is %+q already: %v", what, first, second, name, err)
		}
		if err := lock.Create(ctx, record(name)); err != nil {
			return fmt.Sprintf("%s: %+q can't be created besides the other of %+q and %+q: %v", what, name, first, second, err)
		}
		locks[i] = lock
		tokens[i], _ = lock.FencingToken()
	}
	for i, lock := range locks {
		if err := lock.Update(ctx, record(lock.Identity())); err != nil {
			return fmt.Sprintf("%s: renewal of %+q: %v", what, lock.Identity(), err)
		}
		found, _, err := lock.Get(ctx)
		if err != nil || found.HolderIdentity != lock.Identity() {
			return fmt.Sprintf("%s: the leader of %+q is %+v, %v", what, lock.Identity(), found, err)
		}
		if stored, _ := storedFence(t, db, lock.Identity()); stored != tokens[i] {
			return fmt.Sprintf("%s: the fence of %+q has token %d, its leader %d", what, lock.Identity(), stored, tokens[i])
		}
	}
	return ""
}

func TestNamesThatLookAlikeAreElectionsOfTheirOwn(t *testing.T) {
	db, config := newTables(t)
	unusual := openDSN(t, config, "sql_mode=''") // cuts and converts in silence
	for _, pair := range alike {
		if problem := twoElections(t, db, pair.what, pair.a, pair.b); problem != "" {
			t.Error(problem)
		}
		if problem := twoElections(t, unusual, pair.what, pair.b, pair.a); problem != "" {
			t.Errorf("sql_mode '': %s", problem)
		}
	}
}

// A name and what becomes of it by one change of one character.
func TestAnyTwoNamesAreTwoElections(t *testing.T) {
	db, _ := newTables(t)
	rapid.Check(t, func(rt *rapid.T) {
		name := validName.Draw(rt, "name")
		runes := []rune(name)
		i := rapid.IntRange(0, len(runes)-1).Draw(rt, "at")
		changed := rapid.SampledFrom([]func() string{
			func() string { return strings.ToUpper(name) },
			func() string { return strings.ToLower(name) },
			func() string { return string(append(runes[:i:i], unicode.SimpleFold(runes[i]))) + string(runes[i+1:]) },
			func() string { return string(append(runes[:i:i], character.Draw(rt, "other"))) + string(runes[i+1:]) },
			func() string { return string(append(runes[:i:i], '\u0301')) + string(runes[i:]) },
			func() string { return string(append(runes[:i:i], '\u200b')) + string(runes[i:]) },
			func() string { return string(runes[:i]) + string(runes[i+1:]) },
			func() string { return name + "\u3164" },
		}).Draw(rt, "change")()
		other := strings.TrimSpace(changed)
		if _, err := mysqllock.New(db, other, resourcelock.ResourceLockConfig{Identity: "a"}); err != nil || other == name {
			other = "the other" // the change made it too long, empty or no different
		}
		if problem := twoElections(t, db, "by chance", name, other); problem != "" {
			rt.Fatal(problem)
		}
	})
}

// A row that was deleted and made again must not match what a lock observed
// before (ABA), also when the old row's version is of a clock in the year 2100,
// to which the new row's could count up.
func TestAStaleUpdateNeverMatchesARowThatWasMadeAgain(t *testing.T) {
	db, _ := newTables(t)
	ctx := t.Context()
	year2100 := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for _, old := range []struct {
		name    string
		version int64
	}{{"now", 0}, {"2100", year2100}} {
		for _, released := range []bool{false, true} {
			for _, remake := range []string{"not", "held", "released"} {
				t.Run(fmt.Sprintf("version of %s, released %v, made again %s", old.name, released, remake), func(t *testing.T) {
					election := "ns/again"
					for range 10 {
						stale, next := newLock(t, db, election, "a", unhurried), newLock(t, db, election, "b", unhurried)
						must("Create", stale.Create(ctx, record("a")))
						if old.version != 0 {
							exec(t, db, `UPDATE election_records SET version = ? WHERE election_name = ?`, old.version, election)
							_, _, err := stale.Get(ctx)
							must("Get", err)
						}
						if released {
							must("release", stale.Update(ctx, record("")))
						}
						before := readRow(t, db, election)
						if old.version != 0 && before.Version < old.version {
							t.Fatalf("the version went back from %d to %d", old.version, before.Version)
						}
						exec(t, db, `DELETE FROM election_records WHERE election_name = ?`, election)
						want := "NotFound"
						if remake != "not" {
							want = "Conflict"
							must("Create again", next.Create(ctx, record("b")))
							if remake == "released" {
								must("release again", next.Update(ctx, record("")))
							}
							after := readRow(t, db, election)
							if after.Version == before.Version {
								t.Errorf("the version %d came back", after.Version)
							}
							// As many renewals as a stale lock may sleep for.
							for range 3 {
								if got := outcome(stale.Update(ctx, record("a"))); got != want {
									t.Errorf("Update of a row that was made again: %s, not %s", got, want)
								}
								if remake == "held" {
									must("renewal", next.Update(ctx, record("b")))
								}
							}
						} else if got := outcome(stale.Update(ctx, record("a"))); got != want {
							t.Errorf("Update of a row that is gone: %s, not %s", got, want)
						}
						if remake != "not" {
							holder := map[string]string{"held": "b", "released": ""}[remake]
							if row := readRow(t, db, election); row.Holder != holder {
								t.Errorf("the row made again became %+v", row)
							}
						}
						exec(t, db, `DELETE FROM election_records WHERE election_name = ?`, election)
					}
				})
			}
		}
	}
}

// After a failover that lost a write, or beside a client whose clock is ahead,
// two candidates can have written the same version.
func TestTheSameVersionOfAnotherHolderDoesNotMatch(t *testing.T) {
	db, _ := newTables(t)
	ctx := t.Context()
	for _, who := range []string{"leader", "follower"} {
		election := "ns/same-version-" + who
		leader, follower := newLock(t, db, election, "leader", unhurried), newLock(t, db, election, "follower", unhurried)
		if err := leader.Create(ctx, record("leader")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := follower.Get(ctx); err != nil {
			t.Fatal(err)
		}
		exec(t, db, `UPDATE election_records SET leader_name = 'usurper', leader_uid = 'other' WHERE election_name = ?`, election)
		lock := map[string]*mysqllock.Lock{"leader": leader, "follower": follower}[who]
		if err := lock.Update(ctx, record(who)); !apierrors.IsConflict(err) {
			t.Errorf("Update by the %s: %v, not a Conflict", who, err)
		}
		if row := readRow(t, db, election); row.Holder != "usurper" {
			t.Errorf("the %s overwrote another holder's row of the same version: %+v", who, row)
		}
	}
}

package mysqllock_test

import (
	"database/sql"
	"math"
	"net/url"
	"testing"
	"time"
	"unicode"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"pgregory.net/rapid"
)

// What property tests draw from: sessions, names and records.

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

package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	"pgregory.net/rapid"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// wantNothingSecret looks for what no text may have in it: the account's password, its user but
// where a server refuses it, the server's address, a DSN.
func wantNothingSecret(t *testing.T, what, text string, config *mysql.Config) {
	t.Helper()
	refused := regexp.MustCompile(`(Access|command) denied (for|to) user '` + regexp.QuoteMeta(config.User) + `'@'\.\.\.'`)
	rest := refused.ReplaceAllString(text, "")
	forbidden := []string{config.Passwd, config.User, config.FormatDSN(), "@tcp(", "tcp(", "127.0.0.1", "db.internal.example", "10.9.8.7"}
	if _, port, err := net.SplitHostPort(config.Addr); err == nil {
		forbidden = append(forbidden, ":"+port)
	}
	for _, secret := range forbidden {
		if at := strings.Index(rest, secret); secret != "" && at >= 0 {
			t.Errorf("%s has %q: ...%s...", what, secret, rest[max(0, at-200):min(len(rest), at+200)])
		}
	}
}

// Whatever is wrong with a database, each function of the package says so, and nothing that whoever
// reads logs must not know.
func TestSecretIsInNoFunctionsError(t *testing.T) {
	t.Parallel()
	admin, config := newTables(t)
	leader := newLock(t, admin, "leader", "a")
	takeOver(t, leader)
	exec(t, admin, `DROP TABLE election_fences`) // so that Migrate has something to do
	account := newAccount(t, config, "SELECT ON {db}.election_records")
	with := func(change func(*mysql.Config)) *mysql.Config {
		c := account.Clone()
		c.Logger = &mysql.NopLogger{}
		change(c)
		return c
	}
	unused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mustSucceed(t, "Close", unused.Close)
	for name, broken := range map[string]*mysql.Config{
		"no privilege on a table": with(func(*mysql.Config) {}),
		"a wrong password":        with(func(c *mysql.Config) { c.Passwd += "x" }),
		"an unknown user":         with(func(c *mysql.Config) { c.User += "x" }),
		"an unknown database":     with(func(c *mysql.Config) { c.DBName = "mysqllock_is_not_there" }),
		"nothing listens":         with(func(c *mysql.Config) { c.Addr = unused.Addr().String() }),
		"a black hole":            with(func(c *mysql.Config) { c.Addr, c.Timeout = newBlackHole(t), 200*time.Millisecond }),
		"a refused host": with(func(c *mysql.Config) {
			c.Addr = newRefusingServer(t, 1130, "Host '10.9.8.7' is not allowed to connect")
		}),
		"a blocked host": with(func(c *mysql.Config) { c.Addr = newRefusingServer(t, 1129, "Host '10.9.8.7' is blocked") }),
		"a proxy that names an address": with(func(c *mysql.Config) {
			c.Addr = newRefusingServer(t, 1105, "target: shop.0.primary: vttablet: dial tcp 10.9.8.7:15999: connect refused")
		}),
		"a proxy that names a host": with(func(c *mysql.Config) {
			c.Addr = newRefusingServer(t, 2003, "Can't connect to remote server 'db.internal.example:6446', nor to db.internal.example")
		}),
		"too many connections": with(func(c *mysql.Config) { c.Addr = newRefusingServer(t, 1040, "Too many connections") }),
		"no socket":            with(func(c *mysql.Config) { c.Net, c.Addr = "unix", "/nonexistent/db.internal.example.sock" }),
		"no TLS at the server": with(func(c *mysql.Config) {
			c.TLSConfig, c.DialFunc = "true", (&fakeServer{plugin: "mysql_native_password"}).dial
		}),
		"no plugin for the server": with(func(c *mysql.Config) { c.DialFunc = (&fakeServer{plugin: "exotic"}).dial }),
		"no such host": with(func(c *mysql.Config) {
			c.DialFunc = func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "db.internal.example", Server: "10.9.8.7:53", IsNotFound: true}}
			}
		}),
	} {
		for function, call := range map[string]func(ctx context.Context, db *sql.DB) error{
			"Migrate":       func(ctx context.Context, db *sql.DB) error { return mysqllock.Migrate(ctx, db) },
			"GetElection":   func(ctx context.Context, db *sql.DB) error { _, err := mysqllock.GetElection(ctx, db, "e"); return err },
			"ListElections": func(ctx context.Context, db *sql.DB) error { _, err := mysqllock.ListElections(ctx, db); return err },
			"Transact":      func(ctx context.Context, db *sql.DB) error { return leader.Transact(ctx, db, nil, nop) },
			"Get":           func(ctx context.Context, db *sql.DB) error { return get(ctx, newLock(t, db, "e", "a"))() },
			"Create":        func(ctx context.Context, db *sql.DB) error { return newLock(t, db, "e", "a").Create(ctx, record("a")) },
			"ElectLeader": func(ctx context.Context, db *sql.DB) error {
				return mysqllock.ElectLeaderWithTimings(ctx, db, "e", 4*time.Second, 3*time.Second, time.Second/2, untilDone, nothing)
			},
			"Preflight": func(ctx context.Context, db *sql.DB) error {
				found, err := mysqllock.Preflight(ctx, db)
				for _, f := range found {
					wantNothingSecret(t, "Preflight with "+name, f.String(), broken)
				}
				if len(found) > 0 {
					err = errors.Join(err, errors.New("found"))
				}
				return err
			},
		} {
			t.Run(name+", "+function, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				err := call(ctx, open(t, broken))
				if err == nil {
					if name != "no plugin for the server" && (name != "no privilege on a table" || function != "Get") {
						t.Error("no error")
					}
					return
				}
				if name == "no privilege on a table" && function == "Get" && !strings.Contains(err.Error(), "not found") {
					t.Error(err)
				}
				wantNothingSecret(t, name+", "+function, err.Error(), broken)
			})
		}
	}
}

// What a server tells about an account has the hash of its password in it.
func TestSecretPasswordHashIsNotShownByPreflight(t *testing.T) {
	_, config := newTables(t)
	account := newAccount(t, config, ordinary...)
	admin := open(t, config)
	exec(t, admin, `GRANT ALL PRIVILEGES ON *.* TO '`+account.User+`'@'%' WITH GRANT OPTION`)
	db := open(t, account)
	grants := table(t, db, `SHOW GRANTS`)
	hash := regexp.MustCompile(`\*[0-9A-F]{40}`).FindString(grants)
	if server.MariaDB() && hash == "" {
		t.Fatalf("no hash, so that this test shows nothing: %s", grants)
	}
	for _, f := range findings(t, db, mysqllock.SeverityWarning) {
		wantNothingSecret(t, "Preflight", f.String(), account)
		if hash != "" && strings.Contains(f.String(), hash) || strings.Contains(f.String(), "IDENTIFIED") {
			t.Errorf("shows a hash: %s", f)
		}
	}
	wantFinding(t, db, mysqllock.SeverityWarning, "grants", "far more than a lock needs")
}

// Two candidates at the highest verbosity of klog through all that can happen to their database.
func TestSecretIsInNoLogOfAnElectionWithOutages(t *testing.T) {
	admin, config := newTables(t)
	account := newAccount(t, config, ordinary...)
	network := newProxy(t, account.Addr)

	restore := klog.CaptureState()
	defer restore.Restore()
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	if err := flags.Set("v", "10"); err != nil {
		t.Fatal(err)
	}
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.Verbosity(10), ktesting.BufferLogs(true)))
	klog.SetLoggerWithOptions(logger, klog.ContextualLogger(true))
	logged := func() string { return logger.GetSink().(ktesting.Underlier).GetBuffer().String() }

	var events [2]eventRecorder
	var locks []*mysqllock.Lock
	var stops []func()
	for i := range events {
		lock, err := mysqllock.New(open(t, network.config(account)), "e", resourcelock.ResourceLockConfig{Identity: fmt.Sprint("candidate-", i), EventRecorder: &events[i]},
			mysqllock.WithOperationTimeout(hasty.operationTimeout()), mysqllock.WithServerClock())
		if err != nil {
			t.Fatal(err)
		}
		locks, stops = append(locks, lock), append(stops, start(t, lock, hasty, releasing, again).stop)
	}
	user := "'" + account.User + "'@'%'"
	killAll := func() {
		for s := range strings.FieldsSeq(table(t, admin, `SELECT ID FROM information_schema.PROCESSLIST WHERE USER = ?`, account.User)) {
			_, _ = admin.ExecContext(t.Context(), `KILL `+s) // it may have gone by itself
		}
	}
	for _, outage := range []struct {
		name       string
		begin, end func() // without an end, it is begun again until it is in the log
		logs       string // what is in the log then, of the driver, client-go or the server
	}{
		{"cut connections", network.cut, nil, "connection"},
		{"a black hole", network.blackHole, func() { network.cut(); network.forward() }, "deadline exceeded"},
		{"lost replies", network.swallowReplies, func() { network.cut(); network.forward() }, "deadline exceeded"},
		{"killed sessions", killAll, nil, "connection"},
		{"a table that is missing", func() { exec(t, admin, `RENAME TABLE election_records TO moved`) }, func() { exec(t, admin, `RENAME TABLE moved TO election_records`) }, "Error 1146"},
		{
			"a revoked privilege", func() { exec(t, admin, "REVOKE SELECT, UPDATE ON `"+config.DBName+"`.election_records FROM "+user) },
			func() { exec(t, admin, "GRANT SELECT, UPDATE ON `"+config.DBName+"`.election_records TO "+user) }, "Error 1142",
		},
		{"another password", func() {
			exec(t, admin, `ALTER USER `+user+` IDENTIFIED BY 'another-password'`)
			killAll()
		}, func() { exec(t, admin, `ALTER USER `+user+` IDENTIFIED BY '`+account.Passwd+`'`) }, "Error 1045"},
	} {
		eventually(t, time.Minute, "somebody leads before "+outage.name, func() bool {
			_, first := locks[0].FencingToken()
			_, second := locks[1].FencingToken()
			return first || second
		})
		before := len(logged())
		outage.begin()
		eventually(t, time.Minute, outage.name+" is in the log", func() bool {
			if outage.end == nil {
				outage.begin()
			}
			return strings.Contains(logged()[before:], outage.logs)
		})
		if outage.end != nil {
			outage.end()
		}
	}
	for _, stop := range stops {
		stop()
	}
	all := logged()
	wantNothingSecret(t, "the log", all, network.config(account))
	wantNothingSecret(t, "the log", all, account)
	if strings.Contains(all, "another-password") {
		t.Error("the log has a password")
	}
	n := 0
	for _, r := range events {
		for _, e := range r.events {
			n++
			wantNothingSecret(t, "an event", fmt.Sprint(e.Say, e.Reason, e.Object), account)
		}
	}
	if n == 0 {
		t.Error("no event was recorded")
	}
}

// What a server says is shown, but for addresses.
func TestSecretAddressesAreLeftOutOfAServersWords(t *testing.T) {
	for words, want := range map[string]string{
		"dial tcp 10.9.8.7:15999: connect: connection refused":        "dial tcp ...: connect: connection refused",
		"no backend at [fe80::1%eth0]:3306, 2001:db8::7 or ::1":       "no backend at ..., ... or ...",
		"backend db-vip.corp.example:6446 is down.":                   "backend ... is down.",
		"backend db-vip.corp.example is down":                         "backend ... is down",
		"uri=mysql://mysql-0.mysql:3306/app, addr:db-vip:6446":        "uri=mysql://.../app, ...",
		"Lost connection to backend 'shard-7:3306'":                   "Lost connection to backend '...'",
		"Can't connect to MySQL server on 'db7' (111)":                "Can't connect to MySQL server on '...' (111)",
		"Unknown MySQL server host 'db7' (-2)":                        "Unknown MySQL server host '...' (-2)",
		"Access denied for user 'a'@'db7' (using password: YES)":      "Access denied for user 'a'@'...' (using password: YES)",
		"client connected to '0.0.0.0:6446'":                          "client connected to '...'",
		"root:secret@tcp(db7)/app is wrong":                           "... is wrong",
		"Access denied; user u@tcp(db.example:3306)/ is unknown":      "Access denied; user ... is unknown",
		"Incorrect datetime value: '2026-11-25 12:30:05.123456'":      "",
		"Table 'mysqllock_test_1.election_records' doesn't exist":     "",
		"Unknown column 'app.election_records.ready' in 'SELECT'":     "",
		"You have an error near 'a.b = 12:30 AND x:=1' at line 1":     "",
		"Duplicate entry 'ops/nightly:12' for key 'PRIMARY'":          "",
		"target: shop.0.primary: 10.11.19-MariaDB-0+deb12u1, 9.7.4-2": "",
		"max_statement_time exceeded after 00:00:01, job:7, 5:30":     "",
	} {
		config := mysql.NewConfig()
		config.Net, config.Addr = "tcp", newRefusingServer(t, 1105, words)
		if want == "" {
			want = words
		}
		if err := get(t.Context(), newLock(t, open(t, config), "e", "a"))(); err == nil || err.Error() != `mysqllock: get "e": Error 1105: `+want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestSecretAddressIsShownNowhereInAServersWords(t *testing.T) {
	label := rapid.StringMatching(`[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,5})?`)
	port := rapid.Map(rapid.IntRange(1000, 65535), strconv.Itoa)
	bytesOf := func(n int) *rapid.Generator[[]byte] { return rapid.SliceOfN(rapid.Byte(), n, n) }
	ipv4 := rapid.Map(bytesOf(4), func(b []byte) string { return net.IP(b).String() })
	ipv6 := rapid.Map(bytesOf(16), func(b []byte) string {
		for i := range b { // with runs of zeros, which have a spelling of their own
			b[i] *= b[i/6*6] & 1
		}
		b[0] = 0x20
		return net.IP(b).String()
	})
	host := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(label, 3, 5).Draw(t, "labels"), ".")
	})
	between := []string{" ", "'", `"`, "(", ")", "[", "]", "=", "/", "//", ",", ". ", ";", ": ", " at ", "@"}
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.OneOf(ipv4, ipv6, host, label).Draw(t, "address")
		shown := secret
		if rapid.Bool().Draw(t, "has a port") || !strings.ContainsAny(secret, ".:") {
			if strings.Contains(secret, ":") {
				shown = "[" + secret + "]"
			}
			shown += ":" + port.Draw(t, "port")
		}
		if !strings.ContainsAny(secret, ".:") {
			secret = shown // any word, but for its port
		}
		words := "no backend" + rapid.SampledFrom(between).Draw(t, "before") + shown + rapid.SampledFrom(between).Draw(t, "after") + "is up"
		if text := mysqllock.PublicText(&mysql.MySQLError{Number: 1105, Message: words}); strings.Contains(text, secret) {
			t.Errorf("%q is shown as %q", words, text)
		}
	})
}

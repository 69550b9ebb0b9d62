package mysqllock_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

func TestOpenRefusesWhatItCannotUse(t *testing.T) {
	with := func(change func(*mysql.Config)) *mysql.Config {
		config := mysql.NewConfig()
		config.User, config.Passwd, config.Addr = "elector", password, "db.example:3306"
		change(config)
		return config
	}
	const advice = "; correct the config's Net, Addr, TLSConfig or ServerPubKey"
	for _, test := range []struct {
		name   string
		config *mysql.Config
		want   string
	}{
		{"no config", nil, "mysqllock: open: the config is nil; make one with ConfigFromEnv, mysql.ParseDSN or mysql.NewConfig"},
		{"an unknown TLS config", with(func(c *mysql.Config) { c.TLSConfig = "custom" }), "mysqllock: open: invalid value / unknown config name: custom" + advice},
		{"an unknown public key", with(func(c *mysql.Config) { c.ServerPubKey = "custom" }), "mysqllock: open: invalid value / unknown server pub key name: custom" + advice},
		{"a network without an address", with(func(c *mysql.Config) { c.Net, c.Addr = "pipe", "" }), "mysqllock: open: default addr for network 'pipe' unknown" + advice},
	} {
		t.Run(test.name, func(t *testing.T) {
			db, err := mysqllock.Open(test.config)
			if err == nil || db != nil {
				t.Fatalf("got pool %v, error %v", db, err)
			}
			if err.Error() != test.want {
				t.Errorf("\ngot  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestOpenNeitherConnectsNorChangesTheConfig(t *testing.T) {
	for _, params := range []map[string]string{nil, {}, {"autocommit": "0", "sql_mode": "''"}} {
		config, err := mysql.ParseDSN("elector:" + password + "@tcp(db.example)/app?charset=latin1&collation=gbk_chinese_ci&tls=skip-verify")
		if err != nil {
			t.Fatal(err)
		}
		config.Params = params
		before, n := config.Clone(), len(params)
		db := open(t, config)
		if !reflect.DeepEqual(config, before) || len(config.Params) != n {
			t.Errorf("\nwas %+v\nis  %+v", before, config)
		}
		if stats := db.Stats(); stats.OpenConnections != 0 || stats.MaxOpenConnections != 10 {
			t.Errorf("the pool has %d connections of %d", stats.OpenConnections, stats.MaxOpenConnections)
		}
	}
}

// recorder is a mysql.Logger of a program's own.
type recorder struct {
	mu   sync.Mutex
	text []string
}

func (r *recorder) Print(v ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text = append(r.text, fmt.Sprint(v...))
}

func TestOpenSendsTheDriversMessagesToKlog(t *testing.T) {
	const said = "could not use requested auth plugin 'exotic': this authentication plugin is not supported"
	own, def := &recorder{}, &recorder{}
	for _, test := range []struct {
		name    string
		config  func() *mysql.Config
		own     *recorder // which the messages go to
		verbose int
	}{
		{"the driver's own logger", mysql.NewConfig, nil, 2},
		{"the driver's own logger, below level 2", mysql.NewConfig, nil, 1},
		{"no logger", func() *mysql.Config { return &mysql.Config{AllowNativePasswords: true, MaxAllowedPacket: 1 << 20} }, nil, 2},
		{"a config's logger", func() *mysql.Config { c := mysql.NewConfig(); c.Logger = own; return c }, own, 2},
		{"a logger of SetLogger", func() *mysql.Config {
			drivers := mysql.NewConfig().Logger
			defer func() { _ = mysql.SetLogger(drivers) }()
			_ = mysql.SetLogger(def)
			return mysql.NewConfig()
		}, def, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer klog.CaptureState().Restore()
			logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.Verbosity(test.verbose), ktesting.BufferLogs(true)))
			klog.SetLoggerWithOptions(logger, klog.ContextualLogger(true))

			config := test.config()
			config.DialFunc = (&fakeServer{plugin: "exotic"}).dial
			db := open(t, config)
			if err := db.PingContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			logs := logger.GetSink().(ktesting.Underlier).GetBuffer().String()
			if got, want := strings.Contains(logs, said), test.own == nil && test.verbose >= 2; got != want {
				t.Errorf("klog has the message: %t, want %t:\n%s", got, want, logs)
			}
			// The address in an error that closing a connection returns.
			if strings.Contains(logs, "192.0.2.1") {
				t.Errorf("klog shows the server's address:\n%s", logs)
			}
			if test.own != nil && !slices.Contains(test.own.text, said) {
				t.Errorf("the program's logger has only %q", test.own.text)
			}
		})
	}
}

func TestOpenMakesAPoolThatOutlivesAServerThatAcceptsAndNeverAnswers(t *testing.T) {
	// database/sql connects in the name of those who wait for the pool, without a deadline:
	// attempts that hang would take the pool's places for ever.
	var answering atomic.Bool
	fake := &fakeServer{plugin: "mysql_native_password"}
	var mute []net.Conn
	var mu sync.Mutex
	config := mysql.NewConfig()
	config.Timeout = 50 * time.Millisecond
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if answering.Load() {
			return fake.dial(ctx, network, address)
		}
		client, server := net.Pipe()
		mu.Lock()
		defer mu.Unlock()
		mute = append(mute, server)
		return client, nil
	}
	t.Cleanup(func() {
		for _, conn := range mute {
			_ = conn.Close()
		}
	})
	db := open(t, config)

	var waiting sync.WaitGroup
	for range 3 * db.Stats().MaxOpenConnections {
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := db.PingContext(ctx); err == nil {
				t.Error("a server that doesn't answer was reached")
			}
		}()
	}
	waiting.Wait()

	answering.Store(true)
	var conns []*sql.Conn
	eventually(t, 10*time.Second, "every place in the pool can be used", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		// The last of the attempts may still fail now.
		if conn, err := db.Conn(ctx); err == nil {
			conns = append(conns, conn)
		}
		return len(conns) == db.Stats().MaxOpenConnections
	})
	for _, conn := range conns {
		_ = conn.Close()
	}
}

func TestOpenSaysThatConnectingTookTooLong(t *testing.T) {
	config := mysql.NewConfig()
	config.Timeout = 20 * time.Millisecond
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		t.Cleanup(func() { _ = server.Close() })
		return client, nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := open(t, config).PingContext(ctx)
	if err == nil || err.Error() != "no connection to the server within 20ms: context deadline exceeded" || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// TestOpenOnARealServer has a server of its own, with a certificate, as its parts change global
// variables.
func TestOpenOnARealServer(t *testing.T) {
	pki := newPKI(t)
	server, config := ownServer(t, "--ssl-ca="+pki.ca, "--ssl-cert="+pki.serverCert, "--ssl-key="+pki.serverKey)
	s := &realServer{Server: server, pki: pki, admin: open(t, server.Config()), database: config.DBName}
	if err := mysqllock.Migrate(t.Context(), open(t, s.config())); err != nil {
		t.Fatal(err)
	}
	t.Run("TLS is as the environment says", s.testTLS)
	t.Run("an account can require a client certificate", s.testClientCertificate)
	t.Run("accounts of each kind log in with and without TLS", s.testPlugins)
	t.Run("the session is fit for a lock whatever config and server say", s.testSession)
	t.Run("a statement is one round trip", s.testRoundTrips)
	t.Run("a read-only server's connection is discarded", s.testReadOnly)
	t.Run("a statement that was given up leaves the server soon", s.testAbandoned)
}

type realServer struct {
	*mysqltest.Server
	pki      *pki
	admin    *sql.DB
	database string
}

// config is the administrator's, with the database.
func (s *realServer) config() *mysql.Config {
	config := s.Server.Config()
	config.DBName = s.database
	return config
}

// account makes an account that may do what a lock does, and returns its configuration. how is what
// follows its name in CREATE USER, with {password}.
func (s *realServer) account(t *testing.T, name, how string) *mysql.Config {
	t.Helper()
	config := s.config()
	config.User, config.Passwd = name, password
	exec(t, s.admin, "CREATE USER "+name+"@'%' "+strings.ReplaceAll(how, "{password}", "'"+password+"'"))
	exec(t, s.admin, "GRANT SELECT, INSERT, UPDATE ON "+s.database+".* TO "+name+"@'%'")
	return config
}

func (s *realServer) testTLS(t *testing.T) {
	other := newPKI(t)
	base := environment(t, s.config())
	const (
		unknownCA = `mysqllock: get "e": tls: failed to verify certificate: x509: certificate signed by unknown authority`
		wrongName = `mysqllock: get "e": tls: failed to verify certificate: the server's certificate is not for the host name that was dialled`
	)
	for _, test := range []struct {
		name      string
		variables map[string]string
		encrypted bool
		err       string
	}{
		{"false", map[string]string{"MYSQL_TLS": "false"}, false, ""},
		{"unset", nil, false, ""},
		{"true with the server's CA", map[string]string{"MYSQL_TLS": "true", "MYSQL_TLS_CA": s.pki.ca}, true, ""},
		{"the server's CA alone", map[string]string{"MYSQL_TLS_CA": s.pki.ca}, true, ""},
		{"another name of the server", map[string]string{"MYSQL_TLS_CA": s.pki.ca, "MYSQL_TLS_SERVER_NAME": "db.internal"}, true, ""},
		{"skip-verify", map[string]string{"MYSQL_TLS": "skip-verify"}, true, ""},
		{"preferred", map[string]string{"MYSQL_TLS": "preferred"}, true, ""},
		{"another CA", map[string]string{"MYSQL_TLS_CA": other.ca}, false, unknownCA},
		{"true with the system's CAs", map[string]string{"MYSQL_TLS": "true"}, false, unknownCA},
		{"not a name of the server", map[string]string{"MYSQL_TLS_CA": s.pki.ca, "MYSQL_TLS_SERVER_NAME": "other.internal"}, false, wrongName},
	} {
		t.Run(test.name, func(t *testing.T) {
			cipher, err := connect(t, base, test.variables)
			if test.err == "" && err != nil || (cipher != "") != test.encrypted {
				t.Errorf("cipher %q, error %v", cipher, err)
			}
			if test.err == "" {
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), test.err) {
				t.Fatalf("\ngot  %v\nwant %s...", err, test.err)
			}
			for _, secret := range []string{"127.0.0.1", ".internal", base["MYSQL_PORT"], base["MYSQL_PASSWORD"]} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q is in %v", secret, err)
				}
			}
		})
	}
}

func (s *realServer) testClientCertificate(t *testing.T) {
	config := s.account(t, "certified", "IDENTIFIED BY {password} REQUIRE X509")
	base := environment(t, config)
	base["MYSQL_TLS_CA"] = s.pki.ca
	cipher, err := connect(t, base, map[string]string{"MYSQL_TLS_CERT": s.pki.clientCert, "MYSQL_TLS_KEY": s.pki.clientKey})
	if err != nil || cipher == "" {
		t.Errorf("with a certificate: cipher %q, error %v", cipher, err)
	}
	_, err = connect(t, base)
	want := `mysqllock: get "e": Error 1045 (28000): Access denied for user 'certified'@'...' (using password: YES); check the user and its password (MYSQL_USER, MYSQL_PASSWORD), and whether the account requires TLS (MYSQL_TLS) or a certificate (MYSQL_TLS_CERT)`
	if err == nil || err.Error() != want {
		t.Errorf("without one:\ngot  %v\nwant %s", err, want)
	}
}

func (s *realServer) testPlugins(t *testing.T) {
	if s.MariaDB() {
		// A package of its own in some distributions, so that it may be missing.
		if _, err := s.admin.ExecContext(t.Context(), "INSTALL SONAME 'auth_ed25519'"); err != nil {
			t.Logf("no ed25519: %v", err)
		}
	}
	rows, err := s.admin.QueryContext(t.Context(), "SELECT PLUGIN_NAME FROM information_schema.PLUGINS WHERE PLUGIN_TYPE = 'AUTHENTICATION' AND PLUGIN_STATUS = 'ACTIVE'")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var plugins []string
	for rows.Next() {
		var plugin string
		if err := rows.Scan(&plugin); err != nil {
			t.Fatal(err)
		}
		if slices.Contains([]string{"caching_sha2_password", "sha256_password", "mysql_native_password", "ed25519"}, plugin) {
			plugins = append(plugins, plugin)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	t.Logf("plugins: %v", plugins)
	if len(plugins) == 0 {
		t.Error("the server offers none of the plugins that the driver knows")
	}
	for _, plugin := range plugins {
		how := "IDENTIFIED WITH " + plugin + " BY {password}"
		if s.MariaDB() {
			how = "IDENTIFIED VIA " + plugin + " USING PASSWORD({password})"
		}
		// An account for each way: caching_sha2_password takes another path, and needs no RSA key,
		// once the server has the password in its cache.
		for way, variables := range map[string]map[string]string{"plain": nil, "tls": {"MYSQL_TLS_CA": s.pki.ca}} {
			base := environment(t, s.account(t, plugin[:5]+"_"+way, how))
			for _, attempt := range []string{"first", "second"} {
				cipher, err := connect(t, base, variables)
				if err != nil || (cipher != "") != (way == "tls") {
					t.Errorf("%s, %s, %s time: cipher %q, error %v", plugin, way, attempt, cipher, err)
				}
			}
			base["MYSQL_PASSWORD"] = "wrong-" + password
			_, err := connect(t, base, variables)
			if err == nil || !strings.Contains(err.Error(), "Access denied for user") || strings.Contains(err.Error(), password) || strings.Contains(err.Error(), "127.0.0.1") {
				t.Errorf("%s, %s, wrong password: %v", plugin, way, err)
			}
		}
	}
}

func (s *realServer) testSession(t *testing.T) {
	account := s.account(t, "plain", "IDENTIFIED BY {password}")
	dsn := fmt.Sprintf("%s:%s@tcp(%s)/%s?", account.User, account.Passwd, account.Addr, account.DBName)
	const defaults = "1 utf8mb4 utf8mb4 utf8mb4 utf8mb4 1 1"
	for _, test := range []struct {
		name, dsn, want string
	}{
		{"nothing", dsn, defaults},
		{"latin1", dsn + "charset=latin1&collation=latin1_swedish_ci", defaults},
		{"a collation alone", dsn + "collation=latin1_swedish_ci", defaults},
		{"a collation that makes interpolation unsafe", dsn + "charset=gbk&collation=gbk_chinese_ci", defaults},
		{"a collation that no server has", dsn + "charset=utf8mb4&collation=utf8mb4_none", defaults},
		{"character sets as variables", dsn + "character_set_client=gbk&@@session.character_set_connection=latin1&`character_set_results`=latin1&SESSION collation_connection=latin1_swedish_ci", defaults},
		{"autocommit off", dsn + "autocommit=0", defaults},
		{"autocommit off in other words", dsn + "@@Local.AutoCommit=OFF", defaults},
		{"lock waits of its own", dsn + "innodb_lock_wait_timeout=7&@@session.lock_wait_timeout=8", "1 utf8mb4 utf8mb4 utf8mb4 utf8mb4 7 8"},
		{"a variable that Open doesn't know", dsn + "sql_mode=''", defaults},
	} {
		t.Run(test.name, func(t *testing.T) {
			// init_connect is not for administrators.
			for _, server := range []string{"", "SET NAMES latin1, autocommit = 0, innodb_lock_wait_timeout = 49"} {
				exec(t, s.admin, "SET GLOBAL init_connect = ?", server)
				config, err := mysql.ParseDSN(test.dsn)
				if err != nil {
					t.Fatal(err)
				}
				db := open(t, config)
				var got string
				if err := db.QueryRowContext(t.Context(), `SELECT CONCAT_WS(' ', @@autocommit = 1, @@character_set_client, @@character_set_connection,
					@@character_set_results, LEFT(@@collation_connection, 7), @@innodb_lock_wait_timeout, @@lock_wait_timeout)`).Scan(&got); err != nil {
					t.Fatal(err)
				}
				if got != test.want {
					t.Errorf("with the server's %q:\ngot  %s\nwant %s", server, got, test.want)
				}
				const text = "größe 東 😀 ¿'; -- \\' \x00 \""
				var same string
				if err := db.QueryRowContext(t.Context(), "SELECT ?", text).Scan(&same); err != nil || same != text {
					t.Errorf("got %q, error %v", same, err)
				}
			}
		})
	}
	exec(t, s.admin, "SET GLOBAL init_connect = ''")
}

func (s *realServer) testRoundTrips(t *testing.T) {
	var sent []string
	config := s.config()
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return recordingConn{conn, &sent}, err
	}
	db := open(t, config)
	if err := db.PingContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	const query = "\x03"
	queries := func() (q []string) {
		for _, packet := range sent {
			if strings.HasPrefix(packet, query+"S") {
				q = append(q, packet)
			}
		}
		return q
	}
	if got := queries(); len(got) != 2 || got[0] != query+"SET NAMES utf8mb4" || !strings.HasPrefix(got[1], query+"SET ") {
		t.Errorf("after the login: %q; want SET NAMES and one SET for the variables", got)
	}

	sent = nil
	var one int
	if err := db.QueryRowContext(t.Context(), "SELECT ? FROM DUAL WHERE ? = 'x'", 1, "x").Scan(&one); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "UPDATE election_records SET leader_name = ? WHERE election_name = ?", "me", "none")
	want := []string{query + "SELECT 1 FROM DUAL WHERE 'x' = 'x'", query + "UPDATE election_records SET leader_name = 'me' WHERE election_name = 'none'"}
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Error(diff)
	}
}

func (s *realServer) testReadOnly(t *testing.T) {
	config := s.account(t, "writer", "IDENTIFIED BY {password}")
	db := open(t, config)
	const write = "INSERT INTO election_fences (election_name, fencing_token, leader_uid) VALUES (?, 0, '')"
	session := func() (id int64) {
		t.Helper()
		if err := db.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	exec(t, db, write, "before")
	before := session()

	exec(t, s.admin, "SET GLOBAL read_only = 1")
	defer exec(t, s.admin, "SET GLOBAL read_only = 0") // when an assertion fails
	_, err := db.ExecContext(t.Context(), write, "during")
	if err == nil {
		t.Error("a read-only server took a write")
	}
	t.Logf("read-only: %v", err)
	if after := session(); after == before {
		t.Errorf("the connection %d of the read-only server is still in the pool", before)
	}
	exec(t, s.admin, "SET GLOBAL read_only = 0")
	exec(t, db, write, "after")
}

func (s *realServer) testAbandoned(t *testing.T) {
	db := open(t, s.config())
	exec(t, db, "INSERT INTO election_fences (election_name, fencing_token, leader_uid) VALUES ('held', 0, '')")
	holder, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback() }()
	const wait = "UPDATE election_fences SET fencing_token = 1 WHERE election_name = 'held'"
	if _, err := holder.ExecContext(t.Context(), wait); err != nil {
		t.Fatal(err)
	}
	waiting := func() (n int) {
		t.Helper()
		if err := s.admin.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO = ?", wait).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	gaveUp := make(chan error, 1)
	go func() {
		_, err := db.ExecContext(ctx, wait)
		gaveUp <- err
	}()
	eventually(t, 5*time.Second, "the statement waits at the server", func() bool { return waiting() == 1 })
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	eventually(t, 10*time.Second, "the statement has left the server", func() bool { return waiting() == 0 })
}

// environment is config as ConfigFromEnv reads it.
func environment(t *testing.T, config *mysql.Config) map[string]string {
	t.Helper()
	host, port, err := net.SplitHostPort(config.Addr)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"MYSQL_USER": config.User, "MYSQL_PASSWORD": config.Passwd, "MYSQL_HOST": host, "MYSQL_PORT": port, "MYSQL_DBNAME": config.DBName,
	}
}

// connect opens a pool for an environment and reads an election that is not there: the error is
// what a lock says. Also the session's cipher.
func connect(t *testing.T, environment ...map[string]string) (cipher string, _ error) {
	t.Helper()
	setEnv(t, environment...)
	config, err := mysqllock.ConfigFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	config.Logger = &mysql.NopLogger{}
	db := open(t, config)
	if _, _, err := newLock(t, db, "e", "me", mysqllock.WithOperationTimeout(10*time.Second)).Get(t.Context()); !strings.Contains(err.Error(), "not found") {
		return "", err
	}
	var name string
	if err := db.QueryRowContext(t.Context(), "SHOW SESSION STATUS LIKE 'Ssl_cipher'").Scan(&name, &cipher); err != nil {
		t.Fatal(err)
	}
	return cipher, nil
}

// recordingConn counts what is sent on a connection that isn't encrypted.
type recordingConn struct {
	net.Conn
	sent *[]string
}

func (c recordingConn) Write(b []byte) (int, error) {
	*c.sent = append(*c.sent, string(b[4:]))
	return c.Conn.Write(b)
}

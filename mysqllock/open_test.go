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
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
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

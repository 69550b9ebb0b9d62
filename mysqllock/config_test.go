package mysqllock_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

func TestConfigFromEnvReadsTheEnvironment(t *testing.T) {
	pki := newPKI(t)
	for _, test := range []struct {
		name        string
		environment map[string]string
		want        func(*mysql.Config)
	}{
		{"the least", nil, nil},
		{"an empty password", map[string]string{"MYSQL_PASSWORD": ""}, func(c *mysql.Config) { c.Passwd = "" }},
		{"a password that is kept as it is", map[string]string{"MYSQL_PASSWORD": " 'p\n"}, func(c *mysql.Config) { c.Passwd = " 'p\n" }},
		{"empty variables", map[string]string{"MYSQL_PORT": "", "MYSQL_TLS": "", "MYSQL_TLS_CA": "", "MYSQL_TLS_CERT": "", "MYSQL_TLS_KEY": "", "MYSQL_TLS_SERVER_NAME": ""}, nil},
		{"a port", map[string]string{"MYSQL_PORT": "65535"}, func(c *mysql.Config) { c.Addr = "db.example:65535" }},
		{"an IPv4 address", map[string]string{"MYSQL_HOST": "192.0.2.1"}, func(c *mysql.Config) { c.Addr = "192.0.2.1:3306" }},
		{"an IPv6 address", map[string]string{"MYSQL_HOST": "2001:db8::1", "MYSQL_PORT": "3307"}, func(c *mysql.Config) { c.Addr = "[2001:db8::1]:3307" }},
		{"an IPv6 address in brackets", map[string]string{"MYSQL_HOST": "[2001:db8::1]"}, func(c *mysql.Config) { c.Addr = "[2001:db8::1]:3306" }},
		{"a host name with an underscore", map[string]string{"MYSQL_HOST": "my_db"}, func(c *mysql.Config) { c.Addr = "my_db:3306" }},
		{"a socket", map[string]string{"MYSQL_HOST": "/run/mysqld/mysqld.sock", "MYSQL_PORT": "3307"}, func(c *mysql.Config) { c.Net, c.Addr = "unix", "/run/mysqld/mysqld.sock" }},
		{"no TLS", map[string]string{"MYSQL_TLS": "false"}, nil},
		{"TLS", map[string]string{"MYSQL_TLS": "true"}, func(c *mysql.Config) {
			c.TLSConfig, c.TLS = "true", &tls.Config{MinVersion: tls.VersionTLS12}
		}},
		{"TLS that isn't verified", map[string]string{"MYSQL_TLS": "skip-verify"}, func(c *mysql.Config) {
			c.TLSConfig, c.TLS = "skip-verify", &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
		}},
		{"TLS if there is any", map[string]string{"MYSQL_TLS": "preferred"}, func(c *mysql.Config) {
			c.TLSConfig, c.TLS = "preferred", &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
			c.AllowFallbackToPlaintext = true
		}},
		{"a server name alone", map[string]string{"MYSQL_TLS_SERVER_NAME": "db.internal"}, func(c *mysql.Config) {
			c.TLSConfig, c.TLS = "true", &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "db.internal"}
		}},
		{"a CA alone", map[string]string{"MYSQL_TLS_CA": pki.ca}, func(c *mysql.Config) {
			c.TLSConfig, c.TLS = "true", &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pki.pool}
		}},
		{"TLS on a socket", map[string]string{"MYSQL_HOST": "/s", "MYSQL_TLS_SERVER_NAME": "db.internal"}, func(c *mysql.Config) {
			c.Net, c.Addr = "unix", "/s"
			c.TLSConfig, c.TLS = "true", &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "db.internal"}
		}},
		{"TLS that isn't verified on a socket", map[string]string{"MYSQL_HOST": "/s", "MYSQL_TLS": "skip-verify"}, func(c *mysql.Config) {
			c.Net, c.Addr = "unix", "/s"
			c.TLSConfig, c.TLS = "skip-verify", &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			setEnv(t, minimal(), test.environment)
			got, err := mysqllock.ConfigFromEnv()
			if err != nil {
				t.Fatal(err)
			}
			want := mysql.NewConfig()
			want.User, want.Passwd, want.Net, want.Addr, want.DBName = "elector", password, "tcp", "db.example:3306", "app"
			if test.want != nil {
				test.want(want)
			}
			if !sameTLS(got.TLS, want.TLS) {
				t.Errorf("TLS:\ngot  %+v\nwant %+v", got.TLS, want.TLS)
			}
			got.TLS, want.TLS = nil, nil
			if !reflect.DeepEqual(got, want) {
				t.Errorf("\ngot  %+v\nwant %+v", got, want)
			}
		})
	}
}

func sameTLS(a, b *tls.Config) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.MinVersion == b.MinVersion && a.ServerName == b.ServerName && a.InsecureSkipVerify == b.InsecureSkipVerify &&
		a.RootCAs.Equal(b.RootCAs) && len(a.Certificates) == 0 && (a.GetClientCertificate == nil) == (b.GetClientCertificate == nil)
}

func TestConfigFromEnvNamesAllThatIsWrong(t *testing.T) {
	const prefix = "mysqllock: read the configuration from the environment: "
	const (
		noUser     = "MYSQL_USER is not set (set it to the name of the account)"
		noPassword = "MYSQL_PASSWORD is not set (set it, to the empty string if the account has no password)"
		noHost     = "MYSQL_HOST is not set (set it to the server's host name or address, or to the path of its socket)"
		noDatabase = "MYSQL_DBNAME is not set (set it to the name of the database that holds the tables)"
		hasPort    = "MYSQL_HOST has a port (put the port in MYSQL_PORT, and the host alone in MYSQL_HOST)"
		noHostName = "MYSQL_HOST is neither a host name, nor an address, nor the path of a socket (set it to the host alone, without user, protocol, port or database)"
		noPort     = "MYSQL_PORT is no number from 1 to 65535 (set it to the server's port, or leave it unset for 3306)"
		noMode     = "MYSQL_TLS is not a mode (set it to false, true, skip-verify or preferred, or leave it unset)"
		noKey      = "MYSQL_TLS_KEY is not set (set it, or unset MYSQL_TLS_CERT: a certificate and its private key go together)"
		space      = " begins or ends with white space, or has a control character (remove that; often it is the line end of the file that the value came from)"
		caFile     = " (set it to the path of a PEM file with the authorities' certificates)"
		pairFiles  = " (set them to the paths of PEM files with the client's certificate and its private key)"
		pemText    = " holds PEM text (write that to a file, and set the variable to the file's path)"
		disabled   = " is set, but MYSQL_TLS=false means no TLS (unset it, or set MYSQL_TLS=true)"
	)
	unverified := func(mode string) string {
		return " is set, but MYSQL_TLS=" + mode + " means that no certificate is verified (unset it, or set MYSQL_TLS=true)"
	}
	pki := newPKI(t)
	noFile := filepath.Join(t.TempDir(), "none.pem")
	key, err := os.ReadFile(pki.clientKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name        string
		environment map[string]string // besides minimal; "unset" unsets
		want        []string
	}{
		{
			"nothing is set",
			map[string]string{"MYSQL_USER": "unset", "MYSQL_PASSWORD": "unset", "MYSQL_HOST": "unset", "MYSQL_DBNAME": "unset"},
			[]string{noUser, noPassword, noHost, noDatabase},
		},
		{
			"all is empty",
			map[string]string{"MYSQL_USER": "", "MYSQL_PASSWORD": "", "MYSQL_HOST": "", "MYSQL_DBNAME": ""},
			[]string{noUser, noHost, noDatabase},
		},
		{
			"all is wrong",
			map[string]string{
				"MYSQL_USER": "elector\n", "MYSQL_PASSWORD": "unset", "MYSQL_HOST": "db:3307", "MYSQL_PORT": "0", "MYSQL_DBNAME": strings.Repeat("d", 65),
				"MYSQL_TLS": "yes", "MYSQL_TLS_CA": noFile, "MYSQL_TLS_CERT": noFile, "MYSQL_TLS_SERVER_NAME": " db",
			},
			[]string{
				"MYSQL_USER" + space, noPassword, hasPort, noPort, "MYSQL_DBNAME has more than 64 characters (set it to the name of the database that holds the tables)",
				"MYSQL_TLS_CA can't be read: no such file or directory" + caFile, noKey, "MYSQL_TLS_SERVER_NAME" + space, noMode,
			},
		},
		{"a host with a port", map[string]string{"MYSQL_HOST": "db:3307"}, []string{hasPort}},
		{"an IPv6 address with a port", map[string]string{"MYSQL_HOST": "[2001:db8::1]:3307"}, []string{hasPort}},
		{"a host with an empty port", map[string]string{"MYSQL_HOST": "db:"}, []string{hasPort}},
		{"a URL as host", map[string]string{"MYSQL_HOST": "tcp://db:3306"}, []string{noHostName}},
		{"a DSN as host", map[string]string{"MYSQL_HOST": "elector:" + password + "@tcp(db)/app"}, []string{noHostName}},
		{"user and password before the host", map[string]string{"MYSQL_HOST": "elector:" + password}, []string{noHostName}},
		{"two hosts", map[string]string{"MYSQL_HOST": "db1,db2"}, []string{noHostName}},
		{"a line end after the host", map[string]string{"MYSQL_HOST": "db\n"}, []string{"MYSQL_HOST" + space}},
		{"a port that is no number", map[string]string{"MYSQL_PORT": "mysql"}, []string{noPort}},
		{"a port that is too large", map[string]string{"MYSQL_PORT": "65536"}, []string{noPort}},
		{"a negative port", map[string]string{"MYSQL_PORT": "-1"}, []string{noPort}},
		{
			"the port that Kubernetes sets for a Service named mysql",
			map[string]string{"MYSQL_PORT": "tcp://10.0.0.11:3306"},
			[]string{"MYSQL_PORT is a URL, as Kubernetes sets it where a Service is named mysql (set MYSQL_PORT in the container's env, for example to 3306, or enableServiceLinks: false in the pod's spec)"},
		},
		{"a mode in capitals", map[string]string{"MYSQL_TLS": "TRUE"}, []string{noMode}},
		{
			"no TLS, but its settings",
			map[string]string{"MYSQL_TLS": "false", "MYSQL_TLS_CA": pki.ca, "MYSQL_TLS_CERT": pki.clientCert, "MYSQL_TLS_KEY": pki.clientKey, "MYSQL_TLS_SERVER_NAME": "db"},
			[]string{"MYSQL_TLS_CA" + disabled, "MYSQL_TLS_CERT" + disabled, "MYSQL_TLS_KEY" + disabled, "MYSQL_TLS_SERVER_NAME" + disabled},
		},
		{"a CA that would not be asked", map[string]string{"MYSQL_TLS": "skip-verify", "MYSQL_TLS_CA": pki.ca}, []string{"MYSQL_TLS_CA" + unverified("skip-verify")}},
		{"a server name that would not be compared", map[string]string{"MYSQL_TLS": "preferred", "MYSQL_TLS_SERVER_NAME": "db"}, []string{"MYSQL_TLS_SERVER_NAME" + unverified("preferred")}},
		{
			"a socket and no server name",
			map[string]string{"MYSQL_HOST": "/s", "MYSQL_TLS": "true"},
			[]string{"MYSQL_TLS_SERVER_NAME is not set (set it to the name in the server's certificate: a socket has none to verify)"},
		},
		{"a CA file without a certificate", map[string]string{"MYSQL_TLS_CA": pki.clientKey}, []string{"MYSQL_TLS_CA has no certificate in PEM form" + caFile}},
		{"a folder for a CA file", map[string]string{"MYSQL_TLS_CA": t.TempDir()}, []string{"MYSQL_TLS_CA can't be read: is a directory" + caFile}},
		{
			"a key without a certificate",
			map[string]string{"MYSQL_TLS_KEY": pki.clientKey},
			[]string{"MYSQL_TLS_CERT is not set (set it, or unset MYSQL_TLS_KEY: a certificate and its private key go together)"},
		},
		{"a certificate without a key", map[string]string{"MYSQL_TLS_CERT": pki.clientCert}, []string{noKey}},
		{
			"no key file",
			map[string]string{"MYSQL_TLS_CERT": pki.clientCert, "MYSQL_TLS_KEY": noFile},
			[]string{"MYSQL_TLS_CERT and MYSQL_TLS_KEY can't be read: no such file or directory" + pairFiles},
		},
		{
			"another certificate's key",
			map[string]string{"MYSQL_TLS_CERT": pki.clientCert, "MYSQL_TLS_KEY": pki.serverKey},
			[]string{"MYSQL_TLS_CERT and MYSQL_TLS_KEY can't be used: tls: private key does not match public key" + pairFiles},
		},
		{"the key itself", map[string]string{"MYSQL_TLS_CERT": pki.clientCert, "MYSQL_TLS_KEY": string(key)}, []string{"MYSQL_TLS_KEY" + pemText}},
	} {
		t.Run(test.name, func(t *testing.T) {
			setEnv(t, minimal(), test.environment)
			for name, value := range test.environment {
				if value == "unset" {
					if err := os.Unsetenv(name); err != nil {
						t.Fatal(err)
					}
				}
			}
			config, err := mysqllock.ConfigFromEnv()
			if err == nil || config != nil {
				t.Fatalf("got config %v, error %v", config, err)
			}
			if diff := cmp.Diff(prefix+strings.Join(test.want, "; "), err.Error()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestConfigFromEnvShowsNoSecret(t *testing.T) {
	// Whoever fills a template in puts a secret in each place, sooner or later.
	const word = "hunter2"
	for _, variable := range variables {
		for _, value := range []string{
			word, word + "\n", " " + word, word + ":" + word, word + ":3306", "elector:" + word + "@db", "tcp://" + word,
			"elector:" + word + "@tcp(db:3306)/app", "/" + word, "-----BEGIN PRIVATE KEY-----\n" + word, strings.Repeat(word, 1000),
		} {
			setEnv(t, minimal(), map[string]string{variable: value})
			if _, err := mysqllock.ConfigFromEnv(); err != nil && (strings.Contains(err.Error(), word) || strings.Contains(err.Error(), password)) {
				t.Errorf("%s=%q: %v", variable, value, err)
			}
		}
	}
}

func TestConfigFromEnvAsADSNDoesNotLoseItsTLS(t *testing.T) {
	for _, mode := range []string{"true", "skip-verify", "preferred"} {
		setEnv(t, minimal(), map[string]string{"MYSQL_TLS": mode})
		config, err := mysqllock.ConfigFromEnv()
		if err != nil {
			t.Fatal(err)
		}
		again, err := mysql.ParseDSN(config.FormatDSN())
		if err != nil {
			t.Fatal(err)
		}
		if again.TLS == nil || again.TLS.InsecureSkipVerify != config.TLS.InsecureSkipVerify {
			t.Errorf("MYSQL_TLS=%s became %+v", mode, again.TLS)
		}
	}
}

func TestConfigFromEnvReadsARenewedClientCertificate(t *testing.T) {
	pki, renewed := newPKI(t), newPKI(t)
	setEnv(t, minimal(), map[string]string{"MYSQL_TLS_CERT": pki.clientCert, "MYSQL_TLS_KEY": pki.clientKey})
	config, err := mysqllock.ConfigFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		t.Helper()
		certificate, err := config.TLS.GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return certificate.Leaf.SerialNumber.String()
	}
	before := serial()
	rename(t, renewed.clientCert, pki.clientCert)
	_, err = config.TLS.GetClientCertificate(nil)
	want := "the client's certificate (MYSQL_TLS_CERT, MYSQL_TLS_KEY) can't be used: tls: private key does not match public key"
	if err == nil || err.Error() != want {
		t.Errorf("with the old key: %v", err)
	}
	rename(t, renewed.clientKey, pki.clientKey)
	if after := serial(); after == before {
		t.Errorf("still certificate %s", after)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

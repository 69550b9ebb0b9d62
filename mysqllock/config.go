package mysqllock

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-sql-driver/mysql"
)

// The configuration of a connection, from the environment.

// ConfigFromEnv reads the configuration of a connection from the environment:
//
//	MYSQL_USER             the account
//	MYSQL_PASSWORD         its password; must be set, may be empty
//	MYSQL_HOST             the server's host name or address, or the path of its
//	                       unix socket (what begins with "/")
//	MYSQL_PORT             default 3306; unused with a socket
//	MYSQL_DBNAME           the database that holds the tables
//	MYSQL_TLS              true: encrypt, and verify the server's certificate;
//	                       skip-verify: encrypt, verify nothing;
//	                       preferred: skip-verify if the server offers TLS, else
//	                       no encryption; false (default): no encryption
//	MYSQL_TLS_CA           PEM file of the certificate authorities to trust;
//	                       default: the system's
//	MYSQL_TLS_CERT         PEM file of the client's certificate
//	MYSQL_TLS_KEY          PEM file of its private key
//	MYSQL_TLS_SERVER_NAME  the name that the server's certificate must have;
//	                       default: MYSQL_HOST
//
// A variable that is set to the empty string counts as unset, apart from MYSQL_PASSWORD. A file or
// a server name makes MYSQL_TLS true if it is unset. Only MYSQL_TLS=true protects against a man in
// the middle; in the other modes an impostor may even receive the password.
//
// The client's certificate and key are read again for each connection, so that they can be renewed
// while the process runs; the authorities are read once.
//
// One error names every variable that is missing or can't be used, and no variable's value. Nothing
// is connected or looked up.
func ConfigFromEnv() (*mysql.Config, error) {
	var e environment
	config := mysql.NewConfig()
	config.User = e.required("MYSQL_USER", "set it to the name of the account")
	var set bool
	if config.Passwd, set = os.LookupEnv("MYSQL_PASSWORD"); !set {
		e.refuse("MYSQL_PASSWORD", errors.New("is not set"), "set it, to the empty string if the account has no password")
	}
	config.Net, config.Addr = e.address()
	config.DBName = e.required("MYSQL_DBNAME", "set it to the name of the database that holds the tables")
	if utf8.RuneCountInString(config.DBName) > 64 {
		e.refuse("MYSQL_DBNAME", errors.New("has more than 64 characters"), "set it to the name of the database that holds the tables")
	}
	config.TLS, config.TLSConfig = e.tls(config.Net)
	// What the driver makes of the name "preferred".
	config.AllowFallbackToPlaintext = config.TLSConfig == "preferred"
	if len(e.problems) > 0 {
		return nil, &opError{op: "read the configuration from the environment", cause: e.problems} // each with its own remedy
	}
	return config, nil
}

// environment collects what is wrong with the environment, in the order in which the variables are
// read. The texts never show a value: a password in the wrong variable would end up in the log.
type environment struct {
	problems problems
}

type problems []error

func (p problems) Error() string {
	var texts []string
	for _, err := range p {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

func (p problems) Unwrap() []error { return p }

func (e *environment) refuse(variable string, cause error, remedy string) {
	e.problems = append(e.problems, fmt.Errorf("%s %w (%s)", variable, cause, remedy))
}

// text reads a variable that is a name or a path; "" if it can't be used.
func (e *environment) text(variable string) string {
	value := os.Getenv(variable)
	switch {
	case strings.Contains(value, "-----BEGIN"): // in one of the variables for files
		e.refuse(variable, errors.New("holds PEM text"), "write that to a file, and set the variable to the file's path")
		return ""
	case strings.TrimSpace(value) != value, strings.ContainsFunc(value, unicode.IsControl):
		e.refuse(variable, errors.New("begins or ends with white space, or has a control character"),
			"remove that; often it is the line end of the file that the value came from")
		return ""
	}
	return value
}

func (e *environment) required(variable, remedy string) string {
	if os.Getenv(variable) == "" {
		e.refuse(variable, errors.New("is not set"), remedy)
	}
	return e.text(variable)
}

// address reads MYSQL_HOST and MYSQL_PORT.
func (e *environment) address() (network, address string) {
	host := e.host()
	port := e.port()
	if strings.HasPrefix(host, "/") {
		return "unix", host
	}
	return "tcp", net.JoinHostPort(host, port)
}

func (e *environment) host() string {
	host := e.required("MYSQL_HOST", "set it to the server's host name or address, or to the path of its socket")
	if host == "" || strings.HasPrefix(host, "/") {
		return host
	}
	if isHost(host) {
		return strings.Trim(host, "[]")
	}
	cause, remedy := "is neither a host name, nor an address, nor the path of a socket",
		"set it to the host alone, without user, protocol, port or database"
	if h, p, err := net.SplitHostPort(host); err == nil && isHost(h) && strings.Trim(p, "0123456789") == "" {
		cause, remedy = "has a port", "put the port in MYSQL_PORT, and the host alone in MYSQL_HOST"
	}
	e.refuse("MYSQL_HOST", errors.New(cause), remedy)
	return ""
}

func isHost(s string) bool {
	address := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		address = s[1 : len(s)-1]
	}
	if _, err := netip.ParseAddr(address); err == nil {
		return true
	}
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(".-_", r)
	})
}

func (e *environment) port() string {
	value := os.Getenv("MYSQL_PORT")
	if value == "" {
		return "3306"
	}
	port, err := strconv.ParseUint(value, 10, 16)
	switch {
	case err == nil && port > 0:
		return strconv.FormatUint(port, 10)
	case strings.HasPrefix(value, "tcp://"):
		e.refuse("MYSQL_PORT", errors.New("is a URL, as Kubernetes sets it where a Service is named mysql"),
			"set MYSQL_PORT in the container's env, for example to 3306, or enableServiceLinks: false in the pod's spec")
	default:
		e.refuse("MYSQL_PORT", errors.New("is no number from 1 to 65535"), "set it to the server's port, or leave it unset for 3306")
	}
	return ""
}

// tls reads the MYSQL_TLS variables. The mode that it also returns is for the config's TLSConfig:
// the driver needs only the tls.Config, but that can't be put in a DSN, and a DSN made from the
// config must not mean plain text.
func (e *environment) tls(network string) (config *tls.Config, mode string) {
	mode = os.Getenv("MYSQL_TLS")
	config = &tls.Config{MinVersion: tls.VersionTLS12}

	if file := e.text("MYSQL_TLS_CA"); file != "" {
		var err error
		if config.RootCAs, err = readAuthorities(file); err != nil {
			e.refuse("MYSQL_TLS_CA", err, "set it to the path of a PEM file with the authorities' certificates")
		}
	}
	cert, key := e.text("MYSQL_TLS_CERT"), e.text("MYSQL_TLS_KEY")
	switch given, missing := "MYSQL_TLS_CERT", "MYSQL_TLS_KEY"; {
	case (os.Getenv(given) == "") != (os.Getenv(missing) == ""):
		if os.Getenv(given) == "" {
			given, missing = missing, given
		}
		e.refuse(missing, errors.New("is not set"), "set it, or unset "+given+": a certificate and its private key go together")
	case cert != "" && key != "":
		if _, err := readKeyPair(cert, key); err != nil {
			e.refuse("MYSQL_TLS_CERT and MYSQL_TLS_KEY", err, "set them to the paths of PEM files with the client's certificate and its private key")
			break
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			certificate, err := readKeyPair(cert, key)
			if err != nil {
				return nil, fmt.Errorf("the client's certificate (MYSQL_TLS_CERT, MYSQL_TLS_KEY) %w", err)
			}
			return &certificate, nil
		}
	}
	config.ServerName = e.text("MYSQL_TLS_SERVER_NAME")

	// What is set, and by which modes it would be ignored.
	for _, v := range []struct {
		name      string
		verifying bool // means something only if the server is verified
	}{{"MYSQL_TLS_CA", true}, {"MYSQL_TLS_CERT", false}, {"MYSQL_TLS_KEY", false}, {"MYSQL_TLS_SERVER_NAME", true}} {
		if os.Getenv(v.name) == "" {
			continue
		}
		switch mode {
		case "":
			mode = "true"
		case "false":
			e.refuse(v.name, errors.New("is set, but MYSQL_TLS=false means no TLS"), "unset it, or set MYSQL_TLS=true")
		case "skip-verify", "preferred":
			if v.verifying {
				e.refuse(v.name, fmt.Errorf("is set, but MYSQL_TLS=%s means that no certificate is verified", mode), "unset it, or set MYSQL_TLS=true")
			}
		}
	}
	switch mode {
	case "", "false":
		return nil, ""
	case "true":
		if network == "unix" && os.Getenv("MYSQL_TLS_SERVER_NAME") == "" {
			e.refuse("MYSQL_TLS_SERVER_NAME", errors.New("is not set"), "set it to the name in the server's certificate: a socket has none to verify")
		}
	case "skip-verify", "preferred":
		config.InsecureSkipVerify = true // asked for
	default:
		e.refuse("MYSQL_TLS", errors.New("is not a mode"), "set it to false, true, skip-verify or preferred, or leave it unset")
	}
	return config, mode
}

func readAuthorities(file string) (*x509.CertPool, error) {
	pem, err := readFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("has no certificate in PEM form")
	}
	return pool, nil
}

func readKeyPair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := readFile(certFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readFile(keyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("can't be used: %w", err)
	}
	return pair, nil
}

// readFile leaves the path out of its error: it may be anything, as a secret in the wrong variable.
func readFile(file string) ([]byte, error) {
	content, err := os.ReadFile(file)
	var inner *fs.PathError
	if errors.As(err, &inner) {
		err = inner.Err
	}
	if err != nil {
		return nil, fmt.Errorf("can't be read: %w", err)
	}
	return content, nil
}

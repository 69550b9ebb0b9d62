package mysqllock

import (
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"regexp"
	"strings"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Nothing secret in words: addresses and hosts are left out of what is shown of an error.

var (
	// quotedHost is the host in "Access denied for user 'a'@'10.0.0.7'", "Host 'a' is blocked" and
	// "Can't connect to MySQL server on 'a'".
	quotedHost = regexp.MustCompile(`(@|\b[Hh]ost |\bserver on |\bconnect(?:ed)? to )'[^']*'`)
	// certainAddress finds what is an address wherever it stands: an IPv4 address, a bracketed IPv6
	// address, that of a DSN.
	certainAddress = regexp.MustCompile(`\S*@(?:tcp|unix)\([^)]*\)\S*|\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(?:%[^\]]*)?\](?::\d+)?|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b`)
	// ipv6 finds what may be an IPv6 address; a time may be, too.
	ipv6 = regexp.MustCompile(`[0-9a-fA-F]*:[0-9a-fA-F:]*:[0-9a-fA-F]*(?:%\w+)?`)
	// word is what may be a host's name: see namesHost.
	word = regexp.MustCompile(`[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?`)
	// hostName has a letter in each of its labels, which times and versions have not.
	hostName = regexp.MustCompile(`^(?:[0-9-]*[A-Za-z][A-Za-z0-9-]*)(?:\.[0-9-]*[A-Za-z][A-Za-z0-9-]*)*$`)
	port     = regexp.MustCompile(`^\d{2,5}$`)
	// address finds what looks like host:port, an IP address or a DSN's address in the text of an
	// error whose type is not known.
	address = regexp.MustCompile(`\S*@(?:tcp|unix)\([^)]*\)\S*|\[[0-9a-fA-F:.%]+\](?::\d+)?|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|\b[A-Za-z0-9_](?:[A-Za-z0-9_-]*\.)*[A-Za-z0-9_-]*:\d{2,5}\b`)
)

// publicText is err's text without the database's host, an account's host or anything else of a
// DSN: errors end up in logs that more people read than may know where the database is.
func publicText(err error) string {
	text := err.Error()
	var (
		status   apierrors.APIStatus
		server   *mysql.MySQLError
		op       *net.OpError
		dns      *net.DNSError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &status):
		return text // this package's own words
	case errors.As(err, &server):
		text = quotedHost.ReplaceAllString(text, "${1}'...'")
		text = certainAddress.ReplaceAllString(text, "...")
		text = ipv6.ReplaceAllStringFunc(text, func(w string) string {
			for _, a := range []string{w, strings.TrimSuffix(w, ":"), strings.TrimPrefix(w, ":")} { // a colon may be a sentence's
				if _, err := netip.ParseAddr(a); err == nil && a != "::" {
					return strings.Replace(w, a, "...", 1)
				}
			}
			return w
		})
		return word.ReplaceAllStringFunc(text, func(w string) string {
			if namesHost(w) {
				return "..."
			}
			return w
		})
	case errors.As(err, &dns):
		return "looking up the server's address: " + address.ReplaceAllString(dns.Err, "...")
	case errors.As(err, &op):
		text = strings.ReplaceAll(text, op.Error(), op.Op+": "+publicText(op.Err))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return text // it has times, which look like addresses, and none of those
	case errors.As(err, &hostname):
		text = strings.ReplaceAll(text, hostname.Error(), "the server's certificate is not for the host name that was dialled")
	}
	return address.ReplaceAllString(text, "...")
}

// namesHost reports whether a word of a server, or of a proxy before it, names a host. Such words
// are also times, versions, parts of statements and names of tables, so that a name is a host's
// only with three labels or with a port; a port after a name without a dot has at least four
// digits.
func namesHost(word string) bool {
	parts := strings.Split(word, ":")
	for i, s := range parts {
		if strings.Count(s, ".") >= 2 && hostName.MatchString(s) {
			return true
		}
		if i == 0 || !port.MatchString(s) || !hostName.MatchString(parts[i-1]) {
			continue
		}
		if len(s) >= 4 || strings.Contains(parts[i-1], ".") {
			return true
		}
	}
	return false
}

package mysqllock

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// RecordsTable and FencesTable are what Migrate takes for current, in the form of DescribeTable.
var RecordsTable, FencesTable = recordsTable.text(), fencesTable.text()

// CertifiedGuardSQL is the guard of clusters, with the table's name as %s.
var CertifiedGuardSQL = strings.Replace(fold(multiWriterGuardSQL), "{fences}", "%s", 1)

// DescribeTable is a table's definition as Migrate sees it, as text.
func DescribeTable(ctx context.Context, db *sql.DB, database, name string) (string, error) {
	t, err := describe(ctx, db, database, name)
	if err != nil {
		return "", err
	}
	return t.text(), nil
}

func (t *table) text() string {
	columns := slices.Clone(t.columns)
	slices.SortFunc(columns, func(a, b column) int { return strings.Compare(a.name, b.name) })
	var b strings.Builder
	fmt.Fprintln(&b, t.name, t.engine, t.primaryKey)
	for _, c := range columns {
		fmt.Fprintf(&b, "%s %s(%d) nullable=%t %s\n", c.name, c.dataType, c.size, c.nullable, c.collation)
	}
	return b.String()
}

// ElectLeaderWithTimings is ElectLeader on a pool and with timings that a test can wait for.
func ElectLeaderWithTimings(ctx context.Context, db *sql.DB, election string, lease, renewDeadline, retry time.Duration, becomeLeader func(context.Context), loseLeadership func()) error {
	return electLeader(ctx, db, election, timings{lease, renewDeadline, retry}, becomeLeader, loseLeadership)
}

// Waiting is how many operations wait in a Batch for others.
func (b *Batch) Waiting() int {
	n := 0
	for _, q := range []*queue{&b.polls, &b.renewals} {
		q.mu.Lock()
		n += len(q.waiting)
		q.mu.Unlock()
	}
	return n
}

// ServerFindings are what Preflight finds in variables of a server alone.
func ServerFindings(variables map[string]string) []Finding {
	p := &preflight{variables: variables}
	p.server()
	return p.findings
}

// OperationTimeout is how long an operation may take that begins now.
func (l *Lock) OperationTimeout() time.Duration { return l.operationTimeout() }

// ElectorTimings are those of the elector, as far as they were seen.
func (l *Lock) ElectorTimings() (renewDeadline, retryPeriod time.Duration) {
	t := l.elector.with(l.term.leaseDuration())
	return t.renewDeadline, t.retryPeriod
}

// LeaseEnd is when the lease ends.
func (l *Lock) LeaseEnd() time.Time { return l.term.expires() }

// PublicText is what is shown of an error.
var PublicText = publicText

// OpenWithLifetime is Open with another lifetime for connections, and another pause between
// attempts to replace them.
func OpenWithLifetime(config *mysql.Config, lifetime, pause time.Duration) (*sql.DB, error) {
	config, err := harden(config)
	if err != nil {
		return nil, err
	}
	return newPool(config, lifetime, pause), nil
}

package mysqllock_test

import (
	"sync"
	"testing"

	"k8s.io/client-go/tools/leaderelection"
)

// electorMetrics is where client-go's electors of this process report to, as to
// Prometheus in a real one: by the elector's name, which is the lock's.
var electorMetrics = &metricsProvider{leads: map[string]bool{}, slow: map[string]int{}}

// The first provider counts, and only for electors made afterwards.
func init() { leaderelection.SetProvider(electorMetrics) }

type metricsProvider struct {
	mu    sync.Mutex
	leads map[string]bool
	slow  map[string]int
}

func (m *metricsProvider) NewLeaderMetric() leaderelection.LeaderMetric { return m }

func (m *metricsProvider) On(name string)  { m.set(name, true) }
func (m *metricsProvider) Off(name string) { m.set(name, false) }

func (m *metricsProvider) set(name string, leads bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leads[name] = leads
}

func (m *metricsProvider) SlowpathExercised(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slow[name]++
}

// of are leader_election_master_status and leader_election_slowpath_total.
func (m *metricsProvider) of(name string) (known, leads bool, slow int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	leads, known = m.leads[name]
	return known, leads, m.slow[name]
}

func TestTheElectorsMetricsTellWhoLeadsAndWhichRenewalsNeededAnotherLook(t *testing.T) {
	t.Parallel()
	db, _ := newTables(t)
	const election = "metrics of the elector"
	name := newLock(t, db, election, "a").Describe()
	c := begin(t, db, election, "a", hasty, true)
	eventually(t, electorPatience, "the metric says that it leads", func() bool { _, leads, _ := electorMetrics.of(name); return leads })
	// As a renewal does that was given up and is applied all the same.
	exec(t, db, `UPDATE election_records SET version = version + 1 WHERE election_name = ?`, election)
	eventually(t, electorPatience, "the renewal that met this is counted", func() bool { _, _, slow := electorMetrics.of(name); return slow > 0 })
	usurp(t, db, election)
	<-c.returned // it can't renew
	if known, leads, _ := electorMetrics.of(name); !known || leads {
		t.Errorf("after the loss: known %t, leads %t", known, leads)
	}
}

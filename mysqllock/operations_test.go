package mysqllock_test

import (
	"os"
	"strings"
	"testing"
	"time"
)

// handOverSQL is how an administrator ends a term whose leader can't be told to
// stop: a holder that never renews. The leader can't renew any more and steps
// down at its RenewDeadline; the others see a new holder, and wait for a lease.
const handOverSQL = `UPDATE election_records SET leader_name = 'maintenance', leader_uid = 'maintenance', version = version + 1,
	last_update = UTC_TIMESTAMP(6) WHERE election_name = ?`

func TestAnAdministratorCanForceAHandOverWithoutTwoLeaders(t *testing.T) {
	t.Parallel()
	a := newArena(t)
	o := a.hold(t, true, short, func(c *contest) hazardResult {
		leader := c.run(c.lock(c.db, "leader"))
		leader.mustLead(c, 20*time.Second)
		followers := c.follow(2)
		exec(c, c.db, handOverSQL, c.election)
		return succession(c, leader, followers)
	}, unbroken)
	t.Logf("two leaders for %v", o)
}

// The statements that the README tells people to type.
func TestTheQueriesOfTheREADMEWork(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	db, _ := newTables(t)
	takeOver(t, newLock(t, db, "e", "a"))
	queries := 0
	for i, block := range strings.Split(string(text), "```") {
		sql, isSQL := strings.CutPrefix(block, "sql\n")
		if i%2 == 0 || !isSQL {
			continue
		}
		for statement := range strings.SplitSeq(sql, ";") {
			if statement = strings.TrimSpace(statement); !strings.HasPrefix(statement, "SELECT") {
				continue
			}
			queries++
			if table(t, db, statement) == "" {
				t.Errorf("%s: no row, and there is an election", statement)
			}
		}
	}
	if queries == 0 {
		t.Error("the README has no query")
	}
}

package mysqllock_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Candidates take the lead from each other as fast as they can, while each posts single statements
// that it decided on some time before. An entry's number is that of its commit, as each is one more
// than the largest: so the ledger shows whether a term posted after a later one had, and what was
// sent after a later term had begun must not be there.
func TestLedgerHasNoStatementOfAStaleLeaderHoweverOftenTheLeadChanges(t *testing.T) {
	t.Parallel()
	db, config := newTables(t)
	exec(t, db, `CREATE TABLE ledger (n BIGINT PRIMARY KEY, token BIGINT NOT NULL, writer VARCHAR(20) NOT NULL UNIQUE) ENGINE=InnoDB`)
	const post = `INSERT INTO ledger (n, token, writer)
		SELECT next, ?, ? FROM (SELECT COALESCE(MAX(n), 0) + 1 AS next FROM ledger) AS numbers WHERE `
	random := seeded(t)
	var pauses [64]time.Duration // shared, as a source of random numbers is one goroutine's
	for i := range pauses {
		pauses[i] = time.Duration(random.Int64N(int64(4 * time.Millisecond)))
	}

	var newest atomic.Int64 // the largest token that is known to have begun
	type attempt struct {
		token   int64
		late    bool // sent when a later term was known
		changed int64
		err     error
	}
	var mu sync.Mutex
	attempts := map[string]attempt{}
	// It goes on until enough has happened to show anything.
	began := time.Now()
	isOver := func() bool {
		mu.Lock()
		defer mu.Unlock()
		terms, posted, refused, late := map[int64]bool{}, 0, 0, 0
		for _, a := range attempts {
			switch {
			case a.err == nil && a.changed == 1:
				posted++
				terms[a.token] = true
			case a.err == nil:
				refused++
			}
			if a.late {
				late++
			}
		}
		return time.Since(began) > time.Minute || time.Since(began) > 2*time.Second && len(terms) >= 5 && posted >= 20 && refused >= 5 && late >= 5
	}
	var racing sync.WaitGroup
	race := func(f func()) {
		racing.Add(1)
		go func() {
			defer racing.Done()
			f()
		}()
	}
	levels := isolations()
	for c, name := range []string{"a", "b", "c"} {
		lock := newLock(t, open(t, config), "e", name)
		race(func() {
			for i := c; !isOver(); i++ {
				if err := tryTakeOver(t.Context(), lock); err == nil {
					if token, held := lock.FencingToken(); held {
						was := newest.Load()
						for token > was && !newest.CompareAndSwap(was, token) {
							was = newest.Load()
						}
					}
				}
				pause(pauses[(7*i)%len(pauses)])
			}
		})
		for w := range 2 {
			work := levels[c+1].open(t, config)
			race(func() {
				for i := w; !isOver(); i++ {
					condition, args, err := lock.FenceCondition()
					if err != nil {
						if !errors.Is(err, mysqllock.ErrNotLeader) {
							t.Error(err)
						}
						pause(time.Millisecond)
						continue
					}
					writer := fmt.Sprintf("%s%d/%d", name, w, i)
					a := attempt{token: args[1].(int64)}
					pause(pauses[(11*i)%len(pauses)]) // it stands still between its check and its write
					a.late = newest.Load() > a.token
					result, err := work.ExecContext(t.Context(), post+condition, append([]any{a.token, writer}, args...)...)
					if a.err = err; err == nil {
						a.changed, a.err = result.RowsAffected()
					}
					mu.Lock()
					attempts[writer] = a
					mu.Unlock()
				}
			})
		}
	}
	racing.Wait()

	rows, err := db.QueryContext(t.Context(), `SELECT n, token, writer FROM ledger ORDER BY n`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var last, terms int64
	there := map[string]bool{}
	for rows.Next() {
		var n, token int64
		var writer string
		if err := rows.Scan(&n, &token, &writer); err != nil {
			t.Fatal(err)
		}
		there[writer] = true
		switch {
		case token < last:
			t.Errorf("entry %d is of term %d, after one of %d", n, token, last)
		case token > last:
			terms, last = terms+1, token
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	var posted, refused, late, failed int
	for writer, a := range attempts {
		switch {
		case a.err != nil:
			failed++ // a deadlock, or the number was taken
		case a.changed == 1:
			posted++
		default:
			refused++
		}
		if a.late {
			late++
		}
		if (a.err == nil && a.changed == 1) != there[writer] {
			t.Errorf("%s: changed %d rows, error %v; is it there: %t", writer, a.changed, a.err, there[writer])
		}
		if a.late && there[writer] {
			t.Errorf("%s was posted although a later term had begun when it was sent", writer)
		}
	}
	t.Logf("%d terms posted; %d entries, %d refused (%d sent after a later term had begun), %d failed", terms, posted, refused, late, failed)
	if terms < 5 || posted < 20 || refused < 5 || late < 5 {
		t.Error("too little happened to show anything")
	}
}

// pause lets some time pass, as a process that stands still does.
func pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

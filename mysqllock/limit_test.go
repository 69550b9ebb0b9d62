package mysqllock_test

import (
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// A session's sql_select_limit cuts what has no limit of its own, without a word.
func TestASelectLimitCutsNothing(t *testing.T) {
	for _, parameters := range []string{"sql_select_limit=1", "sql_select_limit=3&interpolateParams=true"} {
		t.Run(parameters, func(t *testing.T) {
			admin, config := newTables(t)
			const n = 8
			for i := range n {
				hold(t, admin, fmt.Sprint("e", i), "leader")
			}
			db := openDSN(t, newAccount(t, config, ordinary...), parameters)
			mustSucceed(t, "Migrate of current tables", func() error { return mysqllock.Migrate(t.Context(), db) })
			all, err := mysqllock.ListElections(t.Context(), db)
			if err != nil || len(all) != n {
				t.Errorf("ListElections returned %d of %d (%v)", len(all), n, err)
			}
			batch := &mysqllock.Batch{}
			var polls calls
			for i := range n {
				lock := newLock(t, db, fmt.Sprint("e", i), "follower", mysqllock.WithBatch(batch))
				polls.start(func() {
					if err := get(t.Context(), lock)(); err != nil {
						t.Error(err)
					}
				})
			}
			polls.Wait()
		})
	}
}

// With a limit of 0 every table looks empty. That must not pass for an election
// without a row, nor for a table without elections.
func TestASessionThatReturnsNoRowsIsRefused(t *testing.T) {
	admin, config := newTables(t)
	hold(t, admin, "e", "leader")
	db := openDSN(t, config, "sql_select_limit=0")
	err := get(t.Context(), newLock(t, db, "e", "a"))()
	if err == nil || apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "sql_select_limit") {
		t.Errorf("Get returned %v", err)
	}
	if all, err := mysqllock.ListElections(t.Context(), db); err != nil || len(all) != 1 {
		t.Errorf("ListElections returned %v, %v", all, err)
	}
	if got := getElection(t, db, "e"); got.Holder != "leader" {
		t.Errorf("GetElection returned %+v", got)
	}
}

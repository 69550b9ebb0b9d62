package mysqllock_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// Settings of the session that refuse an upgrade's statements, or cut what they
// read, would leave it half done, or take a name for checked that wasn't.
func TestUpgradeWorksWhateverTheSessionLimits(t *testing.T) {
	t.Parallel()
	// Fewer rows than v0 left, and enough for the columns of a table.
	const rows, limit = 60, 30
	for _, parameters := range []string{"sql_safe_updates=1", fmt.Sprint("sql_select_limit=", limit)} {
		t.Run(parameters, func(t *testing.T) {
			config := newConfig(t)
			db := open(t, config)
			exec(t, db, v0Table+"DEFAULT CHARACTER SET latin1")
			insertV0(t, db, rows+1, "f", "old", nil)
			for i := range rows {
				insertV0(t, db, i+1, "e", fmt.Sprint("holder ", i), fmt.Sprintf("2024-05-01 10:00:%02d", i))
			}
			if err := mysqllock.Migrate(t.Context(), openDSN(t, config, parameters)); err != nil {
				t.Fatal(err)
			}
			for election, holder := range map[string]string{"e": fmt.Sprint("holder ", rows-1), "f": "old"} {
				if got := holderOf(t, db, election); got != holder {
					t.Errorf("%s is held by %q, want %q", election, got, holder)
				}
			}
		})
		t.Run(parameters+", a name that does not fit", func(t *testing.T) {
			config := newConfig(t)
			db := open(t, config)
			exec(t, db, v0Table+"DEFAULT CHARACTER SET latin1")
			insertV0(t, db, 1, strings.Repeat("x", 256), "a", "2024-05-01 10:00:00")
			for i := range rows {
				insertV0(t, db, i+2, fmt.Sprint("e", i), "a", "2024-05-01 10:00:01")
			}
			err := mysqllock.Migrate(t.Context(), openDSN(t, config, parameters+"&sql_mode=''"))
			if err == nil || !strings.Contains(err.Error(), "row with id 1") {
				t.Errorf("error %v", err)
			}
		})
	}
}

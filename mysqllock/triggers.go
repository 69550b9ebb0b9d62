package mysqllock

import (
	"fmt"
	"strings"
)

// triggersSQL: parameters (database, table); a row per trigger that the account may see.
const triggersSQL = `SELECT TRIGGER_NAME, ACTION_TIMING, EVENT_MANIPULATION FROM information_schema.TRIGGERS` +
	` WHERE EVENT_OBJECT_SCHEMA = {database} AND EVENT_OBJECT_TABLE = ? AND EVENT_MANIPULATION <> 'DELETE' ORDER BY TRIGGER_NAME` + everyRow

// triggers looks for what somebody else has made to run with the lock's writes.
func (p *preflight) triggers() {
	for _, t := range []struct {
		*table
		updates string // what updates it
	}{
		{recordsTable, "each renewal, takeover and release"},
		{fencesTable, "each takeover"},
	} {
		err := eachOfTable(p.ctx, p.conn, triggersSQL, p.options.database, t.name, func(scan scanner) error {
			var name, timing, event string
			if err := scan(&name, &timing, &event); err != nil {
				return err
			}
			with := t.updates
			if strings.EqualFold(event, "INSERT") {
				with = "the first campaign of each election"
			}
			p.add(SeverityInfo, t.name, fmt.Sprintf("its trigger %q (%s %s) runs with %s", name, timing, event, with),
				"keep it short: an operation waits for it within its deadline, and fails if it does")
			return nil
		})
		if err != nil {
			p.refused("looking for triggers on "+t.name, err)
			return
		}
	}
}

package mysqllock

import (
	"database/sql"
	"errors"
	"regexp"
	"slices"
	"strings"
)

// What Preflight finds in the account's privileges.

// grants tries the lock's own statements in a form that touches no row. A server that is read-only
// is sent no writes: the driver may end the session for it.
func (p *preflight) grants() {
	readOnly := p.readOnlyServer() != "" || p.readOnlySession()
	fill := tableNames(p.options.database).Replace
	for _, table := range []string{"records", "fences"} {
		for _, s := range []struct{ privilege, statement string }{
			{"SELECT", `SELECT leader_uid FROM {` + table + `} WHERE 1 = 0`},
			{"INSERT", `INSERT INTO {` + table + `} (election_name, leader_uid` + map[string]string{
				"records": `, leader_name, last_update, strategy, preferred_holder, server) SELECT '', '', '', UTC_TIMESTAMP(6), '', '', ''`,
				"fences":  `, fencing_token) SELECT '', '', 0`,
			}[table] + ` FROM DUAL WHERE 1 = 0`},
			{"UPDATE", `UPDATE {` + table + `} SET leader_uid = leader_uid WHERE 1 = 0`},
		} {
			if readOnly && s.privilege != "SELECT" {
				continue
			}
			_, err := p.conn.ExecContext(p.ctx, fill(s.statement))
			name := "election_" + table
			switch what := s.privilege + " on " + name; {
			case err == nil:
			case isDenied(err):
				p.add(SeverityError, "grants", what+" is refused: "+oneLine(publicText(err)), "GRANT SELECT, INSERT, UPDATE on "+name+" to the account")
			default:
				p.refused(what, err)
			}
		}
	}
	if !readOnly {
		var token sql.NullInt64
		var clock int64
		probe := statementsFor(placement{database: p.options.database}).probe(absentElection)
		err := p.conn.QueryRowContext(p.ctx, probe.text, probe.args...).Scan(&token, &clock)
		if err != nil && !errors.Is(err, sql.ErrNoRows) && !isDenied(err) {
			p.refused("the statement that looks for guards", err)
		}
	}
	p.excessGrants()
}

// isDenied reports whether the account lacks a privilege.
func isDenied(err error) bool {
	n := number(err)
	return n == errTableDenied || n == errColumnDenied || n == errDatabaseDenied
}

const identifier = "`(?:[^`]|``)*`" + `|"(?:[^"]|"")*"|[^\s."]+` // as sql_mode and sql_quote_show_create have it

var (
	// grantOn takes a grant apart: its privileges, database, table, and the rest.
	grantOn = regexp.MustCompile(`^GRANT (.+?) ON (` + identifier + `)\.(` + identifier + `) (TO .*)$`)
	// columnList follows a privilege on columns.
	columnList = regexp.MustCompile(` \([^)]*\)`)
	// likePattern makes a regular expression of what regexp.QuoteMeta makes of a
	// pattern of LIKE.
	likePattern = strings.NewReplacer(`\\_`, `_`, `\\%`, `%`, `\\\\`, `\\`, `%`, `.*`, `_`, `.`)
)

// excessGrants reads what the account may do beyond what a lock needs, by itself or
// by the roles that the session has.
func (p *preflight) excessGrants() {
	var everywhere, here []string
	_ = each(p.ctx, p.conn, `SHOW GRANTS`, nil, func(scan scanner) error { // what it may not look at is left out
		var grant string
		if err := scan(&grant); err != nil {
			return err
		}
		parts := grantOn.FindStringSubmatch(grant)
		if parts == nil {
			return nil // a role, a routine
		}
		privileges := strings.Split(columnList.ReplaceAllString(parts[1], ""), ",")
		if strings.Contains(parts[4], " WITH GRANT OPTION") {
			privileges = append(privileges, "GRANT OPTION")
		}
		needed, list := []string{"USAGE", "SELECT", "INSERT", "UPDATE"}, &here
		switch {
		case parts[2] == "*":
			needed, list = []string{"USAGE", "REPLICATION CLIENT", "BINLOG MONITOR", "SLAVE MONITOR"}, &everywhere // these only look
		case !p.onTables(unquote(parts[2]), unquote(parts[3])):
			return nil
		}
		for _, privilege := range privileges {
			if privilege = strings.TrimSpace(privilege); !slices.Contains(needed, privilege) && !slices.Contains(*list, privilege) {
				*list = append(*list, privilege)
			}
		}
		return nil
	})
	const remedy = "give the lock an account of its own with SELECT, INSERT and UPDATE on the two tables"
	if everywhere != nil {
		p.add(SeverityWarning, "grants", "the account may do far more than a lock needs, on every database: "+abridged(everywhere), remedy)
	}
	if here != nil {
		severity := SeverityInfo // common where the application has one account
		if slices.Contains(here, "GRANT OPTION") {
			severity = SeverityWarning
		}
		p.add(severity, "grants", "the account may do more with the tables than a lock needs, so that by mistake fencing tokens could begin anew: "+abridged(here), remedy)
	}
}

// onTables reports whether a grant on that table, or "*", is one on the lock's.
func (p *preflight) onTables(database, table string) bool {
	if table == "*" {
		matches, err := regexp.MatchString(`(?is)^`+likePattern.Replace(regexp.QuoteMeta(database))+`$`, p.database)
		return matches && err == nil
	}
	return strings.EqualFold(database, p.database) && (table == recordsTable.name || table == fencesTable.name)
}

func unquote(name string) string {
	if quote := name[:1]; quote == "`" || quote == `"` {
		return strings.ReplaceAll(name[1:len(name)-1], quote+quote, quote)
	}
	return name
}

func abridged(privileges []string) string {
	text := strings.Join(privileges, ", ")
	if len(text) > 100 {
		text = text[:100] + "..."
	}
	return text
}

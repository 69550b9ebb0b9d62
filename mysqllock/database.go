package mysqllock

import (
	"context"
	"strings"
)

// tables is where a Lock's statements go to: the database that it began with.
type tables struct {
	// database is what the statements name. "" is the connection's own: as long as it isn't known,
	// or for good if its name can't be part of a statement.
	database       string
	known          bool
	ascii, unicode *statements
}

// tablesIn are those of WithDatabase, which may be "".
func tablesIn(database string, serverClock bool) *tables {
	return &tables{
		database: database, known: database != "",
		ascii:   statementsFor(placement{database, serverClock, asciiEncoding}),
		unicode: statementsFor(placement{database, serverClock, unicodeEncoding}),
	}
}

// in returns the statements that carry strings of that encoding.
func (t *tables) in(e encoding) *statements {
	if e == unicodeEncoding || !isASCII(t.database) {
		return t.unicode
	}
	return t.ascii
}

// learn asks a session for its database, which all statements name from then on: a session in which
// somebody said USE can't lead them elsewhere. In a pool of Open it is that of the config. p is
// what the session said of itself.
func (t *tables) learn(ctx context.Context, s *session) (learned *tables, p *polled, err error) {
	p, database, err := s.check(ctx)
	if err != nil {
		return nil, nil, err
	}
	if s.tracked != nil && s.tracked.database != "" {
		database = s.tracked.database
	}
	switch {
	case database == "":
		return t, p, nil // the next statement's error says so
	case !isASCII(database) && (p.charset() != "" || strings.ContainsFunc(database, isPunctuation)):
		// The statements would need utf8mb4, or the name can't be quoted so that every character
		// set understands it: see WithDatabase.
		database = ""
	}
	return &tables{database: database, known: true}, p, nil
}

// with are the same tables, with or without WithServerClock.
func (t *tables) with(serverClock bool) *tables {
	with := tablesIn(t.database, serverClock)
	with.known = t.known
	return with
}

// learn asks for the tables' database, if that is not known. It returns what the session said of
// itself then.
func (l *Lock) learn(o *operation) (*polled, error) {
	t := l.tables.Load()
	if t.known {
		return nil, nil
	}
	t, p, err := t.learn(o.ctx, &o.session)
	if err == nil {
		l.tables.Store(t.with(l.options.serverClock))
		o.mariaDB = o.session.mariaDB
	}
	return p, err
}

// tableNames fills {records} and {fences} in.
func tableNames(database string) *strings.Replacer {
	return strings.NewReplacer(tableHoles(database)...)
}

// tableHoles are what stands for {records} and {fences}.
func tableHoles(database string) []string {
	prefix := qualifier(database)
	return []string{"{records}", prefix + "election_records", "{fences}", prefix + "election_fences"}
}

// qualifier is a database's name before that of a table; nothing if it has none, as the table is in
// the connection's own then.
func qualifier(database string) string {
	if database == "" {
		return ""
	}
	return "`" + strings.ReplaceAll(database, "`", "``") + "`."
}

package main

import (
	"context"
	"fmt"
)

// Audit triggers, as an administrator or a tool for schema changes makes them: with a statement whose own insert id is not
// the lock's, and a variable of the session.

// audited are the lock's tables, with the column that is the news of an update.
var audited = map[string]string{"election_records": "version", "election_fences": "fencing_token"}

var moments = []string{"BEFORE", "AFTER"}

// audit makes the triggers.
func (s *site) audit(ctx context.Context) error {
	statements := []string{`CREATE TABLE audit (id BIGINT AUTO_INCREMENT PRIMARY KEY, source VARCHAR(60) NOT NULL, news BIGINT NOT NULL) ENGINE=InnoDB`}
	for table, column := range audited {
		for _, moment := range moments {
			statements = append(statements, fmt.Sprintf(`CREATE TRIGGER audit_%[1]s_%[2]s %[1]s UPDATE ON %[2]s FOR EACH ROW BEGIN`+
				` SET @v = 1; INSERT INTO audit (source, news) VALUES ('%[1]s %[2]s', NEW.%[3]s); END`, moment, table, column))
		}
	}
	for _, statement := range statements {
		if _, err := s.nodes[0].admin.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// auditedAll fails if a trigger did nothing. Else it returns how often they ran.
func (s *site) auditedAll(ctx context.Context) (ran int, err error) {
	for table := range audited {
		for _, moment := range moments {
			var n int
			source := moment + " " + table
			if err := s.nodes[0].admin.QueryRowContext(ctx, `SELECT COUNT(*) FROM audit WHERE source = ?`, source).Scan(&n); err != nil {
				return 0, err
			}
			if n == 0 {
				return 0, fmt.Errorf("the trigger %s UPDATE did nothing", source)
			}
			ran += n
		}
	}
	return ran, nil
}

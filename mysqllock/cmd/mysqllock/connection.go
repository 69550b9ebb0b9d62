package main

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// connection is where the database is, by flags or by the environment.
type connection struct {
	dsn, database *string
}

func (f *flags) connection() connection {
	return connection{
		dsn:      f.String("dsn", "", "`file` that holds the driver's DSN, user:password@tcp(host:3306)/database, instead of MYSQL_*"),
		database: f.String("database", "", "`name` of the database that holds the tables, if it isn't the connection's"),
	}
}

// open returns a pool that has not connected yet, and the options for all that uses it.
func (c connection) open() (*sql.DB, []mysqllock.Option, error) {
	config, err := c.config()
	if err != nil {
		return nil, nil, usageError{err}
	}
	db, err := mysqllock.Open(config)
	if err != nil {
		return nil, nil, usageError{err}
	}
	var options []mysqllock.Option
	if *c.database != "" {
		options = append(options, mysqllock.WithDatabase(*c.database))
	}
	return db, options, nil
}

func (c connection) config() (*mysql.Config, error) {
	if *c.dsn == "" {
		config, err := mysqllock.ConfigFromEnv()
		if err != nil {
			return nil, fmt.Errorf("%w; or name a file that holds a DSN by -dsn", err)
		}
		return config, nil
	}
	const form = "it must hold one DSN, as user:password@tcp(host:3306)/database"
	text, err := os.ReadFile(*c.dsn)
	if err != nil {
		// Without the path, which is the DSN itself if somebody took the flag for that.
		var inner *fs.PathError
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return nil, fmt.Errorf("the file that -dsn names can't be read: %w; %s, and is named instead of it", err, form)
	}
	config, err := mysql.ParseDSN(strings.TrimSpace(string(text)))
	if err != nil {
		// Without the driver's words, which quote parts of the DSN.
		return nil, errors.New("the file that -dsn names has no DSN that the driver understands; " + form)
	}
	return config, nil
}

package mysqllocktest_test

import (
	"database/sql"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
)

// In a test file of yours this is TestMyServerIsFitForTheLock, a function of its own.
func ExampleRun() {
	_ = func(t *testing.T) {
		mysqllocktest.Run(t, func(t *testing.T) *sql.DB {
			t.Helper()
			config, err := mysql.ParseDSN("app:secret@tcp(db.example.com:3306)/mydb")
			if err != nil {
				t.Fatal(err)
			}
			db, err := mysqllock.Open(config) // or a pool as your program makes it
			if err != nil {
				t.Fatal(err)
			}
			return db
		})
	}
}

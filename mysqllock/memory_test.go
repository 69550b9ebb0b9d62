package mysqllock_test

import (
	"testing"

	"github.com/go-sql-driver/mysql"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// A process may have thousands of Locks, whose statements are 7 kB.
func TestALockIsSmall(t *testing.T) {
	db, err := mysqllock.Open(mysql.NewConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // never connected
	result := testing.Benchmark(func(b *testing.B) {
		for range b.N {
			if _, err := mysqllock.New(db, "small", resourcelock.ResourceLockConfig{Identity: "a"}); err != nil {
				b.Fatal(err)
			}
		}
	})
	if n := result.AllocedBytesPerOp(); n == 0 || n > 2000 {
		t.Errorf("a Lock is made of %d bytes", n)
	}
}

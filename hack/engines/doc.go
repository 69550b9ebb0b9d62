// Package engines has tests of what is other on Vitess, TiDB and behind proxies, for servers that hack/engines.sh starts.
// MYSQLLOCK_TEST_DSN names the server with a database, and MYSQLLOCK_TEST_ENGINE what it is to be.
package engines

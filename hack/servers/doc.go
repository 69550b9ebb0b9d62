// Package servers starts servers that belong together, each a throwaway one of package mysqltest: a Galera cluster, a
// group of MySQL's Group Replication, a primary with a replica. All of them run on this machine and listen on loopback.
//
// get.sh brings the programs:
//
//	MYSQLLOCK_TEST_SERVER=$(hack/servers/get.sh mysql-9)    for StartGroupReplication, and any server for StartReplicaPair
//	MYSQLLOCK_TEST_GALERA=$(hack/servers/get.sh galera)     for StartGalera
//
// The servers' administrators differ (see [mysqltest.Server.Config]). Accounts, databases and whatever else is made once
// the servers are together are the same everywhere.
//
// Where a reader finds what:
//
//	cluster.go                 what the three have in common
//	galera.go, group.go        Galera; Group Replication
//	replica.go                 a primary with a replica: holding it back, promoting it
//	get.sh                     the programs; galera-node.sh and wsrep_sst_mysqllock are part of what it makes of Galera
//	*_test.go                  what a lease and a fence are worth on each (tag clusters; hack/clusters.sh runs them)
package servers

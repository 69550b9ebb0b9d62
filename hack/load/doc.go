// Command load measures what many elections at once cost one server and the processes that compete in them, and what
// becomes of their leases when everything around them fails.
//
//	hack/load.sh -elections 1000,10000 -processes 1,10
//	hack/load.sh -faults -elections 2000 -processes 6 -window 10m
//
// Each run starts a throwaway server and processes of its own. All candidates of one process share a pool; those of one
// election are in different processes, if there are several. They are client-go's stock electors with its default
// timings. Once every election has a leader, the run measures for a window; what it prints to stdout is Markdown.
//
// With -faults, the window is followed by one in which the server and the processes are paused, connections are killed,
// networks are cut, the table is locked and the server is killed, again and again, each time for no longer than the
// timings survive. A lease that is lost then is lost without cause.
package main

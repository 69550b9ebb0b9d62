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
//
// Where a reader finds what:
//
//	main.go, settings.go    flags; what one run is given
//	run.go                  a run from its start to its result
//	fleet.go                the server and the processes, as their parent sees them
//	worker.go               a process with its share of the candidates
//	measure.go              a window of measurement
//	faults.go               the faults, and which leases they excuse
//	histogram.go            how durations are counted
//	report.go               the results as Markdown
//
// What it shares with chaos and bench is in hack/internal: child, elector, faults, machine, wait.
package main

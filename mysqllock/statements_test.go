package mysqllock

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden file of the statements")

// What the server is sent doesn't change by accident: the texts are laid out for people, and folded.
func TestStatementsAreThoseOfTheGoldenFile(t *testing.T) {
	var got bytes.Buffer
	for _, database := range []string{"", "my`db", "été"} {
		for _, serverClock := range []bool{false, true} {
			for _, unicode := range []bool{false, true} {
				fmt.Fprintf(&got, "# database %q, server clock %t, unicode %t\n", database, serverClock, unicode)
				w := wording{database, serverClock, unicode}
				s := w.statements()
				for _, text := range []string{s.poll, s.insert, s.renew, s.release, s.takeOver, s.probe, s.insertFence} {
					fmt.Fprintln(&got, text)
				}
				if serverClock {
					for n := range 3 {
						fmt.Fprintln(&got, w.fill(many(batchPollSQL, nextName, n+1)))
						fmt.Fprintln(&got, w.fill(many(batchRenewSQL, nextBatchRow, n+1)))
					}
				}
			}
		}
		names := tableNames(database)
		fmt.Fprintf(&got, "# database %q, any session\n", database)
		for _, text := range []string{guardSQL, certifiedGuardSQL, electionSQL, allElectionsSQL} {
			fmt.Fprintln(&got, names.Replace(text))
		}
	}
	fmt.Fprintf(&got, "# without tables\n")
	for _, text := range []string{sessionCheckSQL, rollbackSQL, uptimeSQL, clusterSQL, sessionSQL, startSQL, endedSQL} {
		fmt.Fprintln(&got, text)
	}
	golden := filepath.Join("testdata", "statements.golden")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("statements are not those of %s (-want +got); if that is meant, write it anew with -update:\n%s", golden, diff)
	}
}

func many(text, next string, n int) string {
	return strings.Replace(text, "{more}", strings.Repeat(next, n-1), 1)
}

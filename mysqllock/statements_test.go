package mysqllock

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden file of the statements")

// What the server is sent doesn't change by accident: the texts are laid out for people, and
// folded.
func TestStatementsAreThoseOfTheGoldenFile(t *testing.T) {
	var got bytes.Buffer
	for _, database := range []string{"", "my`db", "été"} {
		for _, serverClock := range []bool{false, true} {
			for _, unicode := range []bool{false, true} {
				fmt.Fprintf(&got, "# database %q, server clock %t, unicode %t\n", database, serverClock, unicode)
				e := asciiEncoding
				if unicode {
					e = unicodeEncoding
				}
				s := statementsFor(placement{database, serverClock, e})
				for _, text := range []string{s.texts.poll, s.texts.insert, s.texts.renew, s.texts.release, s.texts.takeOver, s.texts.probe, s.texts.insertFence} {
					fmt.Fprintln(&got, text)
				}
				if serverClock {
					for n := range 3 {
						fmt.Fprintln(&got, s.expandMany(batchPollSQL, nextName, n+1))
						fmt.Fprintln(&got, s.expandMany(batchRenewSQL, nextBatchRow, n+1))
					}
				}
			}
		}
		names := tableNames(database)
		fmt.Fprintf(&got, "# database %q, any session\n", database)
		for _, text := range []string{guardSQL, fenceSQL, multiWriterGuardSQL, fenceConditionSQL, electionSQL, allElectionsSQL, stepDownStateSQL, requestStepDownSQL, requestUnreadySQL} {
			fmt.Fprintln(&got, names.Replace(fold(text)))
		}
	}
	fmt.Fprintf(&got, "# without tables\n")
	for _, text := range []string{sessionCheckSQL, rollbackSQL, plainRollbackSQL, uptimeSQL, engineSQL, borrowSQL, giveBackSQL, savepointSQL, releaseSavepointSQL, transactionModeSQL} {
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

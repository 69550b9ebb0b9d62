package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestColumnsAreAlignedWhateverTheirWidth(t *testing.T) {
	t.Parallel()
	rows := [][]cell{
		{{"NAME", bold}, {"LEADER", bold}, {"END", bold}},
		{{"a", plain}, {"b", red}, {"|", plain}},
		{{"選挙", plain}, {"", plain}, {"|", plain}},
		{{"e\u0301a\u0308", plain}, {"x", plain}, {"", plain}},
		{{"한국", plain}, {"🚀🚀", red}, {"|", plain}},
	}
	want := []string{
		"NAME  LEADER  END",
		"a     b       |",
		"選挙          |",
		"e\u0301a\u0308    x",
		"한국  🚀🚀    |",
	}
	if diff := cmp.Diff(want, align(rows, false)); diff != "" {
		t.Error(diff)
	}
	coloured := align(rows, true)
	if want := "a     \x1b[31mb\x1b[0m       |"; coloured[1] != want {
		t.Errorf("%q, not %q", coloured[1], want)
	}
}

func TestTableFitsTheTerminal(t *testing.T) {
	t.Parallel()
	table := func() [][]cell {
		return [][]cell{
			{{" ", plain}, {"ELECTION", plain}, {"LEADER", plain}, {"STATE", plain}, {"TOKEN", plain}},
			{{"*", plain}, {"prod-eu/team-a/some-controller", plain}, {"worker-7d4b9_0242ac110002_1_4QKBXOLM", plain}, {"led", plain}, {"1795698309908929", plain}},
			{{" ", plain}, {"選挙選挙選挙選挙選挙選挙", plain}, {"-", plain}, {"released", plain}, {"1", plain}},
		}
	}
	for columns, want := range map[int][]string{
		0:   align(table(), false),
		101: align(table(), false),
		83: {
			"   ELECTION                        LEADER                                STATE",
			"*  prod-eu/team-a/some-controller  worker-7d4b9_0242ac110002_1_4QKBXOLM  led",
			"   選挙選挙選挙選挙選挙選挙        -                                     released",
		},
		70: {
			"   ELECTION                        LEADER                     STATE",
			"*  prod-eu/team-a/some-controller  worker-7d4b9…2_1_4QKBXOLM  led",
		},
		54: {
			"   ELECTION                 LEADER            STATE",
			"*  prod-eu/tea…-controller  worker-7…QKBXOLM  led",
		},
	} {
		got := align(fit(table(), 1, columns), false)
		for i, line := range got {
			if width(line) > columns && columns != 0 {
				t.Errorf("of %d columns %d are used: %s", columns, width(line), line)
			}
			if i < len(want) && line != want[i] {
				t.Errorf("%d columns, line %d:\n%s\nnot\n%s", columns, i, line, want[i])
			}
		}
	}
}

func TestNamesShowNothingThatATerminalObeysOrHides(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"prod-eu/team-a": "prod-eu/team-a", "naïve 選挙 🚀": "naïve 選挙 🚀",
		"a\x1b[2Jb": `a\x1b[2Jb`, "\u009b31m": `\u009b31m`, "tab\tline\n": `tab\tline\n`, // by SQL only
		"a\u202eb": `a\u202eb`, "zero\u200bwidth": `zero\u200bwidth`, "no-break\u00a0space": `no-break\u00a0space`,
		"\ufeffbom": `\ufeffbom`, "wide\u3000space": `wide\u3000space`, `back\slash`: `back\\slash`, "not\xffUTF-8": `not\xffUTF-8`,
		"line\u2028end": `line\u2028end`, "\U000e0041tag": `\U000e0041tag`, "private\ue000": `private\ue000`,
	} {
		if got := printable(name); got != want {
			t.Errorf("%q is shown as %s, not %s", name, got, want)
		}
	}
}

func TestJSONShowsNothingThatATerminalObeysOrHides(t *testing.T) {
	t.Parallel()
	got, err := encode([]string{"選挙 <&>", "\u009b31m\x1b[2J\x7f", "a\u202eb", "\U000e0041"}, "")
	if want := `["選挙 <&>","\u009b31m\u001b[2J\u007f","a\u202eb","\udb40\udc41"]` + "\n"; err != nil || got != want {
		t.Errorf("%s %v, not %s", got, err, want)
	}
}

func TestDurationsAreShort(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 15*time.Second + time.Millisecond: "15s", time.Minute: "1m 0s", 3*time.Hour + 59*time.Second: "3h 0m",
		26 * time.Hour: "1d 2h", 800 * 24 * time.Hour: "800d 0h",
	} {
		if got := short(d); got != want {
			t.Errorf("%v is shown as %q, not %q", d, got, want)
		}
	}
}

// columnOf is where a text stands in a line, in columns of a terminal; -1 if it doesn't.
func columnOf(line, text string) int {
	before, _, found := strings.Cut(line, text)
	if !found {
		return -1
	}
	return width(before)
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	resultsFile  = "RESULTS.md"
	plotsFolder  = "plots"
	resultsIntro = `# What a lock costs

Written by ` + "`hack/bench.sh`" + `, section by section; don't edit. Times are ratios to the floor, which was measured in turns with
them: the median of the rounds' ratios, and in brackets the smallest and the largest. What is called "again" is the floor
itself under a second name: its distance from 1.00 is noise. CPU is of all processes' threads, per 10,000 operations.

A pool of mysqllock.Open prepares polls and renewals once on each connection. What that saves is about
as much as what they ask for beyond the bare statements, which is their distance to those that are prepared once, too:

- A renewal, the name of the server that writes the row, which WithServerClock looks at; a condition that the session has
  autocommit on; and text that stays text under every sql_mode. An fsync hides most of it.
- A poll, the session's autocommit, names as bytes, which no character set changes, and times as numbers, which no option of
  the driver changes. MySQL describes the columns with each reply, MariaDB once.
- In the client, Get takes another 0.05 to 0.12: of its own time a tenth makes the JSON that client-go compares, the rest is
  the driver's and database/sql's, for more columns.
- A deadline is the largest part of the floor and of the lock, up to two fifths of a poll: the driver, and database/sql for
  a query, each wake a goroutine that watches it. No lock does without.

`
)

// section is the text of one part on one server.
type section struct {
	b    *bench
	part part
	text bytes.Buffer
}

func newSection(b *bench, p part) *section {
	s := &section{b: b, part: p}
	s.printf("%s\n\n", s.heading())
	return s
}

func (s *section) heading() string { return "## " + s.part.title + ": " + s.b.product }

// printf also shows the text to the person who waits.
func (s *section) printf(format string, args ...any) {
	fmt.Printf(format, args...)
	fmt.Fprintf(&s.text, format, args...)
}

// table prints a Markdown table.
func (s *section) table(head []string, rows [][]string) {
	s.printf("| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat(" --- |", len(head)))
	for _, row := range rows {
		s.printf("| %s |\n", strings.Join(row, " | "))
	}
}

// save puts the section in the place of the earlier one in RESULTS.md, or where it belongs by the order of the parts.
func (s *section) save() error {
	path := filepath.Join(s.b.folder, resultsFile)
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	sections := []string{s.text.String()}
	for i, text := range strings.Split("\n"+string(old), "\n## ") {
		if text = "## " + text; i > 0 && !strings.HasPrefix(text, s.heading()+"\n") {
			sections = append(sections, text)
		}
	}
	order := func(text string) int {
		return slices.IndexFunc(parts, func(p part) bool { return strings.HasPrefix(text, "## "+p.title+":") })
	}
	slices.SortStableFunc(sections, func(x, y string) int {
		if order(x) != order(y) {
			return order(x) - order(y)
		}
		return strings.Compare(x, y)
	})
	for i, text := range sections {
		sections[i] = strings.TrimRight(text, "\n") + "\n"
	}
	return os.WriteFile(path, []byte(resultsIntro+strings.Join(sections, "\n")), 0o644) //nolint:gosec // a document, for all to read
}

// savePlot writes the plot as SVG and shows it in the text.
func (s *section) savePlot(p *plot.Plot, name string, width, height vg.Length) error {
	p.Title.Padding = vg.Points(6)
	p.Legend.Left, p.Legend.Top, p.Legend.Padding = true, true, vg.Points(2)
	name = strings.ReplaceAll(strings.ToLower(s.b.product+"-"+name), " ", "-") + ".svg"
	canvas := vgsvg.New(width, height)
	p.Draw(draw.New(canvas))
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	folder := filepath.Join(s.b.folder, plotsFolder)
	if err := os.MkdirAll(folder, 0o755); err != nil { //nolint:gosec // documents, for all to read
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, name), svg.Bytes(), 0o644); err != nil { //nolint:gosec // as above
		return err
	}
	s.printf("\n![%s](%s/%s)\n", p.Title.Text, plotsFolder, name)
	return nil
}

// bars is a group of bars for each label, with the spread of each bar.
type bars struct {
	title, y string
	labels   []string // one for each group
	series   []series
}

type series struct {
	name    string
	spreads []spread // one for each group
}

// roomForLegend is how much higher than its curves or bars a plot is.
const roomForLegend = 1.4

// tops are what plotter.NewYErrorBars takes.
type tops struct {
	spreads []spread
	offset  float64 // of the series from the middle of the group
}

func (t tops) Len() int                { return len(t.spreads) }
func (t tops) XY(i int) (x, y float64) { return float64(i) + t.offset, t.spreads[i].median }
func (t tops) YError(i int) (float64, float64) {
	return t.spreads[i].median - t.spreads[i].least, t.spreads[i].most - t.spreads[i].median
}

func (s *section) plotBars(name string, b bars) error {
	p := plot.New()
	p.Title.Text, p.Y.Label.Text = b.title+" ("+s.b.product+")", b.y
	p.Y.Min = 0
	p.Add(plotter.NewGrid())
	const groupWidth = 0.8 // of the distance of two groups
	canvasWidth := vg.Points(120 + float64(len(b.labels))*max(70, 26*float64(len(b.series))))
	barWidth := (canvasWidth - vg.Points(70)) / vg.Length(len(b.labels)) * groupWidth / vg.Length(len(b.series))
	for i, one := range b.series {
		values := make(plotter.Values, len(one.spreads))
		for j, v := range one.spreads {
			values[j] = v.median
		}
		chart, err := plotter.NewBarChart(values, barWidth)
		if err != nil {
			return err
		}
		steps := float64(i) - float64(len(b.series)-1)/2
		chart.Offset = vg.Length(steps) * barWidth
		chart.Color, chart.LineStyle.Width = plotutil.Color(i), 0
		limits, err := plotter.NewYErrorBars(tops{one.spreads, steps * groupWidth / float64(len(b.series))})
		if err != nil {
			return err
		}
		p.Add(chart, limits)
		if len(b.series) > 1 {
			p.Legend.Add(one.name, chart)
		}
	}
	p.NominalX(b.labels...)
	p.X.Min, p.X.Max = -0.5, float64(len(b.labels))-0.5
	p.Y.Max *= roomForLegend
	return s.savePlot(p, name, canvasWidth, vg.Points(280))
}

// plotDistributions shows, for each series of seconds, which share was not longer.
func (s *section) plotDistributions(name, title string, all []distribution) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title+" ("+s.b.product+")", "seconds", "share of elections led by then"
	p.Add(plotter.NewGrid())
	for i, d := range all {
		points := plotter.XYs{{X: 0, Y: 0}}
		for j, seconds := range d.seconds {
			points = append(points, plotter.XY{X: seconds, Y: float64(j) / float64(len(d.seconds))},
				plotter.XY{X: seconds, Y: float64(j+1) / float64(len(d.seconds))})
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return err
		}
		line.Color, line.Width = plotutil.Color(i), vg.Points(1.5)
		p.Add(line)
		p.Legend.Add(d.name, line)
	}
	p.X.Min, p.Y.Min, p.Y.Max = 0, 0, roomForLegend
	p.Y.Tick.Marker = plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: 0.5, Label: "0.5"}, {Value: 1, Label: "1"}}
	return s.savePlot(p, name, vg.Points(560), vg.Points(280))
}

// count is "1 caller" or "8 callers".
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// distribution is how long something took, sorted.
type distribution struct {
	name    string
	seconds []float64
}

func (d distribution) quantile(p float64) float64 {
	return d.seconds[min(int(p*float64(len(d.seconds))), len(d.seconds)-1)]
}

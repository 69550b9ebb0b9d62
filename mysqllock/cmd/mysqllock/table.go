package main

import (
	"os"
	"strings"

	"golang.org/x/term"
)

// A style is how a terminal shows a cell: parameters of the escape sequence "select graphic rendition".
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	yellow style = "33"
)

// cell is a text, already printable, of a table.
type cell struct {
	text  string
	style style
}

// align makes one line of each row. Columns are as wide as their widest cell.
func align(rows [][]cell, coloured bool) []string {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(c.text))
		}
	}
	lines := make([]string, 0, len(rows))
	for _, row := range rows {
		var line strings.Builder
		gap := 0
		for i, c := range row {
			if c.text != "" {
				line.WriteString(strings.Repeat(" ", gap))
				gap = 0
			}
			line.WriteString(c.paint(coloured))
			gap += widths[i] - width(c.text) + 2
		}
		lines = append(lines, line.String())
	}
	return lines
}

// sizeOf is how large a terminal is; 0 if f is none, or doesn't say.
func sizeOf(f *os.File) (columns, rows int) {
	columns, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, 0
	}
	return columns, rows
}

// leastOfAName is how many columns of a terminal a name keeps, however narrow that is.
const leastOfAName = 16

// fit makes a table as narrow as a terminal of so many columns; 0: any. The last column is left out. If that isn't enough,
// names are shortened: those of the second column of names as far as they may be, and then those of the first, at index
// names.
func fit(rows [][]cell, names, columns int) [][]cell {
	last := len(rows[0]) - 1
	excess := -columns - 2
	for i := range rows[0] {
		excess += columnWidth(rows, i) + 2
	}
	if columns == 0 || excess <= 0 {
		return rows
	}
	excess -= columnWidth(rows, last) + 2
	for i := range rows {
		rows[i] = rows[i][:last]
	}
	for _, column := range []int{names + 1, names} {
		all := columnWidth(rows, column)
		room := min(all, max(all-max(excess, 0), leastOfAName))
		excess -= all - room
		for _, row := range rows {
			row[column].text = shortened(row[column].text, room)
		}
	}
	return rows
}

func columnWidth(rows [][]cell, column int) (columns int) {
	for _, row := range rows {
		columns = max(columns, width(row[column].text))
	}
	return columns
}

// shortened leaves of a text that is too long its beginning and its end.
func shortened(text string, columns int) string {
	if width(text) <= columns {
		return text
	}
	runes := []rune(text)
	head, tail := 0, len(runes)
	for width(string(runes[:head+1])) <= columns/2 {
		head++
	}
	for width(string(runes[tail-1:])) <= columns-columns/2-1 {
		tail--
	}
	return string(runes[:head]) + "…" + string(runes[tail:])
}

func (c cell) paint(coloured bool) string {
	if !coloured || c.style == plain || c.text == "" {
		return c.text
	}
	return "\x1b[" + string(c.style) + "m" + c.text + "\x1b[0m"
}

package main

import "strings"

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

func (c cell) paint(coloured bool) string {
	if !coloured || c.style == plain || c.text == "" {
		return c.text
	}
	return "\x1b[" + string(c.style) + "m" + c.text + "\x1b[0m"
}

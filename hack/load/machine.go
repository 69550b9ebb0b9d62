package main

import (
	"fmt"
	"os"
	"strings"
)

// describeMachine is the processor and their number.
func describeMachine(processors int) string {
	model := "processors"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d x %s", processors, model)
}

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mstage/mstage/engine/progress"
)

// scriptJSON prints a JSON file indented, the keys in order.
//
//	json FILE
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: json FILE")
	}
	var value any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &value))
	enc := json.NewEncoder(ts.Stdout())
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	ts.Check(enc.Encode(value))
}

// scriptEvents prints what a step wrote, out of the events of --progress json.
//
//	events FILE VERTEX
func scriptEvents(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: events FILE VERTEX")
	}
	vertex, err := strconv.Atoi(args[1])
	ts.Check(err)
	events, err := parseEvents(ts.ReadFile(args[0]))
	ts.Check(err)
	for _, e := range events {
		if e.Kind == progress.StepOutput && e.Vertex == vertex {
			fmt.Fprintf(ts.Stdout(), "%s", e.Data)
		}
	}
}

// parseEvents reads the output of --progress json.
func parseEvents(text string) ([]progress.Event, error) {
	var events []progress.Event
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	for {
		var e progress.Event
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) {
			return events, nil
		}
		if err != nil {
			return events, fmt.Errorf("read event %d: %w", len(events), err)
		}
		events = append(events, e)
	}
}

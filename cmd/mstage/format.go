package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"
	"unicode"
)

// outputFormat is a parsed --format: "json", a template, or "table" and a
// template. The zero value is not usable; make it with parseFormat.
type outputFormat struct {
	json  bool
	table bool
	tmpl  *template.Template
}

// maxPad limits the width that a template's pad may ask for, in characters.
const maxPad = 4096

// templateFuncs are docker's template functions.
var templateFuncs = template.FuncMap{
	"json": func(v any) (string, error) {
		var b strings.Builder
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		err := enc.Encode(v)
		return strings.TrimSpace(b.String()), err
	},
	"join":  joinList,
	"title": title,
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
	"split": strings.Split,
	"println": func(args ...any) string {
		return fmt.Sprintln(args...)
	},
	"pad": func(s string, before, after int) (string, error) {
		if s == "" || before < 0 || after < 0 || before > maxPad || after > maxPad {
			return s, nil
		}
		return strings.Repeat(" ", before) + s + strings.Repeat(" ", after), nil
	},
	"truncate": func(s string, limit int) string {
		r := []rune(s)
		return string(r[:max(0, min(limit, len(r)))])
	},
}

// joinList joins strings, and the strings of a list that came from JSON.
func joinList(list any, sep string) (string, error) {
	switch l := list.(type) {
	case nil:
		return "", nil
	case []string:
		return strings.Join(l, sep), nil
	case []any:
		words := make([]string, len(l))
		for i, v := range l {
			words[i] = fmt.Sprint(v)
		}
		return strings.Join(words, sep), nil
	}
	return "", fmt.Errorf("join: %T is not a list", list)
}

// title begins every word with a capital letter.
func title(s string) string {
	after := ' '
	return strings.Map(func(r rune) rune {
		first := !unicode.IsLetter(after) && !unicode.IsDigit(after) && after != '_' && after != '\''
		after = r
		if first {
			return unicode.ToTitle(r)
		}
		return r
	}, s)
}

// parseFormatOr is parseFormat, with "table" for the command's own table.
func parseFormatOr(format, table string) (outputFormat, error) {
	if format == "table" {
		format = table
	}
	return parseFormat(format)
}

// parseFormat reads a --format; an error is a usage error. "\t" and "\n"
// written with a backslash are taken for what they mean.
func parseFormat(format string) (outputFormat, error) {
	if format == "json" {
		return outputFormat{json: true}, nil
	}
	text, table := strings.CutPrefix(format, "table ")
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	tmpl, err := template.New("format").Funcs(templateFuncs).Option("missingkey=error").Parse(text)
	if err != nil {
		return outputFormat{}, &usageError{
			message: "invalid --format: " + strings.TrimPrefix(err.Error(), "template: "),
			hint:    `use "json" or a Go template such as "{{.ID}}"`,
		}
	}
	return outputFormat{table: table, tmpl: tmpl}, nil
}

// writeRows writes structs with string fields, one line each. headers are the
// column titles by field name; they head a table.
func writeRows[R any](w io.Writer, f outputFormat, headers map[string]string, rows []R) error {
	if f.json {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for _, r := range rows {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		return nil
	}
	out, flush := w, func() error { return nil }
	if f.table {
		// Docker's column distance.
		tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
		out, flush = tw, tw.Flush
		if err := writeLine(out, f.tmpl, headers); err != nil {
			return err
		}
	}
	for _, r := range rows {
		if err := writeLine(out, f.tmpl, printableFields(r)); err != nil {
			return err
		}
	}
	return flush()
}

// writeLine executes a template; what it doesn't know is the user's mistake.
func writeLine(w io.Writer, tmpl *template.Template, data any) error {
	var line strings.Builder
	if err := tmpl.Execute(&line, data); err != nil {
		if _, ok := errors.AsType[template.ExecError](err); ok {
			return &usageError{message: "invalid --format: " + strings.TrimPrefix(err.Error(), "template: ")}
		}
		return err
	}
	_, err := fmt.Fprintln(w, line.String())
	return err
}

// printableFields returns a copy of a struct whose string fields can't move the
// terminal's cursor or end a line: they come from images of anybody.
func printableFields[R any](row R) R {
	v := reflect.ValueOf(&row).Elem()
	for _, f := range v.Fields() {
		if f.Kind() == reflect.String {
			f.SetString(printable(f.String()))
		}
	}
	return row
}

// printable replaces white space by spaces and quotes other control characters.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case unicode.IsSpace(r):
			b.WriteByte(' ')
		default:
			quoted := fmt.Sprintf("%+q", r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// ellipsis shortens s to at most width characters, the last one being "…".
func ellipsis(s string, width int) string {
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	return string(r[:width-1]) + "…"
}

package export

import (
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// The types of output.
const (
	// TypeImage keeps the image in the local store; Export does not do it.
	TypeImage = "image"
	// TypeOCI is an OCI image layout, as a tar or with tar=false a directory.
	TypeOCI = "oci"
	// TypeDocker is a tar for `docker load`.
	TypeDocker = "docker"
	// TypeLocal is a directory with the root file system.
	TypeLocal = "local"
	// TypeRegistry pushes the image under its names; Export does not do it.
	TypeRegistry = "registry"
	// TypeDaemon hands the image to a docker daemon; Export does not do it.
	TypeDaemon = "daemon"
	// TypeTar is a tar of the root file system.
	TypeTar = "tar"
)

// Stdout as Dest stands for Output.Stdout.
const Stdout = "-"

// attrTar is the key that chooses between a tar and a directory.
const attrTar = "tar"

// knownKeys are the keys each type takes apart from "type".
var knownKeys = map[string][]string{
	TypeImage:  {},
	TypeOCI:    {"dest", attrTar},
	TypeDocker: {"dest", attrTar},
	TypeLocal:  {"dest"},
	TypeTar:    {"dest"},

	TypeRegistry: {},
	TypeDaemon:   {"host", "context"},
}

// Output says what to make of an image and where to put it.
type Output struct {
	// Type is one of the Type constants.
	Type string
	// Dest is a path, or "-" for Stdout. "" means "-" where the type can be a
	// stream.
	Dest string
	// Stdout takes the stream when Dest is "-".
	Stdout io.Writer
	// Attrs are the other keys: tar=true|false for oci, host and context for
	// daemon.
	Attrs map[string]string
	// Daemon takes the image for TypeDaemon. It does not cross to the worker.
	Daemon Daemon `json:"-"`
}

// OutputError is a -o that can't be honoured. Hint is shown apart from the
// message; it lists what would be known.
type OutputError struct {
	Value   string // as written
	Message string
	Hint    string
}

// Error names the value and what is wrong with it.
func (e *OutputError) Error() string { return fmt.Sprintf("output %q: %s", e.Value, e.Message) }

// ParseOutput reads the value of -o: comma separated key=value pairs in CSV form
// ("type=oci,dest=image.tar"), a directory alone for type=local, or "-" for
// type=tar to stdout. What is wrong is an *OutputError. Source: docker build
// reference, --output.
func ParseOutput(s string) (Output, error) {
	fail := func(hint, format string, args ...any) (Output, error) {
		return Output{}, &OutputError{Value: s, Message: fmt.Sprintf(format, args...), Hint: hint}
	}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil || strings.TrimSpace(s) == "" || strings.Contains(s, "\n") {
		return fail(typesHint(), "not a list of key=value pairs")
	}
	if len(fields) == 1 && !isPair(fields[0]) {
		return shorthand(fields[0]), nil
	}
	pairs, err := parsePairs(fields)
	if err != nil {
		return fail(typesHint(), "%v", err)
	}
	o := Output{Type: pairs["type"], Dest: pairs["dest"], Attrs: pairs}
	if o.Type == "" {
		return fail(typesHint(), "type is missing")
	}
	keys, ok := knownKeys[o.Type]
	if !ok {
		return fail(typesHint(), "unknown type %q", o.Type)
	}
	for _, key := range slices.Sorted(maps.Keys(pairs)) {
		if key != "type" && !slices.Contains(keys, key) {
			return fail(keysHint(o.Type, key), "unknown key %q for type=%s", key, o.Type)
		}
	}
	delete(o.Attrs, "type")
	delete(o.Attrs, "dest")
	if problem, hint := o.check(); problem != "" {
		return fail(hint, "%s", problem)
	}
	return o.withDest(), nil
}

// isPair reports whether a value on its own is a pair and not a directory.
func isPair(s string) bool {
	key, _, ok := strings.Cut(s, "=")
	if !ok {
		return false
	}
	key = strings.ToLower(strings.TrimSpace(key))
	return key == "type" || key == "dest" || key == attrTar
}

// shorthand returns what a value without keys means.
func shorthand(s string) Output {
	if s == Stdout {
		return Output{Type: TypeTar, Dest: Stdout}
	}
	return Output{Type: TypeLocal, Dest: s}
}

// parsePairs splits the fields.
func parsePairs(fields []string) (map[string]string, error) {
	pairs := map[string]string{}
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not a key=value pair", field)
		}
		key = strings.ToLower(strings.TrimSpace(key))
		if _, twice := pairs[key]; twice {
			return nil, fmt.Errorf("key %q stands twice", key)
		}
		pairs[key] = value
	}
	return pairs, nil
}

// check returns what is wrong with the values, and a hint; "" when nothing is.
func (o Output) check() (problem, hint string) {
	if v, ok := o.Attrs[attrTar]; ok {
		if _, err := strconv.ParseBool(v); err != nil {
			return fmt.Sprintf("tar=%s is neither true nor false", v), "write tar=false for a directory"
		}
	}
	switch {
	case o.Type == TypeDocker && !o.isTar():
		return "a docker archive is always a tar", "type=oci,tar=false makes a directory"
	case o.Type == TypeLocal && (o.Dest == "" || o.Dest == Stdout):
		return "type=local needs a directory", "add dest=DIR, or use type=tar for a stream"
	case o.Type == TypeOCI && !o.isTar() && (o.Dest == "" || o.Dest == Stdout):
		return "tar=false needs a directory", "add dest=DIR, or leave tar=false out for a stream"
	}
	return "", ""
}

// withDest fills Dest where the type can be a stream.
func (o Output) withDest() Output {
	if o.Dest == "" && !o.Sent() && o.Type != TypeImage {
		o.Dest = Stdout
	}
	return o
}

// Sent reports whether the image goes to somebody else, not to a file: the
// process with the credentials does that, from the sealed image.
func (o Output) Sent() bool { return o.Type == TypeRegistry || o.Type == TypeDaemon }

// isTar reports whether the output is one stream.
func (o Output) isTar() bool {
	if o.Type == TypeLocal {
		return false
	}
	v, ok := o.Attrs[attrTar]
	if !ok {
		return true
	}
	b, err := strconv.ParseBool(v)
	return err == nil && b
}

// typesHint lists the types.
func typesHint() string {
	return "write type=T[,dest=PATH] with T one of " + strings.Join(slices.Sorted(maps.Keys(knownKeys)), ", ") +
		"; or a directory alone; or - for a tar on stdout"
}

// keysHint lists the keys of a type.
func keysHint(typ, key string) string {
	if key == "name" {
		return "name the image with -t"
	}
	keys := append([]string{"type"}, knownKeys[typ]...)
	return "known for type=" + typ + ": " + strings.Join(keys, ", ")
}

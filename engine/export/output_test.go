package export_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/mstage/mstage/engine/export"
)

func TestParseOutput(t *testing.T) {
	cases := map[string]struct {
		in   string
		want export.Output
	}{
		"a directory alone":         {"out/dir", export.Output{Type: "local", Dest: "out/dir"}},
		"a directory with an equal": {"a=b", export.Output{Type: "local", Dest: "a=b"}},
		"stdout alone":              {"-", export.Output{Type: "tar", Dest: "-"}},
		"a tarball":                 {"type=oci,dest=a.tar", export.Output{Type: "oci", Dest: "a.tar"}},
		"no dest is stdout":         {"type=docker", export.Output{Type: "docker", Dest: "-"}},
		"the store":                 {"type=image", export.Output{Type: "image"}},
		"a quoted comma":            {`type=tar,"dest=a,b"`, export.Output{Type: "tar", Dest: "a,b"}},
		"keys in any case":          {"Type=local,DEST=x", export.Output{Type: "local", Dest: "x"}},
		"an attribute":              {"type=oci,tar=false,dest=x", export.Output{Type: "oci", Dest: "x", Attrs: map[string]string{"tar": "false"}}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := export.ParseOutput(c.in)
			if err != nil || got.Type != c.want.Type || got.Dest != c.want.Dest || !maps.Equal(got.Attrs, c.want.Attrs) {
				t.Errorf("got %+v (%v), want %+v", got, err, c.want)
			}
		})
	}
}

func TestParseOutputRefusesWithAHint(t *testing.T) {
	cases := map[string]struct{ in, message, hint string }{
		"an unknown type":         {"type=zip", `unknown type "zip"`, "daemon, docker, image, local, oci, registry, tar"},
		"an unknown key":          {"type=oci,compression=zstd", `unknown key "compression"`, "type, dest, tar"},
		"a name":                  {"type=image,name=x", `unknown key "name"`, "-t"},
		"no type":                 {"dest=x", "type is missing", "type=T"},
		"a key twice":             {"type=oci,type=tar", "stands twice", "type=T"},
		"a word among pairs":      {"type=oci,push", `"push" is not a key=value pair`, "type=T"},
		"nothing":                 {"", "not a list", "type=T"},
		"a broken quote":          {`type=oci,"dest`, "not a list", "type=T"},
		"local without directory": {"type=local", "needs a directory", "dest=DIR"},
		"local to stdout":         {"type=local,dest=-", "needs a directory", "type=tar"},
		"a layout to stdout":      {"type=oci,tar=false", "needs a directory", "dest=DIR"},
		"a docker directory":      {"type=docker,tar=false,dest=x", "always a tar", "type=oci"},
		"tar=maybe":               {"type=oci,tar=maybe", "neither true nor false", "tar=false"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := export.ParseOutput(c.in)
			var oe *export.OutputError
			if !errors.As(err, &oe) || !strings.Contains(oe.Message, c.message) || !strings.Contains(oe.Hint, c.hint) {
				t.Errorf("got %#v, want message %q and hint %q", err, c.message, c.hint)
			}
		})
	}
}

func FuzzParseOutput(f *testing.F) {
	f.Add("type=oci,dest=x")
	f.Add("-")
	f.Fuzz(func(t *testing.T, s string) {
		o, err := export.ParseOutput(s)
		if err == nil && o.Type == "" {
			t.Errorf("%q: got no type and no error", s)
		}
	})
}

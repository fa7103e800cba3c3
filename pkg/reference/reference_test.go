package reference_test

import (
	_ "crypto/sha512" // makes the oracle accept its digests
	"errors"
	"strings"
	"testing"

	oracle "github.com/distribution/reference"

	"github.com/mstage/mstage/pkg/reference"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestNormalizeReadsNamesAsDockerDoes(t *testing.T) {
	cases := map[string]struct{ name, want string }{
		"a bare name is docker's official image":   {"busybox", "docker.io/library/busybox:latest"},
		"a written tag is kept":                    {"busybox:1.36", "docker.io/library/busybox:1.36"},
		"a user's image has no library":            {"me/app", "docker.io/me/app:latest"},
		"localhost is a domain":                    {"localhost/x", "localhost/x:latest"},
		"a port is not a tag":                      {"localhost:5000/x:1", "localhost:5000/x:1"},
		"the old domain of docker's hub is mapped": {"index.docker.io/a", "docker.io/library/a:latest"},
		"an upper-case first part is a domain":     {"Foo/bar", "Foo/bar:latest"},
		"an IPv6 address is a domain":              {"[::1]:5000/x", "[::1]:5000/x:latest"},
		"separators may repeat where allowed":      {"a__b/c---d.e_f", "docker.io/a__b/c---d.e_f:latest"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := reference.Normalize(c.name)
			if err != nil || got != c.want {
				t.Errorf("Normalize(%q): got %q, %v, want %q", c.name, got, err, c.want)
			}
		})
	}
}

func TestNormalizeSaysWhatIsWrong(t *testing.T) {
	cases := map[string]struct{ name, want string }{
		"upper case":                {"Busybox", "lower case"},
		"nothing":                   {"", "empty"},
		"an image ID":               {hex64, "image ID"},
		"an empty tag":              {"a:", "tag is empty"},
		"a tag with an odd start":   {"a:-b", "begins with"},
		"a tag that is too long":    {"a:" + strings.Repeat("x", 129), "longer than 128"},
		"a name that is too long":   {strings.Repeat("x", 256), "longer than 255"},
		"an empty component":        {"a//b", "empty"},
		"a separator at the end":    {"a-", "ends with"},
		"a character out of place":  {"a b", `" "`},
		"three underscores":         {"a___b", "can't stand"},
		"a digest of unknown kind":  {"a@md5:" + hex64, "not of sha256"},
		"a digest of wrong length":  {"a@sha256:abc", "64 lower-case"},
		"a digest instead of a tag": {"a@sha256:" + hex64, "digest"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := reference.Normalize(c.name)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Normalize(%q): got %q, %v, want an error with %q", c.name, got, err, c.want)
			}
		})
	}
	if _, err := reference.Normalize("a@sha256:" + hex64); !errors.Is(err, reference.ErrDigest) {
		t.Errorf("got %v, want ErrDigest", err)
	}
}

func TestFamiliarShortensAsDockerDoes(t *testing.T) {
	for full, want := range map[string]string{
		"docker.io/library/busybox:latest": "busybox:latest",
		"docker.io/me/app:1":               "me/app:1",
		"docker.io/library/a/b":            "library/a/b",
		"localhost/x:1":                    "localhost/x:1",
		"not a reference":                  "not a reference",
	} {
		if got := reference.Familiar(full); got != want {
			t.Errorf("Familiar(%q): got %q, want %q", full, got, want)
		}
	}
}

// agree fails unless this package and distribution's read s alike.
func agree(t *testing.T, s string) {
	t.Helper()
	want, wantErr := oracle.ParseNormalizedNamed(s)
	got, err := reference.Parse(s)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%q: got error %v, want %v", s, err, wantErr)
	}
	if err != nil {
		return
	}
	if got.String() != want.String() || got.Domain != oracle.Domain(want) || got.Path != oracle.Path(want) {
		t.Fatalf("%q: got %+v, want %q (domain %q, path %q)", s, got, want, oracle.Domain(want), oracle.Path(want))
	}
	if full := oracle.TagNameOnly(want).String(); got.WithDefaultTag().String() != full {
		t.Fatalf("%q: got %q with a tag, want %q", s, got.WithDefaultTag(), full)
	}
	if reference.Familiar(got.String()) != oracle.FamiliarString(want) || got.FamiliarName() != oracle.FamiliarName(want) {
		t.Fatalf("%q: got familiar %q, want %q", s, reference.Familiar(got.String()), oracle.FamiliarString(want))
	}
}

// pieces, joined in every way, make names at the edges of the grammar.
var pieces = []string{
	"", "a", "A", "0", "a.b", "a_b.c", "-", "--", "__", "___", ".", "..", "_", ":", ":1", ":5000", "@", "/", "//",
	"localhost", "docker.io", "index.docker.io", "library", "[::1]", "[", "é", " ", "\n", "\xff",
	"@sha256:" + hex64, "@sha512:" + hex64 + hex64, "@sha1:" + hex64[:40], "@SHA256:" + hex64, hex64,
}

func TestParseAgreesWithDistribution(t *testing.T) {
	for _, a := range pieces {
		for _, b := range pieces {
			for _, c := range pieces {
				agree(t, a+b+c)
				agree(t, a+"/"+b+c)
			}
		}
	}
	for _, n := range []int{127, 128, 129} {
		agree(t, "a:"+strings.Repeat("t", n))
	}
	for n := 240; n < 260; n++ {
		agree(t, strings.Repeat("x", n))
		agree(t, "a.b/"+strings.Repeat("x", n))
		agree(t, "a_b.c/"+strings.Repeat("x", n))
	}
}

func FuzzParseAgreesWithDistribution(f *testing.F) {
	for _, p := range pieces {
		f.Add(p)
		f.Add("a/" + p)
		f.Add(p + "/a:1")
	}
	f.Fuzz(agree)
}

func BenchmarkNormalize(b *testing.B) {
	for b.Loop() {
		if _, err := reference.Normalize("localhost:5000/me/app:1.2"); err != nil {
			b.Fatal(err)
		}
	}
}

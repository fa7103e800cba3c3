package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/index"
	"github.com/mstage/mstage/storage/layout"
)

// hello is an image of two layers and three instructions.
var hello = storage.Image{
	ID: storage.DigestBytes([]byte("hello")),
	Config: []byte(`{"architecture":"amd64","os":"linux","author":"me","config":{"Env":["A=<b>"],"Cmd":["sh"]},
		"rootfs":{"type":"layers","diff_ids":["sha256:wrong"]},
		"history":[
			{"created":"2020-01-01T00:00:00Z","created_by":"ADD rootfs.tar / # buildkit"},
			{"created":"2020-01-01T00:00:00Z","created_by":"ENV A=<b>","empty_layer":true},
			{"created":"2020-01-01T00:00:00Z","created_by":"RUN \u001b[31m echo a rather long command that does not fit its column","comment":"last"}]}`),
	Layers: []storage.Layer{
		{ID: "aa", Identity: storage.DigestBytes([]byte("a")), SizeBytes: 4_261_550},
		{ID: "bb", Identity: storage.DigestBytes([]byte("b")), SizeBytes: 17},
	},
	Created: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
}

// nameless is an image without names that was exported.
var nameless = storage.Image{
	ID:     storage.DigestBytes([]byte("nameless")),
	Config: []byte(`{"architecture":"amd64","os":"linux","config":{}}`),
	Layers: []storage.Layer{{ID: "cc", Identity: storage.DigestBytes([]byte("c")), SizeBytes: 5}},
	Sealed: &storage.SealedImage{
		ConfigDigest: storage.DigestBytes([]byte("config")),
		Config:       []byte(`{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:right"]}}`),
	},
}

// newStore makes a store with the two images and selects it.
func newStore(t *testing.T) *index.Index {
	t.Helper()
	l, err := layout.Create(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	ix, err := index.Open(l.Index())
	if err != nil {
		t.Fatal(err)
	}
	if err := ix.PutImage(t.Context(), hello, "docker.io/library/hello:latest", "localhost/hello:1"); err != nil {
		t.Fatal(err)
	}
	if err := ix.PutImage(t.Context(), nameless); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MSTAGE_ROOT", l.Root)
	return ix
}

// mstageRun runs the program and returns what it wrote and its exit code.
func mstageRun(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = run(append([]string{"mstage"}, args...), strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), code
}

// succeed runs the program, which must exit with 0 and nothing on stderr.
func succeed(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, code := mstageRun(args...)
	if code != engine.ExitOK || stderr != "" {
		t.Fatalf("mstage %q: got exit code %d and %q on stderr, want 0 and nothing", args, code, stderr)
	}
	return stdout
}

func TestImagesListsEachNameAndWhatHasNone(t *testing.T) {
	newStore(t)
	got := strings.Fields(strings.ReplaceAll(succeed(t, "images", "--format", "{{.Repository}} {{.Tag}} {{.ID}} {{.Size}}"), " ", "|"))
	want := []string{
		"hello|latest|" + hello.ID.Short() + "|4.26MB",
		"localhost/hello|1|" + hello.ID.Short() + "|4.26MB",
		"<none>|<none>|" + nameless.ID.Short() + "|5B",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	header, _, _ := strings.Cut(succeed(t, "images"), "\n")
	if strings.Join(strings.Fields(header), " ") != "REPOSITORY TAG IMAGE ID CREATED SIZE" {
		t.Errorf("got header %q, want docker's columns", header)
	}
}

func TestImagesTakesDockersFlags(t *testing.T) {
	newStore(t)
	cases := map[string]struct {
		args []string
		want string
	}{
		"-q prints each ID once":            {[]string{"-q"}, hello.ID.Short() + "\n" + nameless.ID.Short() + "\n"},
		"--no-trunc prints IDs in full":     {[]string{"-aq", "--no-trunc", "hello"}, string(hello.ID) + "\n"},
		"a name without a tag means all":    {[]string{"--format", "{{.Tag}}", "localhost/hello"}, "1\n"},
		"a name with a tag means that one":  {[]string{"-q", "hello:2"}, ""},
		"a template may say table":          {[]string{"--format", `table {{.Tag}}\t{{.Digest}}`, "hello"}, "TAG       DIGEST\nlatest    <none>\n"},
		"table alone is the usual one":      {[]string{"--format", "table", "other"}, "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n"},
		"--digests has one more column":     {[]string{"--digests", "other"}, "REPOSITORY   TAG       DIGEST    IMAGE ID   CREATED   SIZE\n"},
		"a pattern may be a glob":           {[]string{"--format", "{{.Repository}}", "local*/h?llo"}, "localhost/hello\n"},
		"dangling images":                   {[]string{"-q", "-f", "dangling=true"}, nameless.ID.Short() + "\n"},
		"images that are not dangling":      {[]string{"-q", "--filter", "dangling=false"}, hello.ID.Short() + "\n"},
		"one of two references":             {[]string{"--format", "{{.Tag}}", "-f", "reference=hello:l*", "-f", "reference=x"}, "latest\n"},
		"before":                            {[]string{"-q", "-f", "before=" + nameless.ID.Short()}, ""},
		"since":                             {[]string{"-q", "-f", "since=" + nameless.ID.Short()}, hello.ID.Short() + "\n"},
		"no label":                          {[]string{"-q", "-f", "label=a"}, ""},
		"template functions are docker's":   {[]string{"--format", `{{upper .Tag}} {{truncate .ID 2}} {{join (split "a,b" ",") "-"}}{{pad "x" 1 0}}`, "hello"}, "LATEST " + hello.ID.Short()[:2] + " a-b x\n"},
		"no image of a known name is empty": {[]string{"--format", "{{.ID}}", "other"}, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := succeed(t, append([]string{"images"}, c.args...)...); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// pulled is an image that came with a manifest.
func pulled(t *testing.T, ix *index.Index, names ...string) storage.Image {
	t.Helper()
	img := storage.Image{
		Config: []byte(`{"os":"linux","architecture":"amd64","config":{"Labels":{"a":"b"}}}`), Created: hello.Created.Add(time.Hour),
		Sealed: &storage.SealedImage{Manifest: &storage.Manifest{Raw: []byte("{}")}},
	}
	img.ID = storage.DigestBytes(img.Config)
	img.Sealed.Config, img.Sealed.ConfigDigest = img.Config, img.ID
	if err := ix.PutImage(t.Context(), img, names...); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestAnImageOfARegistryHasDigests(t *testing.T) {
	ix := newStore(t)
	digest := string(storage.DigestBytes([]byte("{}")))
	img := pulled(t, ix, "docker.io/library/x@"+digest)
	if got, want := succeed(t, "images", "--format", "{{.Repository}} {{.Tag}} {{.Digest}}", "x"), "x <none> "+digest+"\n"; got != want {
		t.Errorf("a name with a digest: got %q, want %q", got, want)
	}
	if got, want := succeed(t, "inspect", "-f", "{{.Id}} {{.RepoTags}} {{.RepoDigests}}", "x@"+digest), string(img.ID)+" [] [x@"+digest+"]\n"; got != want {
		t.Errorf("inspect: got %q, want %q", got, want)
	}
	if err := ix.PutImage(t.Context(), img, "docker.io/library/x:1", "localhost/y:2"); err != nil {
		t.Fatal(err)
	}
	if got, want := succeed(t, "images", "--format", "{{.Repository}}:{{.Tag}}", "-f", "label=a=b", "-f", "since=hello"), "x:1\nlocalhost/y:2\n"; got != want {
		t.Errorf("with tags: got %q, want %q", got, want)
	}
	if got, want := succeed(t, "inspect", "-f", "{{json .RepoDigests}}", "x"+":1"), `["localhost/y@`+digest+`","x@`+digest+`"]`+"\n"; got != want {
		t.Errorf("inspect: got %q, want %q", got, want)
	}
	if got := succeed(t, "images", "-q", "-f", "label=a=c"); got != "" {
		t.Errorf("another label: got %q, want nothing", got)
	}
}

func TestImagesPrintsJSONLines(t *testing.T) {
	newStore(t)
	lines := strings.Split(strings.TrimSpace(succeed(t, "images", "--format", "json")), "\n")
	if len(lines) != 3 {
		t.Fatalf("got %d lines, want 3", len(lines))
	}
	var row map[string]string
	if err := json.Unmarshal([]byte(lines[0]), &row); err != nil || row["Repository"] != "hello" || row["CreatedAt"] != "2020-01-01 00:00:00 +0000 UTC" {
		t.Errorf("got %v, %v, want the row of hello", row, err)
	}
}

func TestTagGivesAnImageAnotherName(t *testing.T) {
	ix := newStore(t)
	for word, name := range map[string]string{
		"hello": "a", "localhost/hello:1": "a:2", hello.ID.Short(): "localhost:5000/b", string(hello.ID): "c:1", hello.ID.Hex(): "d",
	} {
		succeed(t, "tag", word, name)
	}
	for _, name := range []string{"docker.io/library/a:latest", "docker.io/library/a:2", "localhost:5000/b:latest", "docker.io/library/c:1", "docker.io/library/d:latest"} {
		if img, err := ix.ByName(t.Context(), name); err != nil || img.ID != hello.ID {
			t.Errorf("%s: got %s, %v, want hello's ID", name, img.ID, err)
		}
	}
	succeed(t, "tag", string(nameless.Sealed.ConfigDigest), "a")
	if img, err := ix.ByName(t.Context(), "docker.io/library/a:latest"); err != nil || img.ID != nameless.ID {
		t.Errorf("moved name: got %s, %v, want the other image", img.ID, err)
	}
}

func TestHistoryShowsEachInstructionWithItsSize(t *testing.T) {
	newStore(t)
	got := succeed(t, "history", "--format", "{{.ID}}|{{.CreatedBy}}|{{.Size}}|{{.Comment}}", "hello")
	want := hello.ID.Short() + `|RUN \x1b[31m echo a rather long command that do…|17B|last` + "\n" +
		"<missing>|ENV A=<b>|0B|\n" +
		"<missing>|ADD rootfs.tar / # buildkit|4.26MB|\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	full := succeed(t, "history", "--no-trunc", "--human=false", "--format", "{{.CreatedSince}} {{.Size}} {{.CreatedBy}}", "hello")
	if !strings.Contains(full, "fit its column") || !strings.HasSuffix(full, "2020-01-01T00:00:00Z 4261550 ADD rootfs.tar / # buildkit\n") {
		t.Errorf("got %q, want whole commands, bytes and dates", full)
	}
	header, _, _ := strings.Cut(succeed(t, "history", "hello"), "\n")
	if strings.Join(strings.Fields(header), " ") != "IMAGE CREATED CREATED BY SIZE COMMENT" {
		t.Errorf("got header %q, want docker's columns", header)
	}
	if got := succeed(t, "history", "-q", "hello"); got != hello.ID.Short()+"\n<missing>\n<missing>\n" {
		t.Errorf("got %q, want the ID and two missing ones", got)
	}
}

func TestHistoryLeavesNoLayerOut(t *testing.T) {
	entries, err := historyEntries(nameless)
	if err != nil || len(entries) != 1 || entries[0].SizeBytes != 5 {
		t.Errorf("a layer without history: got %+v, %v, want one entry of 5 bytes", entries, err)
	}
	more := nameless
	more.Config = []byte(`{"history":[{"created_by":"a"},{"created_by":"b"}]}`)
	entries, err = historyEntries(more)
	if err != nil || len(entries) != 2 || entries[0].SizeBytes != 5 || entries[1].SizeBytes != 0 {
		t.Errorf("more history than layers: got %+v, %v, want 5 and 0 bytes", entries, err)
	}
}

func TestInspectShowsWhatDockerShows(t *testing.T) {
	newStore(t)
	var got []map[string]any
	if err := json.Unmarshal([]byte(succeed(t, "inspect", "hello", nameless.ID.Short())), &got); err != nil || len(got) != 2 {
		t.Fatalf("got %d images, %v, want 2", len(got), err)
	}
	for field, want := range map[string]any{
		"Id": string(hello.ID), "Created": "2020-01-01T00:00:00Z", "Size": 4261567.0, "Architecture": "amd64", "Os": "linux",
		"Author": "me", "Comment": "last",
	} {
		if got[0][field] != want {
			t.Errorf("%s: got %v, want %v", field, got[0][field], want)
		}
	}
	for template, want := range map[string]string{
		"{{.Config.Env}}":              "[A=<b>]",
		"{{json .RepoTags}}":           `["hello:latest","localhost/hello:1"]`,
		"{{json .RootFS}}":             `{"Type":"layers","Layers":null}`,
		"{{.Mstage.ConfigDigest}}":     "",
		"{{len .Mstage.Layers}}":       "2",
		"{{json .Config.Cmd}} {{.ID}}": `["sh"] ` + string(hello.ID),
		"{{.Id}} {{.Size}}":            string(hello.ID) + " 4261567",
		`{{join .RepoTags " "}}`:       "hello:latest localhost/hello:1",
		`{{.Id | printf "%.6s"}} {{join .Config.Env ","}} {{title "a b"}}`: "sha256 A=<b> A B",
		"{{json .Config.Env}}": `["A=<b>"]`,
	} {
		if got := succeed(t, "inspect", "-f", template, "hello"); got != want+"\n" {
			t.Errorf("%s: got %q, want %q", template, got, want)
		}
	}
	sealed := succeed(t, "inspect", "--format", "{{.RootFS.Layers}} {{.Mstage.ConfigDigest}}", nameless.ID.Short())
	if want := "[sha256:right] " + string(nameless.Sealed.ConfigDigest) + "\n"; sealed != want {
		t.Errorf("sealed image: got %q, want %q", sealed, want)
	}
}

func TestInspectPrintsWhatItFindsAndReportsTheRest(t *testing.T) {
	newStore(t)
	stdout, stderr, code := mstageRun("inspect", "--format", "{{.ID}}", "hello", "nowhere")
	if code != engine.ExitNotFound || stdout != string(hello.ID)+"\n" || !strings.Contains(stderr, "no such image: nowhere") {
		t.Errorf("got %q, %q and code %d, want the ID, an error and %d", stdout, stderr, code, engine.ExitNotFound)
	}
}

func TestMistakesHaveAnExitCodeAndAHint(t *testing.T) {
	newStore(t)
	cases := map[string]struct {
		args []string
		code int
		want string
	}{
		"a misspelt command":             {[]string{"imagse"}, engine.ExitUsage, `did you mean "images"?`},
		"an unknown command with a flag": {[]string{"frobnicate", "-x"}, engine.ExitUsage, `unknown command "frobnicate"`},
		"an unknown filter":              {[]string{"images", "-f", "colour=red"}, engine.ExitUsage, "before=IMAGE"},
		"a filter without a value":       {[]string{"images", "-f", "dangling"}, engine.ExitUsage, "KEY=VALUE"},
		"a filter by no image":           {[]string{"images", "-f", "since=nowhere"}, engine.ExitNotFound, "no such image: nowhere"},
		"an unknown flag":                {[]string{"images", "--foo"}, engine.ExitUsage, "unknown flag: --foo"},
		"an unknown flag before any":     {[]string{"--foo", "images"}, engine.ExitUsage, "unknown flag: --foo"},
		"too few arguments":              {[]string{"tag", "hello"}, engine.ExitUsage, "usage: mstage tag IMAGE NAME[:TAG]"},
		"a malformed template":           {[]string{"images", "--format", "{{.ID"}, engine.ExitUsage, "invalid --format"},
		"a field that doesn't exist":     {[]string{"images", "--format", "{{.Foo}}"}, engine.ExitUsage, "invalid --format"},
		"an image that doesn't exist":    {[]string{"history", "nowhere"}, engine.ExitNotFound, "no such image: nowhere"},
		"a name that can't be":           {[]string{"tag", "hello", "Upper"}, engine.ExitUsage, "lower case"},
		"a reserved name":                {[]string{"tag", "hello", "scratch"}, engine.ExitUsage, "scratch is reserved"},
		"a digest as a name":             {[]string{"tag", "hello", "a@" + string(hello.ID)}, engine.ExitUsage, "digest"},
		"a word that no image can have":  {[]string{"history", "Upper"}, engine.ExitUsage, "lower case"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := mstageRun(c.args...)
			if code != c.code || !strings.Contains(stderr, c.want) {
				t.Errorf("got code %d and %q, want %d and %q", code, stderr, c.code, c.want)
			}
			if stdout != "" {
				t.Errorf("got %q on stdout, want nothing", stdout)
			}
		})
	}
}

func TestAStoreOfAnotherVersionIsRefused(t *testing.T) {
	newStore(t)
	root := os.Getenv("MSTAGE_ROOT")
	if err := os.WriteFile(layout.Layout{Root: root}.Format(), []byte("mstage store 99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := mstageRun("images")
	if code != engine.ExitHost || !strings.Contains(stderr, root) || !strings.Contains(stderr, "hint: ") {
		t.Errorf("got code %d and %q, want %d, the directory and a hint", code, stderr, engine.ExitHost)
	}
}

func TestAStoreThatDoesNotExistIsEmptyAndIsNotMade(t *testing.T) {
	root := filepath.Join(t.TempDir(), "none")
	if got := succeed(t, "--root", root, "images", "-q"); got != "" {
		t.Errorf("got %q, want nothing", got)
	}
	if _, err := os.Lstat(root); err == nil {
		t.Error("got a directory, want none")
	}
}

func TestTheStoreIsWhereTheFlagOrTheEnvironmentSays(t *testing.T) {
	env := map[string]string{"MSTAGE_ROOT": "/env", "XDG_DATA_HOME": "/data", "HOME": "/home/me"}
	steps := []struct{ drop, root, user string }{
		{"", "/flag", "/flag"},
		{"flag", "/env", "/env"},
		{"MSTAGE_ROOT", rootStore, "/data/mstage"},
		{"XDG_DATA_HOME", rootStore, "/home/me/.local/share/mstage"},
	}
	c := &cli{rootFlag: "/flag", lookupenv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
	for _, s := range steps {
		if s.drop == "flag" {
			c.rootFlag = ""
		}
		delete(env, s.drop)
		want := s.user
		if os.Geteuid() == 0 {
			want = s.root
		}
		if got, err := c.storeRoot(); err != nil || got != want {
			t.Errorf("without %s: got %q, %v, want %q", s.drop, got, err, want)
		}
	}
}

func TestVersionPrintsAsAsked(t *testing.T) {
	if got := succeed(t, "version"); !strings.HasPrefix(got, "mstage version "+version) {
		t.Errorf("got %q", got)
	}
	var v versionInfo
	if err := json.Unmarshal([]byte(succeed(t, "version", "--format", "json")), &v); err != nil || v.Version != version {
		t.Errorf("got %+v, %v", v, err)
	}
	if got := succeed(t, "version", "-f", "{{.Os}}"); got != "linux\n" {
		t.Errorf("got %q, want linux", got)
	}
}

func TestHelpShowsExamplesOfEveryCommand(t *testing.T) {
	for _, cmd := range newRoot(&cli{}).Commands() {
		if cmd.Example == "" || cmd.Short == "" {
			t.Errorf("%s has no example or no summary", cmd.Name())
		}
	}
}
